//! Finds the environments that requests name.
//!
//! * I1. The route mirror is a hint. It may confirm that an environment runs; only the
//!   scheduler may say that one does not run, or does not exist.

pub(crate) mod reads;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use agentbox_contracts::environment::rpc::{Resolve, ResolveRequest};
use agentbox_contracts::environment::{Environment, Route, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{Principal, TicketResource};
use agentbox_contracts::ids::{EnvironmentId, UserId};

use crate::authorize::{Action, Target, authorize};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// An environment, its owner, and where its user I/O goes.
#[derive(Clone, Debug)]
pub(crate) struct EnvironmentLocation {
    pub id: EnvironmentId,
    pub owner: UserId,
    pub cluster: String,
    pub status: Status,
    pub address: Option<SocketAddr>,
    /// The execution or the path of the request, if a ticket for its action is bound to one.
    pub resource: Option<TicketResource>,
    /// The whole environment, if it was read from the scheduler.
    pub record: Option<Arc<Environment>>,
}

impl EnvironmentLocation {
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            id: &self.id,
            owner: &self.owner,
            resource: self.resource.as_ref(),
        }
    }

    /// Returns the location if its environment accepts user I/O.
    ///
    /// # Errors
    /// [`ErrorCode::NotRunning`]
    pub(crate) fn require_running(self) -> Result<Self, Error> {
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
            resource: None,
            record: None,
        }
    }
}

impl From<Arc<Environment>> for EnvironmentLocation {
    fn from(environment: Arc<Environment>) -> Self {
        Self {
            id: environment.id.clone(),
            owner: environment.owner.clone(),
            cluster: environment.cluster.clone(),
            status: environment.status,
            address: environment.address,
            resource: None,
            record: Some(environment),
        }
    }
}

/// Whether `action` needs the whole record, not only the location.
const fn needs_record(action: Action) -> bool {
    matches!(action, Action::ViewEnvironment)
}

/// Finds a running environment in the route mirror. `None` does not mean that it does not run.
pub(crate) fn find_running(gateway: &Gateway, id: &EnvironmentId) -> Option<EnvironmentLocation> {
    let route = gateway.routes.get(id)?;
    (route.status == Status::Running && route.address.is_some())
        .then(|| EnvironmentLocation::from_route(id.clone(), route))
}

/// Finds the environment `id` for `action`, which is not authorized yet.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn locate(
    gateway: &Gateway,
    action: Action,
    id: EnvironmentId,
) -> Result<EnvironmentLocation, Error> {
    if !needs_record(action)
        && let Some(location) = find_running(gateway, &id)
    {
        return Ok(location);
    }
    read_location(gateway, id).await
}

/// Finds the environment `id`, for which the scheduler is asked in any case.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn read_location(
    gateway: &Gateway,
    id: EnvironmentId,
) -> Result<EnvironmentLocation, Error> {
    gateway.reads.read(id).await.map(EnvironmentLocation::from)
}

/// Finds the environment that a request's body names, and authorizes `action` on it.
///
/// # Errors
/// As [`locate`] and [`authorize`].
pub(crate) async fn resolve(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    id: &str,
) -> Result<EnvironmentLocation, Error> {
    let id = id.parse().map_err(|_| Error::not_found("environment"))?;
    let location = locate(gateway, action, id).await?;
    authorize(Some(principal), action, Some(location.target()))?;
    Ok(location)
}

/// Finds the owners of environments; ids that do not exist are left out. The route mirror has the
/// owners of running environments. The scheduler is asked at most once, for all others together.
///
/// # Errors
/// When the scheduler cannot be reached.
pub(crate) async fn owners(
    gateway: &Gateway,
    ids: impl Iterator<Item = &EnvironmentId>,
) -> Result<BTreeMap<EnvironmentId, UserId>, Error> {
    let mut owners = BTreeMap::new();
    let mut unknown = Vec::new();
    for id in ids {
        match find_running(gateway, id) {
            Some(location) => {
                owners.insert(location.id, location.owner);
            }
            None => unknown.push(id.clone()),
        }
    }
    if !unknown.is_empty() {
        let request = ResolveRequest { ids: unknown };
        let reply = gateway
            .bus
            .call::<Resolve>(&request, SCHEDULER_DEADLINE)
            .await?;
        owners.extend(reply.owners);
    }
    Ok(owners)
}

/// Reads the environment from the scheduler.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn read_record(
    gateway: &Gateway,
    id: EnvironmentId,
) -> Result<Environment, Error> {
    gateway.reads.read(id).await.map(Arc::unwrap_or_clone)
}
