//! What became of an environment whose box was lost under a command. The scheduler knows,
//! if not always at once.

use std::time::Duration;

use agentbox_contracts::environment::{Environment, StatusReason};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use tokio::time::{Instant, sleep};

use crate::lookup;
use crate::state::Gateway;

/// How long the scheduler may take to notice why a box was lost, on a busy node too: a kubelet
/// looks once a second, and the last output is stored first.
const REASON_PATIENCE: Duration = Duration::from_secs(8);
const REASON_PAUSE: Duration = Duration::from_millis(100);

/// The environment with why it ended, as soon as that is known; `None` when it is not.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
async fn wait_for_reason(
    gateway: &Gateway,
    id: &EnvironmentId,
) -> Result<Option<Environment>, Error> {
    let give_up = Instant::now() + REASON_PATIENCE;
    loop {
        let environment = lookup::record(gateway, id.clone()).await?;
        if environment.status_reason.is_some() {
            return Ok(Some(environment));
        }
        if Instant::now() >= give_up {
            return Ok(None);
        }
        sleep(REASON_PAUSE).await;
    }
}

/// A box that was lost, with why. Any other error stays as it is.
pub(crate) async fn with_reason(gateway: &Gateway, id: &EnvironmentId, error: Error) -> Error {
    if error.code != ErrorCode::BoxLost {
        return error;
    }
    match wait_for_reason(gateway, id).await {
        Ok(Some(environment)) => describe(&environment, &error),
        _ => error,
    }
}

/// As [`with_reason`], and told apart: the environment that is gone, that was to end, that
/// lost its box, and that runs on, only not reached.
pub(crate) async fn classify(gateway: &Gateway, id: &EnvironmentId, error: Error) -> Error {
    if error.code != ErrorCode::BoxLost {
        return error;
    }
    classified(error, wait_for_reason(gateway, id).await)
}

fn classified(error: Error, fate: Result<Option<Environment>, Error>) -> Error {
    match fate {
        Ok(Some(environment)) => {
            let told = describe(&environment, &error);
            if was_expected(&environment) {
                Error::new(ErrorCode::NotRunning, told.message)
            } else {
                told
            }
        }
        Ok(None) => Error::new(ErrorCode::Unavailable, error.message),
        Err(not_found) if not_found.code == ErrorCode::NotFound => not_found,
        Err(_) => error,
    }
}

/// Somebody wanted it, or the main command was through; one that idles has no end of its
/// own.
fn was_expected(environment: &Environment) -> bool {
    match environment.status_reason {
        Some(StatusReason::Deleted | StatusReason::Expired) => true,
        Some(StatusReason::Exited) => environment.request.command.is_some(),
        _ => false,
    }
}

fn describe(environment: &Environment, error: &Error) -> Error {
    let status = environment.status.as_str();
    let reason = environment
        .status_reason
        .map(|reason| format!(", {}", reason.as_str()))
        .unwrap_or_default();
    let detail = environment
        .status_message
        .as_ref()
        .map(|message| format!(": {message}"))
        .unwrap_or_default();
    Error::new(
        error.code,
        format!(
            "{}; the environment is {status}{reason}{detail}",
            error.message
        ),
    )
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::{EnvironmentRequest, ResourceRequest, Status};
    use agentbox_contracts::ids::UserId;
    use chrono::Utc;

    use super::*;

    fn ended(reason: StatusReason, command: Option<&str>) -> Environment {
        let text = String::new;
        Environment {
            id: EnvironmentId::random(),
            owner: UserId::random(),
            owner_username: text(),
            cluster: text(),
            request: EnvironmentRequest {
                name: text(),
                image: text(),
                resources: ResourceRequest {
                    cpu: text(),
                    memory: text(),
                    storage: text(),
                },
                timeout_s: 1,
                env: [].into(),
                command: command.map(|word| vec![word.to_owned()]),
                labels: [].into(),
                node_selector: [].into(),
                tolerations: Vec::new(),
                isolation: None,
            },
            status: Status::Terminating,
            status_reason: Some(reason),
            status_message: None,
            created_at: Utc::now(),
            started_at: None,
            ended_at: None,
            expires_at: Utc::now(),
            exit_code: None,
            endpoint: text(),
            namespace: text(),
            address: None,
            generation: 1,
        }
    }

    #[test]
    fn an_end_that_was_wanted_is_told_from_a_loss_and_from_what_is_gone() {
        let lost = || Error::new(ErrorCode::BoxLost, "lost");
        for (reason, command, code) in [
            (StatusReason::Deleted, None, ErrorCode::NotRunning),
            (StatusReason::Expired, Some("sh"), ErrorCode::NotRunning),
            (StatusReason::Exited, Some("sh"), ErrorCode::NotRunning),
            (StatusReason::Exited, None, ErrorCode::BoxLost),
            (StatusReason::OomKilled, Some("sh"), ErrorCode::BoxLost),
            (StatusReason::NodeLost, None, ErrorCode::BoxLost),
        ] {
            let error = classified(lost(), Ok(Some(ended(reason, command))));
            assert_eq!(error.code, code, "{reason:?}");
            let expected = format!("lost; the environment is terminating, {}", reason.as_str());
            assert_eq!(error.message, expected);
        }
        let gone = Error::not_found("environment");
        assert_eq!(classified(lost(), Err(gone.clone())), gone);
        let down = Error::new(ErrorCode::Unavailable, "down");
        assert_eq!(classified(lost(), Err(down)), lost());
        assert_eq!(classified(lost(), Ok(None)).code, ErrorCode::Unavailable);
    }
}
