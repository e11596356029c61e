//! Boxes without network access that send datagrams from their first instruction on. A driver's
//! tests count the datagrams that arrive.

use std::net::SocketAddr;

use futures::future::try_join_all;

use crate::conformance::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxSpec, NetworkPolicy, Runtime};

const BOXES: usize = 6;
/// Where a [`datagram_counter`] box listens.
pub const COUNTED_PORT: u16 = 9000;

const SEND: &str = "
import os, socket, time
targets = []
for target in os.environ['TARGETS'].split():
    host, port = target.rsplit(':', 1)
    family, _, _, _, address = socket.getaddrinfo(host, int(port))[0]
    targets.append((socket.socket(family, socket.SOCK_DGRAM), address))
seconds, pause = os.environ['SECONDS'], float(os.environ['PAUSE'])
begun, tried = time.monotonic(), 0
while seconds == 'all' or tried <= 1000 or time.monotonic() < begun + float(seconds):
    for s, address in targets:
        tried += 1
        try: s.sendto(b'probe', address)
        except OSError: pass
        if tried % 1000 == 0: print(tried, flush=True)
    if pause: time.sleep(pause)
print(tried)
";

const COUNT: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 9000))
print('counting', flush=True)
datagrams = 0
while s.recv(100) != b'over': datagrams += 1
print(f'datagrams: {datagrams}')
";

pub(super) fn python<D: Runtime + BoxConnector>(s: &Subject<D>, script: &str) -> BoxSpec {
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    spec.command = Some(["python3", "-c", script].map(str::to_owned).to_vec());
    spec
}

/// A box that sends datagrams to each `host:port`, and prints the number of attempts.
fn datagram_sender<D: Runtime + BoxConnector>(s: &Subject<D>, at: &[String]) -> BoxSpec {
    let mut spec = python(s, SEND);
    for (name, value) in [
        ("TARGETS", at.join(" ").as_str()),
        ("SECONDS", "2"),
        ("PAUSE", "0"),
    ] {
        spec.env.insert(name.to_owned(), value.to_owned());
    }
    spec.isolation.network_policy = Some(NetworkPolicy::default());
    spec
}

/// A box that sends datagrams until it is removed, with pauses that spare the processor.
pub fn endless_sender<D: Runtime + BoxConnector>(s: &Subject<D>, at: &[String]) -> BoxSpec {
    let mut spec = datagram_sender(s, at);
    for (name, value) in [("SECONDS", "all"), ("PAUSE", "0.005")] {
        spec.env.insert(name.to_owned(), value.to_owned());
    }
    spec
}

/// The number of attempts that an [`endless_sender`] has printed.
///
/// # Errors
/// When its output cannot be read.
pub async fn sent_datagrams<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
) -> Result<u64, Violation> {
    let lines = s.second.last_output(&spec.id, 1_000).await?;
    let last = lines
        .last()
        .map(|entry| String::from_utf8_lossy(&entry.line).into_owned());
    Ok(last.and_then(|line| line.trim().parse().ok()).unwrap_or(0))
}

/// Runs several boxes at once that send for two seconds, and longer on a machine that stalls.
///
/// # Errors
/// When a box sent too few.
pub async fn send_datagrams<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    at: &[String],
) -> Result<(), Violation> {
    let senders = (0..BOXES).map(|_| {
        let spec = datagram_sender(s, at);
        async move { s.run_to_end(&spec).await }
    });
    for end in try_join_all(senders).await? {
        let last = end.output.lines().last().unwrap_or_default();
        let tried: u64 = last.trim().parse().unwrap_or(0);
        check(end.exit_code == 0 && tried > 100, || format!("{end:?}"))?;
    }
    Ok(())
}

/// Starts a box that other boxes may reach and that counts datagrams until it receives `over`.
///
/// # Errors
/// When it does not start to count.
pub async fn datagram_counter<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Result<(BoxSpec, SocketAddr), Violation> {
    let mut spec = python(s, COUNT);
    spec.isolation.network_policy = Some(NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    });
    let address = s.run(&spec).await?;
    eventually("the neighbour box counts", || async {
        let output = s.first.last_output(&spec.id, 1_000).await?;
        Ok((!output.is_empty()).then_some(()))
    })
    .await?;
    Ok((spec, SocketAddr::new(address.ip(), COUNTED_PORT)))
}
