//! Finding the environment of a route.
//!
//! * I1. The mirror is a hint: that an environment runs may be taken from it, that it does
//!   not, or that there is none, only from the scheduler.

use std::net::SocketAddr;

use agentbox_contracts::environment::rpc::{Get, GetRequest};
use agentbox_contracts::environment::{Environment, Route, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::{EnvironmentId, UserId};

use crate::authorize::{Action, Target, authorize};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// An environment: whose it is, and where its user I/O goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub id: EnvironmentId,
    pub owner: UserId,
    pub cluster: String,
    pub status: Status,
    pub address: Option<SocketAddr>,
    /// All of it, when it was the scheduler who was asked.
    pub record: Option<Box<Environment>>,
}

impl Place {
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            id: &self.id,
            owner: &self.owner,
        }
    }

    /// # Errors
    /// [`ErrorCode::NotRunning`]
    pub(crate) fn running(self) -> Result<Self, Error> {
        if self.status == Status::Running && self.address.is_some() {
            return Ok(self);
        }
        Err(Error::new(
            ErrorCode::NotRunning,
            format!("the environment is {}, not running", self.status.as_str()),
        ))
    }

    fn from_route(id: EnvironmentId, route: Route) -> Self {
        Self {
            id,
            owner: route.owner,
            cluster: route.cluster,
            status: route.status,
            address: route.address,
            record: None,
        }
    }
}

impl From<Environment> for Place {
    fn from(environment: Environment) -> Self {
        Self {
            id: environment.id.clone(),
            owner: environment.owner.clone(),
            cluster: environment.cluster.clone(),
            status: environment.status,
            address: environment.address,
            record: Some(Box::new(environment)),
        }
    }
}

/// Whether all of the record is wanted, or only where it runs.
const fn wants_record(action: Action) -> bool {
    matches!(action, Action::ViewEnvironment)
}

/// The environment `id` for `action`. Nothing is authorized yet.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn place(
    gateway: &Gateway,
    action: Action,
    id: EnvironmentId,
) -> Result<Place, Error> {
    if !wants_record(action)
        && let Some(route) = gateway.routes.get(&id)
        && route.status == Status::Running
        && route.address.is_some()
    {
        return Ok(Place::from_route(id, route));
    }
    record(gateway, id).await.map(Place::from)
}

/// The environment that a request's body names, if `principal` may do `action` on it.
///
/// # Errors
/// As [`place`] and [`authorize`].
pub(crate) async fn named(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    id: &str,
) -> Result<Place, Error> {
    let id = id.parse().map_err(|_| Error::not_found("environment"))?;
    let place = place(gateway, action, id).await?;
    authorize(Some(principal), action, Some(place.target()))?;
    Ok(place)
}

/// The environment as the scheduler has it.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn record(gateway: &Gateway, id: EnvironmentId) -> Result<Environment, Error> {
    gateway
        .bus
        .call::<Get>(&GetRequest { id }, SCHEDULER_DEADLINE)
        .await
}
