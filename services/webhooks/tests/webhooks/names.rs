//! A name server on the loopback, for a replica that resolves names by nothing else.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::net::UdpSocket;

/// Resolvers ask no other port.
const PORT: u16 = 53;

/// Gives every name the addresses of its first answer, then those of its second, and at last always those
/// of its last. It has no IPv6 addresses.
pub struct NameServer {
    directory: TempDir,
    queries: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl NameServer {
    /// Needs root, for the port.
    pub async fn start(answers: &[&[Ipv4Addr]]) -> Self {
        // An address of the loopback that no other test and no other resolver uses.
        let [a, b, c] = rand::random::<[u8; 3]>();
        let address = Ipv4Addr::new(127, 64 + a % 64, b, c);
        let socket = UdpSocket::bind((address, PORT)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        // A query is not repeated, so that the tests can count them.
        let resolver = format!("nameserver {address}\noptions timeout:30\n");
        for (file, text) in [
            ("resolv.conf", resolver.as_str()),
            ("nsswitch.conf", "hosts: files dns\n"),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let answers: Vec<Vec<Ipv4Addr>> = answers.iter().map(|answer| answer.to_vec()).collect();
        let queries = Arc::new(AtomicUsize::new(0));
        let asked = queries.clone();
        let server = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                let addresses: &[Ipv4Addr] = if is_for_ipv4(query) {
                    let number = asked.fetch_add(1, Ordering::SeqCst);
                    &answers[number.min(answers.len() - 1)]
                } else {
                    &[]
                };
                let _ = socket.send_to(&reply(query, addresses), from).await;
            }
        });
        Self {
            directory,
            queries,
            server,
        }
    }

    /// The directory with the `resolv.conf` and the `nsswitch.conf` of a process that asks this server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How often it was asked for IPv4 addresses.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The name, the type and the class of a query (RFC 1035), without what follows.
fn question(query: &[u8]) -> &[u8] {
    let name = query.iter().skip(12).take_while(|byte| **byte != 0).count();
    query.get(12..12 + name + 5).unwrap_or_default()
}

fn is_for_ipv4(query: &[u8]) -> bool {
    question(query).ends_with(&[0, 1, 0, 1])
}

/// The reply to a query, with these addresses for its name.
fn reply(query: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut reply = query.get(..2).unwrap_or_default().to_vec();
    let count = u8::try_from(addresses.len()).unwrap();
    reply.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    reply.extend(question(query));
    for address in addresses {
        // The name of the question, type A, class IN, not to be kept, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}
