//! Who calls: finds the credential, counts the request, asks auth.
//!
//! * I1. Auth decides, for every request: nothing here makes a credential good.
//! * I2. A caller is counted under its user, so that many keys are not many limits; one
//!   whose credential is not good, or who shows none, under its address.
//! * I3. Garbage costs no question: a token that says that it is signed by us and is not
//!   is refused here.

pub(crate) mod credential;
pub(crate) mod signature;
pub(crate) mod whose;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{Authenticate, AuthenticateRequest, Secret};
use agentbox_contracts::identity::{Principal, TicketAction};
use agentbox_contracts::ids::EnvironmentId;

use crate::authorize::unauthorized;
use crate::edge::client_address::ClientAddress;
use crate::rate_limit::{Category, Standing, Subject};
use crate::state::{AUTH_DEADLINE, Gateway};
use credential::Presented;
use signature::Verdict;
use whose::Whose;

/// A request as far as its caller goes.
pub(crate) struct Arrival {
    /// What it showed, or what was wrong with how it showed it.
    pub presented: Result<Option<Presented>, Error>,
    pub address: ClientAddress,
    pub category: Category,
}

/// Counts the request and finds its caller, at the same time where it can be known under
/// whom to count before auth has answered.
pub(crate) async fn identify(
    gateway: &Gateway,
    arrival: Arrival,
) -> (Standing, Result<Option<Principal>, Error>) {
    let by_address = Subject::address(arrival.address);
    let count = async |subject: &Subject| gateway.limiter.count(subject, arrival.category).await;
    let presented = match arrival.presented {
        Ok(Some(presented)) => presented,
        Ok(None) => return (count(&by_address).await, Ok(None)),
        Err(error) => return (count(&by_address).await, Err(error)),
    };
    let token = match presented {
        Presented::Bearer(token) => token,
        Presented::Ticket {
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
    let known = match gateway.whose.of(&token) {
        Some(Whose::User(user)) => Some(Subject::user(&user)),
        Some(Whose::Nobody) => Some(by_address.clone()),
        None => match gateway.signatures.judge(&gateway.bus, &token).await {
            Verdict::Signed(user) => Some(Subject::user(&user)),
            Verdict::Forged => {
                let error = unauthorized("the token is not valid");
                return (count(&by_address).await, Err(error));
            }
            Verdict::Unknown => None,
        },
    };
    let (standing, outcome) = match known {
        Some(known) => tokio::join!(count(&known), authenticate(gateway, &token)),
        None => {
            let outcome = authenticate(gateway, &token).await;
            (count(&subject(&outcome, by_address)).await, outcome)
        }
    };
    match &outcome {
        Ok(principal) => gateway
            .whose
            .remember(&token, Whose::User(principal.user.clone())),
        Err(error) if error.code == ErrorCode::Unauthorized => {
            gateway.whose.remember(&token, Whose::Nobody);
        }
        Err(_) => {}
    }
    (standing, outcome.map(Some))
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

/// Uses up a ticket.
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

/// The caller of a stream that runs on, as it is now.
///
/// # Errors
/// [`ErrorCode::Unauthorized`] when its credential is no longer good; anything else says
/// that auth cannot tell.
pub(crate) async fn again(gateway: &Gateway, principal: &Principal) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Again {
        user: principal.user.clone(),
        credential: principal.credential.clone(),
    };
    ask(gateway, request).await
}
