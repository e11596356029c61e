//! The lifecycle of boxes with repeated, concurrent and interrupted calls.

use std::time::{Duration, Instant};

use agentbox_box_protocol::client::connect;
use agentbox_box_protocol::token::BoxToken;
use futures::StreamExt as _;

use super::boxd::failed;
use super::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxPhase, Runtime, RuntimeError};

type Outcome = Result<(), Violation>;

/// The number of interruptions, spread evenly over the time that a creation takes.
const INTERRUPTIONS: u32 = 8;

async fn count<D: Runtime>(driver: &D, spec: &crate::BoxSpec) -> Result<usize, Violation> {
    Ok(driver
        .list()
        .await?
        .iter()
        .filter(|observed| observed.id == spec.id)
        .count())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn ensure_twice_makes_one_box<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let first = s.first.ensure(&spec, 1).await?;
    let again = s.second.ensure(&spec, 1).await?;
    check(first == again, || format!("{first:?} became {again:?}"))?;
    let count = count(&s.first, &spec).await?;
    check(count == 1, || format!("{count} boxes"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn concurrent_ensures_make_one_box<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    let (one, other) = tokio::join!(s.first.ensure(&spec, 1), s.second.ensure(&spec, 1));
    let (one, other) = (one?, other?);
    check(matches!(one.phase, BoxPhase::Running { .. }), || {
        format!("{one:?}")
    })?;
    check(one == other, || format!("{one:?} and {other:?}"))?;
    let count = count(&s.first, &spec).await?;
    check(count == 1, || format!("{count} boxes"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn interrupted_ensure_is_completed_by_the_next<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let begun = Instant::now();
    s.run(&spec).await?;
    let duration = begun.elapsed();
    for part in 0..INTERRUPTIONS {
        let cut = duration * part / INTERRUPTIONS;
        // The next call comes at once, or after the cluster has abandoned the interrupted call.
        for pause in [Duration::ZERO, Duration::from_millis(300)] {
            let spec = s.spec();
            // Whether this call completed does not matter: the next one continues.
            let _ = tokio::time::timeout(cut, s.first.ensure(&spec, 1)).await;
            tokio::time::sleep(pause).await;
            let observed = s.second.ensure(&spec, 1).await?;
            check(matches!(observed.phase, BoxPhase::Running { .. }), || {
                format!("cut after {cut:?}, {pause:?} ago: {observed:?}")
            })?;
            let count = count(&s.first, &spec).await?;
            check(count == 1, || format!("cut after {cut:?}: {count} boxes"))?;
            s.second.remove(&spec.id).await?;
        }
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn older_generation_is_fenced<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    let newer = s.first.ensure(&spec, 7).await?;
    let refused = s.second.ensure(&spec, 6).await;
    let is_fenced = matches!(refused, Err(RuntimeError::Fenced { given: 6, held: 7 }));
    check(is_fenced, || format!("generation 6 after 7: {refused:?}"))?;
    let after = s.first.get(&spec.id).await?;
    check(after.as_ref() == Some(&newer), || {
        format!("{newer:?} became {after:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn newer_generation_adopts_running_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let before = s.first.ensure(&spec, 1).await?;
    let after = s.second.ensure(&spec, 2).await?;
    check(after.generation == 2, || format!("{after:?}"))?;
    check(before.phase == after.phase, || {
        format!("the running box was recreated: {before:?} became {after:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn repeated_remove_leaves_nothing<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let (one, other) = tokio::join!(s.first.remove(&spec.id), s.second.remove(&spec.id));
    one?;
    other?;
    s.first.remove(&spec.id).await?;
    let left = s.first.get(&spec.id).await?;
    check(left.is_none(), || format!("{left:?}"))?;
    let count = count(&s.second, &spec).await?;
    check(count == 0, || format!("{count} boxes after remove"))?;
    let output = s.first.last_output(&spec.id, 1_000).await?;
    check(output.is_empty(), || format!("{output:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn unknown_box_stop_and_remove_succeed<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let id = s.spec().id;
    s.first.stop(&id, Duration::from_secs(5)).await?;
    s.first.remove(&id).await?;
    let found = s.first.get(&id).await?;
    check(found.is_none(), || format!("{found:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_change_is_reported_by_watch<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut changes = s.second.watch().await?;
    let first = changes.next().await;
    check(
        first.as_ref().is_some_and(|change| change.id.is_none()),
        || format!("the first change is {first:?}"),
    )?;
    let spec = s.script("exit 0");
    s.start(&spec).await?;
    for step in ["created", "removed"] {
        let reported = async {
            while let Some(change) = changes.next().await {
                if change.id.is_none() || change.id.as_ref() == Some(&spec.id) {
                    return true;
                }
            }
            false
        };
        let reported = tokio::time::timeout(super::TIMEOUT, reported).await;
        check(reported.is_ok_and(|reported| reported), || {
            format!("no change was reported when the box was {step}")
        })?;
        if step == "created" {
            s.end_of(&spec.id).await?;
            s.first.remove(&spec.id).await?;
        }
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn boxd_is_reachable_until_the_box_ends<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let address = s.run(&spec).await?;
    let token = BoxToken::parse(&spec.boxd_token).map_err(failed)?;
    let stream = s.second.connect(&spec.id, address).await?;
    drop(connect(stream, &token).await.map_err(failed)?);
    s.first.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;
    eventually("a stopped box cannot be reached", || async {
        let is_unreachable = match s.second.connect(&spec.id, address).await {
            Ok(stream) => connect(stream, &token).await.is_err(),
            Err(error) => matches!(error, RuntimeError::Unreachable(_)),
        };
        Ok(is_unreachable.then_some(()))
    })
    .await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn unknown_runtime_class_fails_preflight<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    s.first.preflight(&spec).await?;
    spec.isolation.runtime_class = Some("no-such-class".to_owned());
    let field = s
        .first
        .preflight(&spec)
        .await
        .err()
        .map(|error| error.field);
    check(field == Some("isolation.runtime_class"), || {
        format!("{field:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn unmatched_node_selector_fails_preflight<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.node_selector
        .insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    s.first.preflight(&spec).await?;
    spec.node_selector
        .insert("kubernetes.io/os".to_owned(), "plan9".to_owned());
    let field = s
        .first
        .preflight(&spec)
        .await
        .err()
        .map(|error| error.field);
    check(field == Some("node_selector"), || format!("{field:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn capacity_excludes_reserved_resources<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let address = s.run(&spec).await?;
    let capacity = s.first.capacity().await?;
    check(!capacity.version.is_empty() && capacity.nodes >= 1, || {
        format!("{capacity:?}")
    })?;
    // Other tests' boxes exist too, so that at least this box's memory is reserved.
    let reserved = capacity
        .total_memory
        .0
        .saturating_sub(capacity.available_memory.0);
    check(reserved >= spec.resources.memory.0, || {
        format!("{capacity:?} with {address}")
    })
}
