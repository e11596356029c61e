//! Limits are enforced, and reaching one is reported.

use agentbox_box_protocol::proto::{Empty, Resize, StartCommand, run_input::Input};
use agentbox_contracts::units::Bytes;
use futures::StreamExt as _;
use futures::future::try_join;

use super::boxd::{RunningCommand, exec};
use super::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxPhase, ExitReason, Runtime};

type Outcome = Result<(), Violation>;

fn command(words: &[&str]) -> StartCommand {
    StartCommand {
        command: words.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

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
    full_box_leaves_another_its_objects(s, SCRIPT, ("all", "one"), &[]).await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn kernel_objects_of_a_full_box_leave_others_theirs<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    const SCRIPT: &str = include_str!("limits/kernel_objects.py");
    let kinds = [
        "inotify instances",
        "asynchronous I/O",
        "signals",
        "message queues",
        "pipes",
    ];
    let kinds = match s.differences.shares_user_ids {
        // The kernel counts the memory of pipes for the user id alone.
        true => &kinds[..4],
        false => &kinds[..],
    };
    full_box_leaves_another_its_objects(s, SCRIPT, ("all", "some"), kinds).await
}

/// Runs a Python script in a box, which takes what the kernel gives, prints `done` and waits; then in another
/// box, where it takes a little and must succeed.
async fn full_box_leaves_another_its_objects<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    script: &str,
    (all, some): (&str, &str),
    arguments: &[&str],
) -> Outcome {
    let python = || {
        let mut spec = s.spec();
        spec.image.clone_from(&s.python);
        spec.resources.memory = Bytes(256 << 20);
        spec
    };
    let take = |amount| [&["python3", "-c", script, amount][..], arguments].concat();
    let (full, other) = (python(), python());
    s.run(&full).await?;
    s.run(&other).await?;
    let mut filling = RunningCommand::start(s, &full, command(&take(all))).await?;
    filling.read_until("done").await?;
    let (output, code) = exec(s, &other, &take(some)).await?;
    check(code == 0, || {
        format!("another box got too few: {code} {output}")
    })
}

/// Commands that take all of one resource of their box, print `full` and stay: the resource, the command,
/// whether it has a terminal, and the exit codes of another command meanwhile.
const BOMBS: [(&str, [&str; 3], bool, &[i32]); 4] = [
    ("processes", ["sh", "-c", FORKS], false, &[126]),
    (
        "processes, in a terminal",
        ["sh", "-c", FORKS],
        true,
        &[126],
    ),
    // The kernel may choose the other command too, or leave it no memory to start.
    ("memory", ["sh", "-c", ALLOCATES], false, &[0, 126, 137]),
    ("descriptors", ["python3", "-c", OPENS], false, &[0]),
];
/// The subshell exits at its first failed fork, and the last `sleep &` takes its place.
const FORKS: &str =
    "(while :; do sleep 600 & done) 2>/dev/null; sleep 600 & echo full; exec sleep 600";
const ALLOCATES: &str = "tail /dev/zero; echo full; while :; do tail /dev/zero; done";
const OPENS: &str = include_str!("limits/descriptors.py");

/// # Errors
/// When the driver does not meet the requirement.
pub async fn bomb_ends_neither_the_box_nor_later_commands<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let main_command = ["sleep", "600"].map(str::to_owned).to_vec();
    let (idle, busy) = (
        bombs_in_a_box(s, None),
        bombs_in_a_box(s, Some(main_command)),
    );
    try_join(idle, busy).await.map(drop)
}

async fn bombs_in_a_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    main_command: Option<Vec<String>>,
) -> Outcome {
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    spec.command = main_command;
    spec.resources.memory = Bytes(128 << 20);
    spec.resources.pids = s.differences.cluster_pids_limit.unwrap_or(32);
    s.run(&spec).await?;
    for (resource, words, has_terminal, codes) in BOMBS {
        let (_, code) = exec(s, &spec, &["true"]).await?;
        check(code == 0, || format!("before {resource}: {code}"))?;
        let start = StartCommand {
            tty: has_terminal.then_some(Resize { cols: 80, rows: 24 }),
            stdin: has_terminal,
            ..command(&words)
        };
        let mut bomb = RunningCommand::start(s, &spec, start).await?;
        bomb.read_until("full").await?;
        for _ in 0..2 {
            let (_, code) = exec(s, &spec, &["true"]).await?;
            check(codes.contains(&code), || format!("{resource}: {code}"))?;
        }
        let phase = s.first.get(&spec.id).await?.map(|observed| observed.phase);
        let is_running = matches!(phase, Some(BoxPhase::Running { .. }));
        check(is_running, || format!("{resource}: {phase:?}"))?;
        bomb.send(Input::Kill(Empty {}))?;
        let (_, code) = bomb.end().await?;
        check(code == 137, || format!("{resource}: it ended with {code}"))?;
        // boxd reaps the processes of the bomb one after the other.
        eventually("a command after the bomb succeeds", || async {
            let (_, code) = exec(s, &spec, &["true"]).await?;
            Ok((code == 0).then_some(()))
        })
        .await?;
    }
    let phase = s.first.get(&spec.id).await?.map(|observed| observed.phase);
    let is_running = matches!(phase, Some(BoxPhase::Running { .. }));
    check(is_running, || format!("{phase:?}"))
}
