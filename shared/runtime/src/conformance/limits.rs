//! Limits are enforced, and reaching one is reported.

use agentbox_box_protocol::proto::StartCommand;
use agentbox_contracts::units::Bytes;
use futures::StreamExt as _;

use super::session::{Session, exec};
use super::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxPhase, ExitReason, Runtime};

type Outcome = Result<(), Violation>;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn memory_over_limit_is_oom_killed<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("exec tail /dev/zero");
    spec.resources.memory = Bytes(32 << 20);
    let end = s.run_to_end(&spec).await?;
    check(
        end.reason == ExitReason::OomKilled && end.exit_code == 137,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn memory_bomb_ends_only_its_own_processes<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let neighbour = s.script("trap 'exit 7' TERM; while :; do sleep 0.1; done");
    s.run(&neighbour).await?;
    let bomb = s.script(
        "p=''; for i in 1 2 3 4 5 6 7 8; do tail /dev/zero & p=\"$p $!\"; done; \
         for i in $p; do wait $i; echo ended $?; done; exit 5",
    );
    let end = s.run_to_end(&bomb).await?;
    // The kernel may also kill the shell that waits for them.
    let survived = end.exit_code == 5 && end.output.matches("ended 137").count() == 8;
    check(survived || end.reason == ExitReason::OomKilled, || {
        format!("{end:?}")
    })?;
    s.first
        .stop(&neighbour.id, std::time::Duration::from_secs(20))
        .await?;
    let end = s.end_of(&neighbour.id).await?;
    check(end.exit_code == 7, || {
        format!("the other box did not keep running: {end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn shared_memory_counts_as_memory<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("dd if=/dev/zero of=/dev/shm/big bs=1M count=60; echo ended $?");
    spec.resources.memory = Bytes(32 << 20);
    let end = s.run_to_end(&spec).await?;
    check(
        end.output.contains("ended 137") || end.reason == ExitReason::OomKilled,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn storage_over_limit_is_refused_or_evicted_for_every_replica<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    if s.differences.measures_storage {
        storage_over_limit_is_evicted(s).await
    } else {
        write_over_storage_limit_is_refused(s).await
    }
}

async fn write_over_storage_limit_is_refused<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script(
        "dd if=/dev/zero of=/big bs=1M count=48 2>&1; rm /big; echo again > /small; cat /small; \
         exit 3",
    );
    spec.resources.storage = Bytes(16 << 20);
    let end = s.run_to_end(&spec).await?;
    check(
        end.exit_code == 3 && end.reason == ExitReason::Exited,
        || format!("the box did not run on: {end:?}"),
    )?;
    for expected in ["No space left on device", "again"] {
        check(end.output.contains(expected), || {
            format!("no `{expected}`: {end:?}")
        })?;
    }
    Ok(())
}

async fn storage_over_limit_is_evicted<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("printf begun; dd if=/dev/zero of=/big bs=1M count=48; sleep 600");
    spec.resources.storage = Bytes(16 << 20);
    let mut changes = s.first.watch().await?;
    s.start(&spec).await?;
    // A watching driver enforces the limit.
    let watching = async { while changes.next().await.is_some() {} };
    let end = tokio::select! {
        end = s.end_of(&spec.id) => end?,
        () = watching => return Err(Violation("the watch ended".to_owned())),
    };
    check(end.reason == ExitReason::Evicted, || format!("{end:?}"))?;
    check(end.message.contains("16Mi"), || format!("{end:?}"))?;
    if s.differences.eviction_deletes_output {
        eventually("the output of the evicted box is gone", || async {
            let left = s.second.last_output(&spec.id, 1_000).await?;
            Ok(left.is_empty().then_some(()))
        })
        .await?;
    } else {
        check(end.output.contains("begun"), || {
            format!("its output is gone: {end:?}")
        })?;
    }
    let again = s.second.ensure(&spec, 1).await?;
    let kept = matches!(
        again.phase,
        BoxPhase::Exited {
            reason: ExitReason::Evicted,
            ..
        }
    );
    check(kept, || format!("{again:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn processes_over_limit_are_refused<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let limit = s.differences.cluster_pids_limit.unwrap_or(32);
    // ash exits at the first failed fork; without a limit it would start three times as many.
    let mut spec = s.script(&format!(
        "i=0; while [ $i -lt {} ]; do sleep 600 & i=$((i+1)); echo started $i; done; exit 0",
        3 * limit
    ));
    spec.resources.pids = limit;
    let end = s.run_to_end(&spec).await?;
    let started = end.output.matches("started").count();
    check(end.exit_code != 0, || format!("all were started: {end:?}"))?;
    // boxd's own threads count too.
    let limit = limit as usize;
    check((limit / 4..limit).contains(&started), || {
        format!("{started} were started: {end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn system_v_objects_of_a_full_box_leave_others_theirs<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    const SCRIPT: &str = include_str!("limits/system_v.py");
    let python = || {
        let mut spec = s.spec();
        spec.image.clone_from(&s.python);
        spec.resources.memory = Bytes(256 << 20);
        spec
    };
    let (full, other) = (python(), python());
    s.run(&full).await?;
    s.run(&other).await?;
    let command = StartCommand {
        command: ["python3", "-c", SCRIPT, "all"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let mut filling = Session::start(s, &full, command).await?;
    filling.read_until("done").await?;
    let (output, code) = exec(s, &other, &["python3", "-c", SCRIPT, "one"]).await?;
    check(code == 0, || {
        format!("another box got none: {code} {output}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_at_process_limit_refuses_commands_and_keeps_running<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.resources.pids = s.differences.cluster_pids_limit.unwrap_or(32);
    s.run(&spec).await?;
    // The subshell exits at its first failed fork, and the last `sleep &` takes its place.
    let script =
        "(while :; do sleep 600 & done) 2>/dev/null; sleep 600 & echo full; exec sleep 600";
    let command = StartCommand {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let mut filling = Session::start(s, &spec, command).await?;
    filling.read_until("full").await?;
    for _ in 0..2 {
        let (_, code) = exec(s, &spec, &["true"]).await?;
        check(code == 126, || format!("it was not refused: {code}"))?;
    }
    let phase = s.first.get(&spec.id).await?.map(|observed| observed.phase);
    let is_running = matches!(phase, Some(BoxPhase::Running { .. }));
    check(is_running, || format!("{phase:?}"))
}
