//! How a box ends, or why it never starts, is told as it was.

use std::time::{Duration, Instant};

use super::{Subject, Violation, claim};
use crate::{BoxConnector, BoxPhase, ExitReason, FailureReason, Runtime, SecurityContext};

type Outcome = Result<(), Violation>;

/// # Errors
/// When it does not hold.
pub async fn an_exit_code_and_the_last_output_outlive_the_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&s.script("echo to-stdout; echo to-stderr >&2; exit 3"))
        .await?;
    claim(
        end.exit_code == 3 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    )?;
    claim(
        end.output.contains("to-stdout") && end.output.contains("to-stderr"),
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn a_command_that_does_not_exist_exits_127<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.command = Some(vec!["no-such-program".to_owned()]);
    let end = s.run_to_end(&spec).await?;
    claim(
        end.exit_code == 127 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn stop_lets_the_command_end_and_tells_so<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done");
    s.run(&spec).await?;
    super::until("the command is up", || async {
        let entries = s.first.last_output(&spec.id, 1_000).await?;
        Ok(entries
            .iter()
            .any(|entry| entry.line == b"up")
            .then_some(()))
    })
    .await?;
    s.first.stop(&spec.id, Duration::from_secs(20)).await?;
    let end = s.end_of(&spec.id).await?;
    claim(
        end.reason == ExitReason::Stopped && end.exit_code == 5,
        || format!("{end:?}"),
    )?;
    claim(end.output.contains("bye"), || format!("{end:?}"))?;
    s.second.stop(&spec.id, Duration::from_secs(20)).await?;
    let again = s.end_of(&spec.id).await?;
    claim(again.reason == ExitReason::Stopped, || format!("{again:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn stop_without_grace_kills_at_once<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.script("trap '' TERM; while :; do sleep 0.1; done");
    s.run(&spec).await?;
    let start = Instant::now();
    s.first.stop(&spec.id, Duration::ZERO).await?;
    let end = s.end_of(&spec.id).await?;
    claim(
        end.reason == ExitReason::Stopped && end.exit_code == 137,
        || format!("{end:?}"),
    )?;
    // Less than what a runtime gives who asks for nothing, also on a busy machine.
    claim(start.elapsed() < Duration::from_secs(25), || {
        format!("took {:?}", start.elapsed())
    })
}

/// # Errors
/// When it does not hold.
pub async fn an_image_that_does_not_exist_fails_by_name_within_seconds<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    "agentbox-conformance/no-such-image:1".clone_into(&mut spec.image);
    let start = Instant::now();
    let observed = s.start(&spec).await?;
    // Less than the patience with a registry that is busy, also on a busy machine.
    claim(start.elapsed() < Duration::from_secs(40), || {
        format!("took {:?}", start.elapsed())
    })?;
    let named = matches!(&observed.phase, BoxPhase::Failed { reason: FailureReason::ImagePull, message }
        if message.contains("agentbox-conformance/no-such-image:1"));
    claim(named, || format!("{observed:?}"))?;
    let elsewhere = s.second.get(&spec.id).await?;
    claim(elsewhere.as_ref() == Some(&observed), || {
        format!("{observed:?} but {elsewhere:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn an_image_for_root_fails_where_root_is_forbidden<D: Runtime + BoxConnector>(
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
    claim(invalid, || format!("{phase:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn the_asked_user_runs_the_command<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.script("echo $(id -u):$(id -g)");
    spec.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1234),
        run_as_group: Some(4321),
        run_as_non_root: Some(true),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    claim(end.exit_code == 0 && end.output == "1234:4321", || {
        format!("{end:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn a_read_only_root_is_read_only<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let script = "touch /x && exit 1; echo still-said; exit 0";
    let mut spec = s.script(script);
    spec.isolation.security_context = Some(SecurityContext {
        read_only_root_filesystem: Some(true),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    claim(
        end.exit_code == 0 && end.output.contains("still-said"),
        || format!("{end:?}"),
    )?;
    let writable = s.run_to_end(&s.script(script)).await?;
    claim(writable.exit_code == 1, || {
        format!("without it: {writable:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn environment_reaches_the_command_and_our_secrets_do_not<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("echo \"[$MY_VAR]\"; env");
    spec.env.insert("MY_VAR".to_owned(), "two words".to_owned());
    "a-very-secret-token".clone_into(&mut spec.boxd_token);
    let end = s.run_to_end(&spec).await?;
    claim(end.output.contains("[two words]"), || format!("{end:?}"))?;
    claim(!end.output.contains("a-very-secret-token"), || {
        format!("{end:?}")
    })
}
