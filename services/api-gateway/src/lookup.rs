//! Finding the environment of a route, and whether the caller may act on it.

use std::net::SocketAddr;

use agentbox_contracts::environment::rpc::{Get, GetRequest};
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::EnvironmentId;

use crate::authorize::{Action, Target, authorize};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// Where an environment's user I/O goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub cluster: String,
    pub status: Status,
    pub address: Option<SocketAddr>,
}

/// The environment as the scheduler has it.
///
/// # Errors
/// As [`authorize`], or that the scheduler cannot be reached.
pub(crate) async fn environment(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    id: &EnvironmentId,
) -> Result<Environment, Error> {
    let found = gateway
        .bus
        .call::<Get>(&GetRequest { id: id.clone() }, SCHEDULER_DEADLINE)
        .await?;
    authorize(
        principal,
        action,
        Some(Target {
            id,
            owner: &found.owner,
        }),
    )?;
    Ok(found)
}

/// Where a running environment is: from the mirror when it says so, else from the
/// scheduler, whose word is final.
///
/// # Errors
/// [`ErrorCode::NotRunning`] when it does not run; else as [`environment`].
pub(crate) async fn running(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    id: &EnvironmentId,
) -> Result<Place, Error> {
    if let Some(route) = gateway.routes.get(id)
        && route.status == Status::Running
        && route.address.is_some()
    {
        authorize(
            principal,
            action,
            Some(Target {
                id,
                owner: &route.owner,
            }),
        )?;
        return Ok(Place {
            cluster: route.cluster,
            status: route.status,
            address: route.address,
        });
    }
    let found = environment(gateway, principal, action, id).await?;
    if found.status != Status::Running || found.address.is_none() {
        return Err(Error::new(
            ErrorCode::NotRunning,
            format!("the environment is {}, not running", found.status.as_str()),
        ));
    }
    Ok(Place {
        cluster: found.cluster,
        status: found.status,
        address: found.address,
    })
}

/// Where an environment is or was.
///
/// # Errors
/// As [`environment`].
pub(crate) async fn any(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    id: &EnvironmentId,
) -> Result<Place, Error> {
    let found = environment(gateway, principal, action, id).await?;
    Ok(Place {
        cluster: found.cluster,
        status: found.status,
        address: found.address,
    })
}
