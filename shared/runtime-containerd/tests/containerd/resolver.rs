//! Names resolve by the configured resolvers on port 53 where the internet is allowed; other boxes
//! cannot reach a resolver.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::hostile::python;
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_containerd::Driver;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;

use crate::machine::{config, subject_of};
use crate::remote_machine::RemoteMachine;

/// The resolver's answer for every name.
const ANSWER: [u8; 4] = [192, 0, 2, 77];

/// Resolves a name whose first label carries data out of the box.
const RESOLVE: &str = "
import socket

def resolve():
    return socket.gethostbyname(os.environ['LABEL'] + '.example.test')

def directly(port):
    def run():
        query = b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'
        for label in [os.environ['LABEL'] + str(port), 'direct']:
            query += bytes([len(label)]) + label.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(5)
            s.connect((os.environ['RESOLVER'], port))
            s.send(query + b'\\0\\0\\1\\0\\1')
            return s.recv(512)[-4:] == bytes([192, 0, 2, 77])
    return run

attempt('name', resolve)
attempt('port 53', directly(53))
attempt('another port', directly(int(os.environ['OTHER'])))
";

/// A resolver on this machine that records its queries.
struct Resolver {
    queries: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Resolver {
    async fn serve(at: SocketAddr) -> (Self, SocketAddr) {
        let socket = UdpSocket::bind(at).await.unwrap();
        let address = socket.local_addr().unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let recorded = queries.clone();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                recorded.lock().await.push(first_label(query));
                let _ = socket.send_to(&answer(query), from).await;
            }
        });
        (Self { queries, serving }, address)
    }

    async fn was_asked_for(&self, text: &str) -> bool {
        let queries = self.queries.lock().await;
        queries.iter().any(|label| label.contains(text))
    }
}

/// The question starts after 12 bytes, a label with its length.
fn first_label(query: &[u8]) -> String {
    let length = usize::from(*query.get(12).unwrap_or(&0));
    String::from_utf8_lossy(query.get(13..13 + length).unwrap_or_default()).into_owned()
}

/// The same question with one answer (RFC 1035), or none when it is not for an A record.
fn answer(query: &[u8]) -> Vec<u8> {
    // Name, type and class; what follows (EDNS) is left out.
    let name = query.iter().skip(12).take_while(|byte| **byte != 0).count();
    let question = query.get(12..12 + name + 5).unwrap_or_default();
    let for_address = question.get(name + 1..name + 3) == Some(&[0, 1]);
    let mut reply = query.get(..2).unwrap_or_default().to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(for_address), 0, 0, 0, 0]);
    reply.extend(question);
    if for_address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(ANSWER);
    }
    reply
}

/// Runs the boxes of [`ask`] with a resolver, and removes them.
async fn check_resolution() -> Result<(), Violation> {
    // An address of this machine that no other test and no other resolver uses.
    let remote = RemoteMachine::new("r", &[]).await;
    let IpAddr::V4(far) = remote.address else {
        panic!("an IPv4 address")
    };
    let near = IpAddr::V4((u32::from(far) - 1).into());
    let (resolver, _) = Resolver::serve(SocketAddr::new(near, 53)).await;
    let (other, other_address) = Resolver::serve(SocketAddr::new(near, 0)).await;
    let mut with_resolver = config().await;
    with_resolver.dns_servers = vec![near];
    let s = subject_of(&with_resolver);
    let outcome = ask(&s, near, other_address.port(), &resolver, &other).await;
    s.clean().await?;
    outcome
}

/// Checks which policies let a box resolve names.
async fn ask(
    s: &Subject<Driver>,
    at: IpAddr,
    other_port: u16,
    resolver: &Resolver,
    other: &Resolver,
) -> Result<(), Violation> {
    let internet = NetworkPolicy {
        allow_internet: true,
        ..Default::default()
    };
    let all_but_internet = NetworkPolicy {
        allowed_egress_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
        allow_cluster_internal: true,
        ..Default::default()
    };
    for (label, policy, resolves) in [
        ("default", None, true),
        ("internet", Some(internet), true),
        ("nothing", Some(NetworkPolicy::default()), false),
        ("networks", Some(all_but_internet), false),
    ] {
        let mut spec = python(s, RESOLVE);
        let variables = [
            ("LABEL", label.to_owned()),
            ("RESOLVER", at.to_string()),
            ("OTHER", other_port.to_string()),
        ];
        spec.env
            .extend(variables.map(|(name, value)| (name.to_owned(), value)));
        spec.isolation.network_policy = policy;
        let end = s.run_to_end(&spec).await?;
        check(end.exit_code == 0, || format!("{label}: {end:?}"))?;
        let prints = |expected: &str| end.output.lines().any(|line| line == expected);
        check(prints("name: ALLOWED '192.0.2.77'") == resolves, || {
            format!("{label}: {end:?}")
        })?;
        check(prints("port 53: ALLOWED True") == resolves, || {
            format!("{label}: {end:?}")
        })?;
        check(!end.output.contains("another port: ALLOWED"), || {
            format!("{label}: {end:?}")
        })?;
        let asked = resolver.was_asked_for(label).await;
        check(asked == resolves, || {
            format!("{label}: the resolver was asked: {asked}")
        })?;
        check(!other.was_asked_for(label).await, || {
            format!("{label}: another port was reached")
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_resolve_with_internet_access_only() {
    check_resolution().await.unwrap();
}
