//! Boxes come and go, whoever asks, however often, and whoever is killed meanwhile.

use std::time::{Duration, Instant};

use futures::StreamExt as _;

use super::{Subject, Violation, claim, until};
use crate::{BoxConnector, BoxPhase, Runtime, RuntimeError};

type Outcome = Result<(), Violation>;

/// How many times the making of a box is cut off, evenly over the time that it takes.
const PARTS: u32 = 8;

async fn count<D: Runtime>(driver: &D, spec: &crate::BoxSpec) -> Result<usize, Violation> {
    Ok(driver
        .list()
        .await?
        .iter()
        .filter(|observed| observed.id == spec.id)
        .count())
}

/// # Errors
/// When it does not hold.
pub async fn ensure_twice_is_one_box<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let first = s.first.ensure(&spec, 1).await?;
    let again = s.second.ensure(&spec, 1).await?;
    claim(first == again, || format!("{first:?} became {again:?}"))?;
    let count = count(&s.first, &spec).await?;
    claim(count == 1, || format!("{count} boxes"))
}

/// # Errors
/// When it does not hold.
pub async fn two_replicas_at_once_make_one_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let (one, other) = tokio::join!(s.first.ensure(&spec, 1), s.second.ensure(&spec, 1));
    let (one, other) = (one?, other?);
    claim(matches!(one.phase, BoxPhase::Running { .. }), || {
        format!("{one:?}")
    })?;
    claim(one == other, || format!("{one:?} and {other:?}"))?;
    let count = count(&s.first, &spec).await?;
    claim(count == 1, || format!("{count} boxes"))
}

/// # Errors
/// When it does not hold.
pub async fn an_ensure_cut_off_anywhere_is_finished_by_the_next<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let begun = Instant::now();
    s.run(&spec).await?;
    let whole = begun.elapsed();
    for part in 0..PARTS {
        let cut = whole * part / PARTS;
        // At once, and when the cluster has given up what nobody waits for.
        for pause in [Duration::ZERO, Duration::from_millis(300)] {
            let spec = s.spec();
            // Whether it was done by then or not: the next one finds out.
            let _ = tokio::time::timeout(cut, s.first.ensure(&spec, 1)).await;
            tokio::time::sleep(pause).await;
            let observed = s.second.ensure(&spec, 1).await?;
            claim(matches!(observed.phase, BoxPhase::Running { .. }), || {
                format!("cut after {cut:?}, {pause:?} ago: {observed:?}")
            })?;
            let count = count(&s.first, &spec).await?;
            claim(count == 1, || format!("cut after {cut:?}: {count} boxes"))?;
            s.second.remove(&spec.id).await?;
        }
    }
    Ok(())
}

/// # Errors
/// When it does not hold.
pub async fn a_slow_replica_is_fenced<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    let newer = s.first.ensure(&spec, 7).await?;
    let refused = s.second.ensure(&spec, 6).await;
    let is_fenced = matches!(refused, Err(RuntimeError::Fenced { given: 6, held: 7 }));
    claim(is_fenced, || format!("generation 6 after 7: {refused:?}"))?;
    let after = s.first.get(&spec.id).await?;
    claim(after.as_ref() == Some(&newer), || {
        format!("{newer:?} became {after:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn a_newer_generation_adopts_a_running_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let before = s.first.ensure(&spec, 1).await?;
    let after = s.second.ensure(&spec, 2).await?;
    claim(after.generation == 2, || format!("{after:?}"))?;
    claim(before.phase == after.phase, || {
        format!("what runs was made again: {before:?} became {after:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn remove_leaves_nothing_and_may_be_repeated<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let (one, other) = tokio::join!(s.first.remove(&spec.id), s.second.remove(&spec.id));
    one?;
    other?;
    s.first.remove(&spec.id).await?;
    let left = s.first.get(&spec.id).await?;
    claim(left.is_none(), || format!("{left:?}"))?;
    let count = count(&s.second, &spec).await?;
    claim(count == 0, || format!("{count} boxes after remove"))?;
    let output = s.first.last_output(&spec.id, 1_000).await?;
    claim(output.is_empty(), || format!("{output:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn an_unknown_box_is_nothing_to_stop_or_remove<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let id = s.spec().id;
    s.first.stop(&id, Duration::from_secs(5)).await?;
    s.first.remove(&id).await?;
    let found = s.first.get(&id).await?;
    claim(found.is_none(), || format!("{found:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn a_change_is_told<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut changes = s.second.watch().await?;
    let first = changes.next().await;
    claim(
        first.as_ref().is_some_and(|change| change.id.is_none()),
        || format!("the first change is {first:?}"),
    )?;
    let spec = s.script("exit 0");
    s.start(&spec).await?;
    for what in ["came", "went"] {
        let told = async {
            while let Some(change) = changes.next().await {
                if change.id.is_none() || change.id.as_ref() == Some(&spec.id) {
                    return true;
                }
            }
            false
        };
        let told = tokio::time::timeout(super::PATIENCE, told).await;
        claim(told.is_ok_and(|told| told), || {
            format!("nobody told that the box {what}")
        })?;
        if what == "came" {
            s.end_of(&spec.id).await?;
            s.first.remove(&spec.id).await?;
        }
    }
    Ok(())
}

/// # Errors
/// When it does not hold.
pub async fn boxd_is_reached_and_an_end_is_unreachable<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let address = s.run(&spec).await?;
    drop(s.second.connect(&spec.id, address).await?);
    s.first.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;
    until("a stopped box cannot be reached", || async {
        let outcome = s.second.connect(&spec.id, address).await;
        Ok(matches!(outcome, Err(RuntimeError::Unreachable(_))).then_some(()))
    })
    .await
}

/// # Errors
/// When it does not hold.
pub async fn a_runtime_class_that_is_not_there_is_refused_before<D: Runtime + BoxConnector>(
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
    claim(field == Some("isolation.runtime_class"), || {
        format!("{field:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn a_node_selector_that_nothing_matches_is_refused_before<D: Runtime + BoxConnector>(
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
    claim(field == Some("node_selector"), || format!("{field:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn capacity_shrinks_by_what_is_promised<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    let address = s.run(&spec).await?;
    let capacity = s.first.capacity().await?;
    claim(!capacity.version.is_empty() && capacity.nodes >= 1, || {
        format!("{capacity:?}")
    })?;
    // Other boxes come and go meanwhile: the least that is promised is this one's part.
    let promised = capacity
        .total_memory
        .0
        .saturating_sub(capacity.available_memory.0);
    claim(promised >= spec.resources.memory.0, || {
        format!("{capacity:?} with {address}")
    })
}
