use std::collections::BTreeMap;

use agentbox_contracts::identity::{Credential, Permission, Role};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId};
use agentbox_contracts::limits::UserLimits;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// When the lease of a test begins.
const BEGIN: Duration = Duration::from_secs(1_000);

fn secret(n: usize) -> Secret {
    Secret(n.to_string())
}

fn caller() -> Principal {
    Principal {
        user: UserId::random(),
        username: "ada".to_owned(),
        role: Role::User,
        credential: Credential::ApiKey {
            id: ApiKeyId::random(),
        },
        scope: Scope::Full,
        expires_at: None,
        management: false,
        limits: UserLimits::default(),
        profile: None,
    }
}

/// A memory whose lease begins at [`BEGIN`], with revision 1.
fn leased() -> ConfirmedTokens {
    let tokens = ConfirmedTokens::default();
    tokens.renew(1, BEGIN, BEGIN);
    tokens
}

/// Asks auth for the token at `now`, which confirms it.
fn confirm(tokens: &ConfirmedTokens, token: &Secret, caller: &Principal, now: Duration) {
    let asked = tokens.get(token, now).asked;
    tokens.insert(token, &Ok(caller.clone()), asked);
}

fn is_known(tokens: &ConfirmedTokens, token: &Secret, now: Duration) -> bool {
    tokens.get(token, now).caller.is_some()
}

#[test]
fn caller_is_known_only_while_the_lease_lasts() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    let before = BEGIN + CREDENTIAL_LEASE - Duration::from_nanos(1);
    assert_eq!(tokens.get(&token, before).caller, Some(caller.clone()));
    let end = BEGIN + CREDENTIAL_LEASE;
    let after = tokens.get(&token, end);
    assert_eq!(after.caller, None);
    assert_eq!(after.subject, Some(Subject::User(caller.user)));
    assert!(!is_known(&tokens, &secret(2), BEGIN));
}

#[test]
fn caller_confirmed_without_a_lease_is_not_known_with_the_first_one() {
    let (tokens, caller, token) = (ConfirmedTokens::default(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    assert!(!is_known(&tokens, &token, BEGIN));
    tokens.renew(1, BEGIN, BEGIN);
    assert!(!is_known(&tokens, &token, BEGIN));
}

#[test]
fn renewal_keeps_callers_of_the_same_revision_only() {
    for (revision, kept) in [(1, true), (2, false), (0, false)] {
        let (tokens, caller, token) = (leased(), caller(), secret(1));
        confirm(&tokens, &token, &caller, BEGIN);
        let renewed = BEGIN + SECOND;
        tokens.renew(revision, renewed, renewed);
        let later = BEGIN + 2 * SECOND;
        assert_eq!(is_known(&tokens, &token, later), kept, "{revision}");
    }
}

#[test]
fn gap_between_two_leases_forgets() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    let late = BEGIN + CREDENTIAL_LEASE;
    tokens.renew(1, late, late);
    assert!(!is_known(&tokens, &token, late));
    // The same if the answer was late.
    let tokens = leased();
    confirm(&tokens, &token, &caller, BEGIN);
    tokens.renew(1, BEGIN + SECOND, late);
    assert!(!is_known(&tokens, &token, late));
}

#[test]
fn lease_lasts_from_the_moment_at_which_auth_was_asked() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    let asked_at = BEGIN + SECOND;
    tokens.renew(1, asked_at, asked_at + SECOND / 4);
    confirm(&tokens, &token, &caller, asked_at + SECOND);
    let end = asked_at + CREDENTIAL_LEASE;
    assert!(is_known(&tokens, &token, end - Duration::from_nanos(1)));
    assert!(!is_known(&tokens, &token, end));
}

#[test]
fn answer_to_a_question_from_before_a_clearing_is_not_remembered() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    let asked = tokens.get(&token, BEGIN).asked;
    tokens.forget(2);
    tokens.insert(&token, &Ok(caller.clone()), asked);
    assert!(!is_known(&tokens, &token, BEGIN));
    // A later answer is, and an earlier one does not replace it.
    confirm(&tokens, &token, &caller, BEGIN);
    tokens.insert(&token, &Ok(caller.clone()), asked);
    assert!(is_known(&tokens, &token, BEGIN));
    tokens.forget(3);
    assert!(!is_known(&tokens, &token, BEGIN));
}

