//! Limits hold, and what happens at each is told.

use agentbox_contracts::units::Bytes;
use futures::StreamExt as _;

use super::{Subject, Violation, claim, until};
use crate::{BoxConnector, ExitReason, Runtime};

type Outcome = Result<(), Violation>;

/// # Errors
/// When it does not hold.
pub async fn more_memory_than_the_limit_is_an_oom_kill<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("exec tail /dev/zero");
    spec.resources.memory = Bytes(32 << 20);
    let end = s.run_to_end(&spec).await?;
    claim(
        end.reason == ExitReason::OomKilled && end.exit_code == 137,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn a_memory_bomb_of_many_processes_ends_them_and_not_its_neighbours<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let neighbour = s.script("trap 'exit 7' TERM; while :; do sleep 0.1; done");
    s.run(&neighbour).await?;
    let bomb = s.script(
        "p=''; for i in 1 2 3 4 5 6 7 8; do tail /dev/zero & p=\"$p $!\"; done; \
         for i in $p; do wait $i; echo ended $?; done; exit 5",
    );
    let end = s.run_to_end(&bomb).await?;
    // The kernel may choose the shell that waits for them, too.
    let survived = end.exit_code == 5 && end.output.matches("ended 137").count() == 8;
    claim(survived || end.reason == ExitReason::OomKilled, || {
        format!("{end:?}")
    })?;
    s.first
        .stop(&neighbour.id, std::time::Duration::from_secs(20))
        .await?;
    let end = s.end_of(&neighbour.id).await?;
    claim(end.exit_code == 7, || {
        format!("its neighbour did not live on: {end:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn shared_memory_counts_as_memory<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("dd if=/dev/zero of=/dev/shm/big bs=1M count=60; echo ended $?");
    spec.resources.memory = Bytes(32 << 20);
    let end = s.run_to_end(&spec).await?;
    claim(
        end.output.contains("ended 137") || end.reason == ExitReason::OomKilled,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn more_storage_than_the_limit_is_an_eviction_for_every_replica<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("echo begun; dd if=/dev/zero of=/big bs=1M count=48; sleep 600");
    spec.resources.storage = Bytes(16 << 20);
    let mut changes = s.first.watch().await?;
    s.start(&spec).await?;
    // Whoever watches enforces.
    let watching = async { while changes.next().await.is_some() {} };
    let end = tokio::select! {
        end = s.end_of(&spec.id) => end?,
        () = watching => return Err(Violation("the watch ended".to_owned())),
    };
    claim(end.reason == ExitReason::Evicted, || format!("{end:?}"))?;
    claim(end.message.contains("16Mi"), || format!("{end:?}"))?;
    if s.differences.eviction_takes_the_output {
        until("its output goes", || async {
            let left = s.second.last_output(&spec.id, 1_000).await?;
            Ok(left.is_empty().then_some(()))
        })
        .await?;
    } else {
        claim(end.output.contains("begun"), || {
            format!("its output is gone: {end:?}")
        })?;
    }
    let again = s.second.ensure(&spec, 1).await?;
    let kept = matches!(
        again.phase,
        crate::BoxPhase::Exited {
            reason: ExitReason::Evicted,
            ..
        }
    );
    claim(kept, || format!("{again:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn no_more_processes_than_the_limit_exist<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let limit = s.differences.pids_of_every_box.unwrap_or(32);
    // ash gives up at the first fork that fails; the rest would be thrice the limit.
    let mut spec = s.script(&format!(
        "i=0; while [ $i -lt {} ]; do sleep 600 & i=$((i+1)); echo started $i; done; exit 0",
        3 * limit
    ));
    spec.resources.pids = limit;
    let end = s.run_to_end(&spec).await?;
    let started = end.output.matches("started").count();
    claim(end.exit_code != 0, || format!("all were started: {end:?}"))?;
    // boxd's own threads count too.
    let limit = limit as usize;
    claim((limit / 4..limit).contains(&started), || {
        format!("{started} were started: {end:?}")
    })
}
