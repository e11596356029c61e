//! Configures the boxd of a claimed box, for every driver.

use std::time::Duration;

use agentbox_box_protocol::client::{ConfigureError, configure, connect};
use agentbox_box_protocol::proto::ConfigureRequest;
use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::{claim, variables};
use agentbox_contracts::ErrorChain;

use crate::{BoxSpec, BoxStream, RuntimeError};

/// How many times the deadline of a connection boxd has for its answer. It has just proved that it is
/// alive, and may start the command: to give up the box then could run the command twice.
const ANSWER_DEADLINES: u32 = 5;

/// The user that a claim gives: a group needs a box that was created with it.
fn run_as_user(spec: &BoxSpec) -> Option<u32> {
    let context = spec.isolation.security_context.as_ref()?;
    context
        .run_as_user
        .filter(|_| context.run_as_group.is_none())
}

/// The configuration of a box for `spec`, as a cold box of this spec has it. `entrypoint` is the main
/// command of its image, for a spec with `use_entrypoint`.
pub(crate) fn request(spec: &BoxSpec, entrypoint: Option<&[String]>) -> ConfigureRequest {
    let of_image = entrypoint.filter(|_| spec.use_entrypoint);
    let command = spec.command.as_deref().or(of_image).unwrap_or_default();
    let variables = spec
        .env
        .iter()
        .filter(|(name, _)| !name.starts_with(variables::PREFIX))
        .map(|(name, value)| (name.clone(), value.clone()));
    ConfigureRequest {
        command: command.to_vec(),
        env: variables.collect(),
        owner: spec.owner.to_string(),
        run_as_user: run_as_user(spec),
    }
}

fn token_of(spec: &BoxSpec) -> Result<BoxToken, RuntimeError> {
    BoxToken::parse(&spec.boxd_token).map_err(|error| RuntimeError::NotClaimable(error.to_string()))
}

/// Identifies the claim of `spec`, as its boxd does. The network policy and the labels of an environment may
/// change later, and are no part of it. `entrypoint` as of [`configure_claimed`].
///
/// # Errors
/// [`RuntimeError::NotClaimable`] when the box's token is malformed.
pub fn claim_of(spec: &BoxSpec, entrypoint: Option<&[String]>) -> Result<String, RuntimeError> {
    Ok(claim::identify(
        &token_of(spec)?,
        &request(spec, entrypoint),
    ))
}

fn unanswered(within: Duration) -> RuntimeError {
    RuntimeError::Unreachable(format!("its boxd did not answer within {within:?}"))
}

/// Gives a warm boxd the owner, the user, the variables and the main command of `spec`. `connection` connects to
/// it; meanwhile `prepared` makes what must be in force before boxd has the command. `entrypoint` is the
/// main command of the image, if the driver knows it. `within` bounds the time until boxd is connected;
/// five times as long bounds that until it answers.
///
/// `recorded` reads the claim in boxd's termination file, and is used only if boxd does not answer: with the
/// same claim an earlier call has configured the box, whose command may have ended since, and boxd with it.
/// Another box would run the command twice.
///
/// # Errors
/// [`RuntimeError::NotClaimable`] when boxd refuses, or the command of the image is unknown or none;
/// [`RuntimeError::Unreachable`] when boxd does not answer within the deadline; the error of
/// `connection` or of `prepared`.
pub async fn configure_claimed<S: BoxStream>(
    connection: impl Future<Output = Result<S, RuntimeError>>,
    prepared: impl Future<Output = Result<(), RuntimeError>>,
    recorded: impl Future<Output = Option<String>>,
    spec: &BoxSpec,
    entrypoint: Option<&[String]>,
    within: Duration,
) -> Result<(), RuntimeError> {
    let configured = ask_boxd(connection, prepared, spec, entrypoint, within).await;
    let Err(RuntimeError::Unreachable(_)) = &configured else {
        return configured;
    };
    let claim = claim_of(spec, entrypoint)?;
    match recorded.await {
        Some(held) if held == claim => Ok(()),
        _ => configured,
    }
}

