//! The network policy of a claimed box.

use super::{Outcome, at, expect_answers, internal, request_script, server};
use crate::conformance::{Subject, check};
use crate::{BoxConnector, NetworkPolicy, Runtime, RuntimeError};

/// The client tries once, as soon as its command is started.
///
/// # Errors
/// When the driver does not meet the requirement.
pub async fn first_packet_of_a_claimed_box_obeys_its_policy<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let open = at(s.run(&server(s, internal())).await?, 8080);
    // The control: the server answers.
    expect_answers(s, &[open], Some(internal()), true).await?;
    for (policy, code) in [(internal(), 0), (NetworkPolicy::default(), 1)] {
        let mut client = s.script(&request_script(&[open], false));
        let needs_owner = policy.allow_cluster_internal;
        client.isolation.network_policy = Some(policy);
        let address = s.run_warm(&client).await?;
        let claimed = s.first.claim(&client, 1, address).await;
        if s.differences.matches_network_policy && needs_owner {
            check(
                matches!(claimed, Err(RuntimeError::NotClaimable(_))),
                || format!("{claimed:?}"),
            )?;
            continue;
        }
        claimed?;
        let end = s.end_of(&client.id).await?;
        check(end.exit_code == code, || format!("not {code}: {end:?}"))?;
    }
    Ok(())
}
