//! A changed policy of a running box, with a connection that is open and with new ones.

use super::probe::python;
use super::{Outcome, internal};
use crate::conformance::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxSpec, NetworkPolicy, PolicyApplication, Runtime, RuntimeError};

const ECHO: &str = "
import socket, threading
def serve(connection):
    while True:
        data = connection.recv(100)
        if not data: return
        connection.sendall(data)
listener = socket.create_server(('0.0.0.0', 8080))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Prints for each round whether the open connection works, and whether a new one does.
const ROUNDS: &str = "
import os, socket, time
def connect():
    s = socket.create_connection((os.environ['HOST'], 8080), 1)
    s.settimeout(1)
    return s
def works(make):
    try:
        s = make()
        s.sendall(b'x')
        return 'open' if s.recv(100) else 'closed'
    except OSError: return 'closed'
kept = None
while not kept:
    try: kept = connect()
    except OSError: time.sleep(0.1)
rounds = 0
while True:
    rounds += 1
    print(rounds, works(lambda: kept), works(connect), flush=True)
    time.sleep(0.1)
";

/// The number of the last round, and its outcome.
async fn last_round<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
) -> Result<(u64, String), Violation> {
    let lines = s.first.last_output(&spec.id, 1_000).await?;
    let line = lines
        .last()
        .map(|entry| String::from_utf8_lossy(&entry.line).into_owned())
        .unwrap_or_default();
    let (number, outcome) = line.trim().split_once(' ').unwrap_or_default();
    Ok((number.parse().unwrap_or(0), outcome.to_owned()))
}

/// Waits for a round after `after` with one of these outcomes.
async fn wait_for_round<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
    after: u64,
    outcomes: &[&str],
) -> Outcome {
    let expected = format!("a round with {outcomes:?}");
    eventually(&expected, || async {
        let (number, outcome) = last_round(s, spec).await?;
        Ok((number > after && outcomes.contains(&outcome.as_str())).then_some(()))
    })
    .await
}

/// Changes the policy of `changed`, and waits until `client` has no connection any more.
async fn close<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    changed: &BoxSpec,
    client: &BoxSpec,
    generation: i64,
) -> Outcome {
    let mut closed = changed.clone();
    closed.isolation.network_policy = Some(NetworkPolicy::default());
    let applied = s.second.apply_network_policy(&closed, generation).await?;
    let (last, _) = last_round(s, client).await?;
    if s.differences.keeps_open_connections {
        return wait_for_round(s, client, last, &["open closed", "closed closed"]).await;
    }
    check(applied == PolicyApplication::Confirmed, || {
        format!("the policy is {applied:?}")
    })?;
    // The round after the last printed one may have begun before the change.
    let first = eventually("a round after the change", || async {
        let (number, outcome) = last_round(s, client).await?;
        Ok((number >= last + 2).then_some(outcome))
    })
    .await?;
    check(first == "closed closed", || {
        format!("after the change: {first}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn changed_policy_applies_to_new_and_to_open_connections<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut server = python(s, ECHO);
    server.isolation.network_policy = Some(internal());
    let address = s.run(&server).await?;
    let mut client = python(s, ROUNDS);
    client
        .env
        .insert("HOST".to_owned(), address.ip().to_string());
    client.isolation.network_policy = Some(internal());
    s.run(&client).await?;
    wait_for_round(s, &client, 0, &["open open"]).await?;
    close(s, &client, &client, 2).await?;
    // The server's policy was open all the time. The client's is opened again.
    s.first.apply_network_policy(&client, 3).await?;
    let (last, _) = last_round(s, &client).await?;
    wait_for_round(s, &client, last, &["open open", "closed open"]).await?;
    close(s, &server, &client, 2).await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn policy_of_an_older_generation_is_fenced<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    s.first.apply_network_policy(&spec, 3).await?;
    s.second.apply_network_policy(&spec, 3).await?;
    let older = s.second.apply_network_policy(&spec, 2).await;
    check(
        matches!(older, Err(RuntimeError::Fenced { given: 2, held: 3 })),
        || format!("an older generation: {older:?}"),
    )?;
    let ensured = s.second.ensure(&spec, 2).await;
    check(
        matches!(ensured, Err(RuntimeError::Fenced { given: 2, held: 3 })),
        || format!("ensure of an older generation: {ensured:?}"),
    )
}
