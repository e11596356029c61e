//! The rules are in force before a box's first instruction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::hostile::python;
use agentbox_runtime::conformance::{Subject, Violation, claim};
use agentbox_runtime_containerd::Driver;
use futures::future::try_join_all;
use tokio::net::UdpSocket;

use crate::elsewhere::own_address;
use crate::machine::{config, subject};

const BOXES: usize = 6;

/// Sends datagrams as fast as it can, from its first line on.
const KNOCK: &str = "
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
targets = [(t.rsplit(':', 1)[0], int(t.rsplit(':', 1)[1])) for t in os.environ['TARGETS'].split()]
end, tried = time.monotonic() + 2, 0
while time.monotonic() < end:
    for target in targets:
        tried += 1
        try: s.sendto(b'knock', target)
        except OSError: pass
print(tried)
";

/// Counts datagrams until one says that it is over.
const COUNT: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 9000))
print('counting', flush=True)
knocks = 0
while s.recv(100) != b'over': knocks += 1
print(f'knocks: {knocks}')
";

async fn knocked(s: &Subject<Driver>, at: &[SocketAddr]) -> Result<(), Violation> {
    let targets = at.iter().map(ToString::to_string).collect::<Vec<_>>();
    let knocking = (0..BOXES).map(|_| {
        let mut spec = python(s, KNOCK);
        spec.env.insert("TARGETS".to_owned(), targets.join(" "));
        // Nothing is allowed, not even the internet.
        spec.isolation.network_policy = Some(NetworkPolicy::default());
        async move { s.run_to_end(&spec).await }
    });
    for end in try_join_all(knocking).await? {
        let tried: u64 = end.output.trim().parse().unwrap_or(0);
        claim(end.exit_code == 0 && tried > 100, || format!("{end:?}"))?;
    }
    Ok(())
}

async fn nothing_gets_out(s: &Subject<Driver>) -> Result<(), Violation> {
    let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").await.unwrap());
    let port = socket.local_addr().unwrap().port();
    let received = Arc::new(AtomicU64::new(0));
    let counting = tokio::spawn({
        let (socket, received) = (socket.clone(), received.clone());
        async move {
            let mut buffer = [0; 100];
            while socket.recv_from(&mut buffer).await.is_ok() {
                received.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let mut neighbour = python(s, COUNT);
    neighbour.isolation.network_policy = Some(NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    });
    let beside = s.run(&neighbour).await?;
    agentbox_runtime::conformance::until("the neighbour counts", || async {
        use agentbox_runtime::BoxConnector as _;
        let output = s.first.last_output(&neighbour.id, 1_000).await?;
        Ok((!output.is_empty()).then_some(()))
    })
    .await?;
    let gateway = config().await.subnet.hosts().next().unwrap();
    let own = own_address().await;
    let beside = SocketAddr::new(beside.ip(), 9000);
    let machine = [gateway.into(), own].map(|address| SocketAddr::new(address, port));
    knocked(s, &[machine[0], machine[1], beside]).await?;

    // The control: both do count, and this is the first that arrives.
    for _ in 0..2 {
        socket.send_to(b"over", machine[1]).await.unwrap();
        socket.send_to(b"over", beside).await.unwrap();
    }
    let end = s.end_of(&neighbour.id).await?;
    let arrived = agentbox_runtime::conformance::until("the control arrives", || async {
        let count = received.load(Ordering::SeqCst);
        Ok((count >= 2).then_some(count))
    })
    .await?;
    counting.abort();
    claim(end.output.contains("knocks: 0"), || format!("{end:?}"))?;
    claim(arrived == 2, || {
        format!("{} datagrams reached the machine", arrived - 2)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn not_one_packet_of_a_box_that_may_nothing_gets_out() {
    let s = subject().await;
    let outcome = nothing_gets_out(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}
