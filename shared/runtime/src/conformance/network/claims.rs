//! The network policy of a claimed box.

use std::net::SocketAddr;

use super::{Outcome, at, expect_answers, internal, request_script, server};
use crate::conformance::{End, Subject, Violation, check};
use crate::{BoxConnector, NetworkPolicy, Runtime, RuntimeError};

/// How many clients try to reach a server that their policy opens.
const ATTEMPTS: usize = 3;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn first_packet_of_a_claimed_box_obeys_its_policy<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let open = at(s.run(&server(s, internal())).await?, 8080);
    // The control: the server answers.
    expect_answers(s, &[open], Some(internal()), true).await?;
    let closed = request_once(s, open, NetworkPolicy::default()).await?;
    let is_refused = closed.as_ref().is_some_and(|end| end.exit_code == 1);
    check(is_refused, || format!("not refused: {closed:?}"))?;
    for attempt in 1..=ATTEMPTS {
        match request_once(s, open, internal()).await? {
            // On a machine that stalls the answer may be too late for one client.
            Some(end) if end.exit_code != 0 && attempt < ATTEMPTS => {}
            Some(end) => return check(end.exit_code == 0, || format!("not answered: {end:?}")),
            None => break,
        }
    }
    Ok(())
}

/// The end of a claimed box that tries once to reach the server, as soon as its command is started. `None`:
/// the driver leaves a claim with this policy to `ensure`.
async fn request_once<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    server: SocketAddr,
    policy: NetworkPolicy,
) -> Result<Option<End>, Violation> {
    let mut client = s.script(&request_script(&[server], false));
    let needs_owner = policy.allow_cluster_internal;
    client.isolation.network_policy = Some(policy);
    let address = s.run_warm(&client).await?;
    let claimed = s.first.claim(&client, 1, address).await;
    if s.differences.matches_network_policy && needs_owner {
        check(
            matches!(claimed, Err(RuntimeError::NotClaimable(_))),
            || format!("{claimed:?}"),
        )?;
        return Ok(None);
    }
    claimed?;
    s.end_of(&client.id).await.map(Some)
}