/// Configures the box if its boxd answers.
async fn ask_boxd<S: BoxStream>(
    connection: impl Future<Output = Result<S, RuntimeError>>,
    prepared: impl Future<Output = Result<(), RuntimeError>>,
    spec: &BoxSpec,
    entrypoint: Option<&[String]>,
    within: Duration,
) -> Result<(), RuntimeError> {
    if spec.use_entrypoint && spec.command.is_none() && entrypoint.is_none_or(<[String]>::is_empty)
    {
        return Err(RuntimeError::NotClaimable(
            "the command of its image is not known".to_owned(),
        ));
    }
    let token = token_of(spec)?;
    let connected = async {
        let connecting = async {
            let stream = connection.await?;
            connect(stream, &token)
                .await
                .map_err(|error| RuntimeError::Unreachable(ErrorChain(&error).to_string()))
        };
        let in_time = tokio::time::timeout(within, connecting).await;
        in_time.unwrap_or_else(|_| Err(unanswered(within)))
    };
    let (client, ()) = tokio::try_join!(connected, prepared)?;
    let configuring = configure(client, request(spec, entrypoint));
    let answer_within = within.saturating_mul(ANSWER_DEADLINES);
    match tokio::time::timeout(answer_within, configuring).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ConfigureError::Refused(message))) => Err(RuntimeError::NotClaimable(message)),
        Ok(Err(error @ ConfigureError::Unanswered(_))) => {
            Err(RuntimeError::Unreachable(error.to_string()))
        }
        Err(_) => Err(unanswered(answer_within)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use agentbox_contracts::ids::UserId;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::conformance::example_spec;
    use crate::{NetworkPolicy, SecurityContext};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn request_has_the_command_that_a_cold_box_runs() {
        let entrypoint = words(&["/entry", "cmd"]);
        for (command, use_entrypoint, expected) in [
            (None, false, words(&[])),
            (None, true, entrypoint.clone()),
            (Some(words(&["sh"])), false, words(&["sh"])),
            (Some(words(&[])), true, words(&[])),
        ] {
            let spec = example_spec(|spec| {
                spec.command.clone_from(&command);
                spec.use_entrypoint = use_entrypoint;
            });
            let request = request(&spec, Some(&entrypoint));
            assert_eq!(request.command, expected, "{command:?} {use_entrypoint}");
        }
    }

    #[test]
    fn request_has_the_owner_and_no_variable_of_boxd() {
        let spec = example_spec(|spec| {
            spec.env.insert("A".to_owned(), "1".to_owned());
            spec.env
                .insert(variables::TOKEN.to_owned(), "mine".to_owned());
        });
        let request = request(&spec, None);
        assert_eq!(request.owner, spec.owner.to_string());
        let expected = HashMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(request.env, expected);
    }

    #[test]
    fn request_has_the_user_unless_a_group_is_fixed_with_it() {
        for (user, group, expected) in [
            (None, None, None),
            (Some(1000), None, Some(1000)),
            (Some(1000), Some(1000), None),
        ] {
            let spec = example_spec(|spec| {
                spec.isolation.security_context = Some(SecurityContext {
                    run_as_user: user,
                    run_as_group: group,
                    ..Default::default()
                });
            });
            assert_eq!(request(&spec, None).run_as_user, expected);
        }
    }

    #[tokio::test]
    async fn boxd_that_does_not_answer_is_unreachable_after_the_deadline() {
        let spec = example_spec(|spec| "token".clone_into(&mut spec.boxd_token));
        let (ours, _theirs) = tokio::io::duplex(1 << 16);
        let within = Duration::from_millis(20);
        let ready = async { Ok(()) };
        let outcome = ask_boxd(async { Ok(ours) }, ready, &spec, None, within).await;
        assert!(
            matches!(outcome, Err(RuntimeError::Unreachable(_))),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn claim_that_boxd_has_recorded_succeeds_without_its_answer() {
        let spec = example_spec(|spec| "token".clone_into(&mut spec.boxd_token));
        let mut other = spec.clone();
        other.env.insert("A".to_owned(), "1".to_owned());
        let same = claim_of(&spec, None).unwrap();
        for (recorded, succeeds) in [
            (Some(same), true),
            (Some(claim_of(&other, None).unwrap()), false),
            (None, false),
        ] {
            let gone = async {
                let gone = RuntimeError::Unreachable("it has ended".to_owned());
                Err::<tokio::io::DuplexStream, _>(gone)
            };
            let ready = async { Ok(()) };
            let reading = std::future::ready(recorded.clone());
            let within = Duration::from_secs(10);
            let outcome = configure_claimed(gone, ready, reading, &spec, None, within).await;
            match outcome {
                Ok(()) => assert!(succeeds, "{recorded:?}"),
                Err(RuntimeError::Unreachable(_)) => assert!(!succeeds, "{recorded:?}"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn claim_is_identified_by_what_boxd_is_given() {
        let entrypoint = words(&["/entry", "cmd"]);
        let of = |spec: &BoxSpec| claim_of(spec, Some(&entrypoint)).unwrap();
        let spec = example_spec(|spec| "token".clone_into(&mut spec.boxd_token));
        let first = of(&spec);
        let changed = |change: &dyn Fn(&mut BoxSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            of(&spec)
        };
        assert_eq!(
            changed(&|spec| {
                spec.labels.insert("team".to_owned(), "ci".to_owned());
                spec.isolation.network_policy = Some(NetworkPolicy::default());
            }),
            first
        );
        for other in [
            changed(&|spec| spec.owner = UserId::random()),
            changed(&|spec| spec.command = Some(words(&["sh"]))),
            changed(&|spec| spec.use_entrypoint = true),
            changed(&|spec| drop(spec.env.insert("A".to_owned(), "1".to_owned()))),
            changed(&|spec| "other".clone_into(&mut spec.boxd_token)),
        ] {
            assert_ne!(other, first);
        }
    }

    #[tokio::test]
    async fn failed_preparation_is_reported_and_boxd_gets_nothing() {
        let spec = example_spec(|spec| "token".clone_into(&mut spec.boxd_token));
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let failed = async { Err(RuntimeError::Unavailable("no rules".to_owned())) };
        let within = Duration::from_secs(10);
        let outcome = ask_boxd(async { Ok(ours) }, failed, &spec, None, within).await;
        assert!(
            matches!(outcome, Err(RuntimeError::Unavailable(_))),
            "{outcome:?}"
        );
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        // At most the first message of TLS.
        let text = String::from_utf8_lossy(&sent);
        assert!(!text.contains(spec.owner.as_str()), "{text}");
    }

    #[tokio::test]
    async fn unknown_command_of_an_image_is_not_claimable() {
        let spec = example_spec(|spec| spec.use_entrypoint = true);
        let none: &[String] = &[];
        for entrypoint in [None, Some(none)] {
            let (ours, _theirs) = tokio::io::duplex(1);
            let within = Duration::from_secs(1);
            let ready = async { Ok(()) };
            let outcome = ask_boxd(async { Ok(ours) }, ready, &spec, entrypoint, within).await;
            assert!(
                matches!(outcome, Err(RuntimeError::NotClaimable(_))),
                "{outcome:?}"
            );
        }
    }
}
