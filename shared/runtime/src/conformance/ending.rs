//! The exit of a box, or the reason that it does not start, is reported correctly.

use std::time::{Duration, Instant};

use agentbox_contracts::command::MAX_ARGUMENT_BYTES;
use agentbox_contracts::logs::OutputStream;

use super::{Subject, Violation, check, eventually};
use crate::{BoxConnector, BoxPhase, ExitReason, FailureReason, Runtime, SecurityContext};

type Outcome = Result<(), Violation>;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn ended_box_keeps_exit_code_and_last_output<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("echo to-stdout; echo to-stderr >&2; exit 3");
    let end = s.run_to_end(&spec).await?;
    check(
        end.exit_code == 3 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    )?;
    let entries = s.first.last_output(&spec.id, 1_000).await?;
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.line.as_slice(), entry.stream))
        .collect();
    let sequences: Vec<u64> = entries.iter().map(|entry| entry.sequence).collect();
    let expected = [
        (&b"to-stdout"[..], OutputStream::Stdout),
        (b"to-stderr", OutputStream::Stderr),
    ];
    check(
        expected.iter().all(|line| found.contains(line)) && sequences == [1, 2],
        || format!("{entries:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn killed_box_keeps_its_unfinished_line<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("echo whole; printf 'unfinished €'; exec sleep 600");
    s.run(&spec).await?;
    eventually("the unfinished line is kept", || async {
        let entries = s.first.last_output(&spec.id, 1_000).await?;
        Ok((entries.len() == 2).then_some(()))
    })
    .await?;
    s.first.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;
    let entries = s.second.last_output(&spec.id, 1_000).await?;
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| (entry.sequence, entry.line.as_slice(), entry.partial))
        .collect();
    let expected = [
        (1, &b"whole"[..], false),
        (2, "unfinished €".as_bytes(), true),
    ];
    check(lines == expected, || format!("{entries:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn missing_command_exits_127<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.spec();
    spec.command = Some(vec!["no-such-program".to_owned()]);
    let end = s.run_to_end(&spec).await?;
    check(
        end.exit_code == 127 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_that_cannot_execute_boxd_does_not_report_an_exit_of_its_command<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("exit 1");
    // Longer than `execve(2)` accepts.
    let value = "x".repeat(MAX_ARGUMENT_BYTES);
    spec.env.insert("TOO_LONG".to_owned(), value);
    s.start(&spec).await?;
    // A cluster may report it as running for a moment.
    let phase = eventually("the box ends", || async {
        let observed = s.first.get(&spec.id).await?;
        let phase = observed.map(|observed| observed.phase);
        Ok(phase.filter(|phase| !matches!(phase, BoxPhase::Running { .. })))
    })
    .await?;
    let is_own_end = matches!(
        &phase,
        BoxPhase::Failed {
            reason: FailureReason::ImageInvalid,
            ..
        } | BoxPhase::Exited {
            reason: ExitReason::NodeLost,
            ..
        }
    );
    check(is_own_end, || format!("{phase:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn stop_with_grace_lets_the_command_exit<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done");
    s.run(&spec).await?;
    eventually("the command is up", || async {
        let entries = s.first.last_output(&spec.id, 1_000).await?;
        Ok(entries
            .iter()
            .any(|entry| entry.line == b"up")
            .then_some(()))
    })
    .await?;
    s.first.stop(&spec.id, Duration::from_secs(20)).await?;
    let end = s.end_of(&spec.id).await?;
    check(
        end.reason == ExitReason::Stopped && end.exit_code == 5,
        || format!("{end:?}"),
    )?;
    check(end.output.contains("bye"), || format!("{end:?}"))?;
    s.second.stop(&spec.id, Duration::from_secs(20)).await?;
    let again = s.end_of(&spec.id).await?;
    check(again.reason == ExitReason::Stopped, || format!("{again:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn stop_without_grace_kills_at_once<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("trap '' TERM; while :; do sleep 0.1; done");
    s.run(&spec).await?;
    let start = Instant::now();
    s.first.stop(&spec.id, Duration::ZERO).await?;
    let end = s.end_of(&spec.id).await?;
    check(
        end.reason == ExitReason::Stopped && end.exit_code == 137,
        || format!("{end:?}"),
    )?;
    // Less than a runtime's default grace period, also on a busy machine.
    check(start.elapsed() < Duration::from_secs(25), || {
        format!("took {:?}", start.elapsed())
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn missing_image_fails_by_name_within_seconds<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    "agentbox-conformance/no-such-image:1".clone_into(&mut spec.image);
    let start = Instant::now();
    let observed = s.start(&spec).await?;
    // Less than the deadline for a busy registry, also on a busy machine.
    check(start.elapsed() < Duration::from_secs(40), || {
        format!("took {:?}", start.elapsed())
    })?;
    let named = matches!(&observed.phase, BoxPhase::Failed { reason: FailureReason::ImagePull, message }
        if message.contains("agentbox-conformance/no-such-image:1"));
    check(named, || format!("{observed:?}"))?;
    let by_second = s.second.get(&spec.id).await?;
    check(by_second.as_ref() == Some(&observed), || {
        format!("the first replica observes {observed:?}, the second {by_second:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn root_image_fails_when_root_is_forbidden<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.isolation.security_context = Some(SecurityContext {
        run_as_non_root: Some(true),
        ..Default::default()
    });
    let phase = s.start(&spec).await?.phase;
    let invalid = matches!(
        &phase,
        BoxPhase::Failed {
            reason: FailureReason::ImageInvalid,
            ..
        }
    );
    check(invalid, || format!("{phase:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn requested_user_runs_the_command<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("echo $(id -u):$(id -g)");
    spec.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1234),
        run_as_group: Some(4321),
        run_as_non_root: Some(true),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    check(end.exit_code == 0 && end.output == "1234:4321", || {
        format!("{end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn read_only_root_refuses_writes<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let script = "touch /x && exit 1; echo still-printed; exit 0";
    let mut spec = s.script(script);
    spec.isolation.security_context = Some(SecurityContext {
        read_only_root_filesystem: Some(true),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    check(
        end.exit_code == 0 && end.output.contains("still-printed"),
        || format!("{end:?}"),
    )?;
    let writable = s.run_to_end(&s.script(script)).await?;
    check(writable.exit_code == 1, || {
        format!("without it: {writable:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn command_sees_user_variables_and_no_secrets<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("echo \"[$MY_VAR]\"; env");
    spec.env.insert("MY_VAR".to_owned(), "two words".to_owned());
    "a-very-secret-token".clone_into(&mut spec.boxd_token);
    let end = s.run_to_end(&spec).await?;
    check(end.output.contains("[two words]"), || format!("{end:?}"))?;
    check(!end.output.contains("a-very-secret-token"), || {
        format!("{end:?}")
    })
}