#[test]
fn message_of_the_known_revision_forgets_nothing() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    tokens.forget(1);
    assert!(is_known(&tokens, &token, BEGIN));
    for revision in [2, 1] {
        tokens.forget(revision);
        assert!(!is_known(&tokens, &token, BEGIN), "{revision}");
        confirm(&tokens, &token, &caller, BEGIN);
        tokens.forget(revision);
        assert!(is_known(&tokens, &token, BEGIN), "{revision}");
    }
}

#[test]
fn renewal_that_was_in_flight_during_a_clearing_brings_nothing_back() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    tokens.forget(2);
    tokens.renew(1, BEGIN + SECOND, BEGIN + SECOND);
    assert!(!is_known(&tokens, &token, BEGIN + SECOND));
    confirm(&tokens, &token, &caller, BEGIN + SECOND);
    // The next one shows the revision of the message.
    tokens.renew(2, BEGIN + SECOND, BEGIN + SECOND);
    assert!(!is_known(&tokens, &token, BEGIN + SECOND));
}

#[test]
fn caller_is_confirmed_again_after_its_age() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    let mut now = BEGIN;
    while now < BEGIN + MAX_AGE {
        assert!(is_known(&tokens, &token, now), "{now:?}");
        now += SECOND;
        tokens.renew(1, now, now);
    }
    assert!(!is_known(&tokens, &token, now));
}

#[test]
fn credential_that_ends_soon_or_lists_many_environments_is_not_remembered() {
    let ending = |seconds| Principal {
        expires_at: Some(Utc::now() + TimeDelta::seconds(seconds)),
        ..caller()
    };
    let scoped = |environments| Principal {
        scope: Scope::Environments(BTreeMap::from_iter(
            (0..environments).map(|_| (EnvironmentId::random(), Permission::Read)),
        )),
        ..caller()
    };
    for (caller, kept) in [
        (ending(60), false),
        (ending(600), true),
        (scoped(MAX_ENVIRONMENTS), true),
        (scoped(MAX_ENVIRONMENTS + 1), false),
    ] {
        let (tokens, token) = (leased(), secret(1));
        confirm(&tokens, &token, &caller, BEGIN);
        assert_eq!(is_known(&tokens, &token, BEGIN), kept, "{caller:?}");
    }
}

#[test]
fn released_lease_is_not_used() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    confirm(&tokens, &token, &caller, BEGIN);
    tokens.release();
    assert!(!is_known(&tokens, &token, BEGIN));
}

#[test]
fn without_a_clock_there_is_no_lease() {
    let (tokens, caller, token) = (ConfirmedTokens::default(), caller(), secret(1));
    tokens.renew(1, Duration::MAX, Duration::MAX);
    confirm(&tokens, &token, &caller, Duration::MAX);
    for now in [Duration::ZERO, BEGIN, Duration::MAX] {
        assert!(!is_known(&tokens, &token, now), "{now:?}");
    }
}

#[test]
fn refused_token_is_known_as_rejected_and_an_outage_as_nothing() {
    let (tokens, caller, token) = (leased(), caller(), secret(1));
    let asked = tokens.get(&token, BEGIN).asked;
    let down = Error::new(ErrorCode::Unavailable, "down");
    tokens.insert(&token, &Err(down), asked);
    assert_eq!(tokens.get(&token, BEGIN).subject, None);
    tokens.insert(&token, &Ok(caller), asked);
    let refused = Error::new(ErrorCode::Unauthorized, "revoked");
    tokens.insert(&token, &Err(refused), asked);
    let known = tokens.get(&token, BEGIN);
    assert_eq!(known.subject, Some(Subject::Rejected));
    assert_eq!(known.caller, None);
}

#[test]
fn full_memory_drops_the_oldest_tokens() {
    let (tokens, caller) = (leased(), caller());
    for n in 0..3 * GENERATION {
        confirm(&tokens, &secret(n), &caller, BEGIN);
    }
    assert!(!is_known(&tokens, &secret(0), BEGIN));
    assert!(is_known(&tokens, &secret(3 * GENERATION - 1), BEGIN));
    let state = tokens.state.lock();
    assert!(state.current.len() + state.previous.len() <= 2 * GENERATION);
}
