//! Identifies the caller of a request, and counts the request against the caller's limit.
//!
//! * I1. Auth decides whether a credential is valid. Its answer is repeated only while the gateway holds a
//!   lease, which every change of a credential waits for ([`confirmed`], [`lease`]). A ticket, and the
//!   credential of an open stream, are asked for each time.
//! * I2. A caller is counted under its user, so that several keys share one limit. A request
//!   without a valid credential is counted under the client's address.
//! * I3. A JWT with an invalid signature is refused here and costs auth nothing.

pub(crate) mod confirmed;
pub(crate) mod credential;
pub(crate) mod lease;
pub(crate) mod signature;

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::Principal;
use agentbox_contracts::identity::rpc::{Authenticate, AuthenticateRequest, Secret};

use crate::authorize::unauthorized;
use crate::edge::client_address::ClientAddress;
use crate::metrics;
use crate::rate_limit::{CallerKey, Category, RateLimitStatus};
use crate::state::{AUTH_DEADLINE, Gateway};
use confirmed::{Known, Subject};
use credential::{Credentials, TicketUse};
use lease::boot_time;
use signature::Verdict;

/// The parts of a request that identify its caller.
pub(crate) struct AuthAttempt {
    /// The credentials that were presented, or why they cannot be read.
    pub credentials: Result<Option<Credentials>, Error>,
    pub address: ClientAddress,
    pub category: Category,
}

/// Counts the request and authenticates its caller. Both happen at the same time if the counter is
/// known before auth has answered.
pub(crate) async fn identify(
    gateway: &Gateway,
    attempt: AuthAttempt,
) -> (RateLimitStatus, Result<Option<Principal>, Error>) {
    let by_address = CallerKey::address(attempt.address);
    let count = async |key: &CallerKey| gateway.limiter.count(key, attempt.category).await;
    let credentials = match attempt.credentials {
        Ok(Some(credentials)) => credentials,
        Ok(None) => return (count(&by_address).await, Ok(None)),
        Err(error) => return (count(&by_address).await, Err(error)),
    };
    let token = match credentials {
        Credentials::Bearer(token) => token,
        Credentials::Ticket { ticket, opens } => {
            let outcome = redeem(gateway, ticket, opens).await;
            return (
                count(&key_of(&outcome, by_address)).await,
                outcome.map(Some),
            );
        }
    };
    let Known {
        subject,
        caller,
        asked,
    } = gateway.confirmed_tokens.get(&token, boot_time());
    if let Some(caller) = caller {
        metrics::caller_identified("memory");
        return (
            count(&CallerKey::user(&caller.user)).await,
            Ok(Some(caller)),
        );
    }
    let known = match subject {
        Some(Subject::User(user)) => Some(CallerKey::user(&user)),
        Some(Subject::Rejected) => Some(by_address.clone()),
        None => match gateway.signatures.verify(&gateway.bus, &token).await {
            Verdict::Signed(user) => Some(CallerKey::user(&user)),
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
            (count(&key_of(&outcome, by_address)).await, outcome)
        }
    };
    gateway.confirmed_tokens.insert(&token, &outcome, asked);
    (rate_limit, outcome.map(Some))
}

/// The key of the authenticated user, or `otherwise` if authentication failed.
fn key_of(outcome: &Result<Principal, Error>, otherwise: CallerKey) -> CallerKey {
    outcome
        .as_ref()
        .map_or(otherwise, |principal| CallerKey::user(&principal.user))
}

async fn call_auth(gateway: &Gateway, request: AuthenticateRequest) -> Result<Principal, Error> {
    gateway
        .bus
        .call::<Authenticate>(&request, AUTH_DEADLINE)
        .await
}

async fn authenticate(gateway: &Gateway, token: &Secret) -> Result<Principal, Error> {
    metrics::caller_identified("auth");
    let request = AuthenticateRequest::Bearer {
        token: token.clone(),
    };
    call_auth(gateway, request).await
}

/// Exchanges a ticket for its caller. Auth accepts each ticket once.
async fn redeem(gateway: &Gateway, ticket: Secret, opens: TicketUse) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Ticket {
        ticket,
        environment: opens.environment,
        action: opens.action,
        resource: opens.resource,
    };
    call_auth(gateway, request).await
}

/// Asks auth for the current state of a stream's caller.
///
/// # Errors
/// Unauthorized when its credential is no longer valid; any other error means
/// that auth could not decide.
pub(crate) async fn revalidate(
    gateway: &Gateway,
    principal: &Principal,
) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Revalidate {
        user: principal.user.clone(),
        credential: principal.credential.clone(),
    };
    call_auth(gateway, request).await
}
