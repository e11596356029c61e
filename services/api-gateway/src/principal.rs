//! Identifies the caller of a request, and counts the request against the caller's limit.
//!
//! * I1. Auth decides on every request; nothing here makes a credential valid.
//! * I2. A caller is counted under its user, so that several keys share one limit. A request
//!   without a valid credential is counted under the client's address.
//! * I3. A JWT with an invalid signature is refused here and costs auth nothing.

pub(crate) mod credential;
pub(crate) mod signature;
pub(crate) mod token_subject;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{Authenticate, AuthenticateRequest, Secret};
use agentbox_contracts::identity::{Principal, TicketAction};
use agentbox_contracts::ids::EnvironmentId;

use crate::authorize::unauthorized;
use crate::edge::client_address::ClientAddress;
use crate::rate_limit::{Category, RateLimitStatus, Subject};
use crate::state::{AUTH_DEADLINE, Gateway};
use credential::Credentials;
use signature::Verdict;
use token_subject::CachedSubject;

/// The parts of a request that identify its caller.
pub(crate) struct AuthAttempt {
    /// The credentials that were presented, or why they cannot be read.
    pub credentials: Result<Option<Credentials>, Error>,
    pub address: ClientAddress,
    pub category: Category,
}

/// Counts the request and asks auth for its caller. Both happen at the same time where the
/// counter is known before auth has answered.
pub(crate) async fn identify(
    gateway: &Gateway,
    attempt: AuthAttempt,
) -> (RateLimitStatus, Result<Option<Principal>, Error>) {
    let by_address = Subject::address(attempt.address);
    let count = async |subject: &Subject| gateway.limiter.count(subject, attempt.category).await;
    let credentials = match attempt.credentials {
        Ok(Some(credentials)) => credentials,
        Ok(None) => return (count(&by_address).await, Ok(None)),
        Err(error) => return (count(&by_address).await, Err(error)),
    };
    let token = match credentials {
        Credentials::Bearer(token) => token,
        Credentials::Ticket {
            ticket,
            environment,
            action,
        } => {
            let outcome = redeem(gateway, ticket, environment, action).await;
            return (
                count(&subject(&outcome, by_address)).await,
                outcome.map(Some),
            );
        }
    };
    let known = match gateway.token_subjects.get(&token) {
        Some(CachedSubject::User(user)) => Some(Subject::user(&user)),
        Some(CachedSubject::Rejected) => Some(by_address.clone()),
        None => match gateway.signatures.verify(&gateway.bus, &token).await {
            Verdict::Signed(user) => Some(Subject::user(&user)),
            Verdict::Forged => {
                let error = unauthorized("the token is not valid");
                return (count(&by_address).await, Err(error));
            }
            Verdict::Unknown => None,
        },
    };
    let (rate_limit, outcome) = match known {
        Some(known) => tokio::join!(count(&known), authenticate(gateway, &token)),
        None => {
            let outcome = authenticate(gateway, &token).await;
            (count(&subject(&outcome, by_address)).await, outcome)
        }
    };
    match &outcome {
        Ok(principal) => gateway
            .token_subjects
            .insert(&token, CachedSubject::User(principal.user.clone())),
        Err(error) if error.code == ErrorCode::Unauthorized => {
            gateway
                .token_subjects
                .insert(&token, CachedSubject::Rejected);
        }
        Err(_) => {}
    }
    (rate_limit, outcome.map(Some))
}

fn subject(outcome: &Result<Principal, Error>, otherwise: Subject) -> Subject {
    outcome
        .as_ref()
        .map_or(otherwise, |principal| Subject::user(&principal.user))
}

async fn ask(gateway: &Gateway, request: AuthenticateRequest) -> Result<Principal, Error> {
    gateway
        .bus
        .call::<Authenticate>(&request, AUTH_DEADLINE)
        .await
}

async fn authenticate(gateway: &Gateway, token: &Secret) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Bearer {
        token: token.clone(),
    };
    ask(gateway, request).await
}

/// Exchanges a ticket for its caller; a ticket is good once.
async fn redeem(
    gateway: &Gateway,
    ticket: Secret,
    environment: EnvironmentId,
    action: TicketAction,
) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Ticket {
        ticket,
        environment,
        action,
    };
    ask(gateway, request).await
}

/// Asks auth for the current state of a stream's caller.
///
/// # Errors
/// [`ErrorCode::Unauthorized`] when its credential is no longer valid; any other error means
/// that auth could not decide.
pub(crate) async fn revalidate(
    gateway: &Gateway,
    principal: &Principal,
) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Revalidate {
        user: principal.user.clone(),
        credential: principal.credential.clone(),
    };
    ask(gateway, request).await
}
