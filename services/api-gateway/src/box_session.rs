//! The sessions with exec-proxies: one for each operation in a box.

use std::time::Duration;

use agentbox_bus::Session;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{FromBox, Open, OpenKind, ToBox, rpc};

use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// How long the exec-proxy may take to answer the first message of a session.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) type BoxSession = Session<ToBox, FromBox>;

/// Opens a session for one operation in the environment's box.
///
/// # Errors
/// As [`agentbox_bus::Bus::open_session`].
pub(crate) async fn open(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    kind: OpenKind,
) -> Result<BoxSession, Error> {
    let open = Open {
        environment: location.id.clone(),
        owner: Some(location.owner.clone()),
        address: location.address,
        status: location.status,
        kind,
    };
    gateway
        .bus
        .open_session::<rpc::BoxSession>(&location.cluster, &open, OPEN_DEADLINE)
        .await
}
