//! The environment of a session.

use std::net::SocketAddr;

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;

use crate::archive::Archive;
use crate::boxes::{BoxError, Lease};
use crate::clusters::Cluster;
use crate::metrics;

/// An environment, and where its box and its output may be.
pub struct Target<'a> {
    pub cluster: &'a Cluster,
    pub archive: &'a Archive,
    pub environment: EnvironmentId,
    pub address: Option<SocketAddr>,
    pub status: Status,
}

impl Target<'_> {
    /// Leases the running box for a session.
    ///
    /// # Errors
    /// [`ErrorCode::NotRunning`] when the environment does not run, [`ErrorCode::Unavailable`] when
    /// its box, or this process, is at its limit.
    pub fn lease_running(&self) -> Result<Lease, Error> {
        let address = self
            .address
            .filter(|_| self.status == Status::Running)
            .ok_or_else(|| {
                let status = self.status.as_str();
                Error::new(
                    ErrorCode::NotRunning,
                    format!("the environment is not running: it is {status}"),
                )
            })?;
        self.cluster
            .boxes
            .lease_session(&self.environment, address)
            .map_err(|error| {
                if matches!(error, BoxError::Busy(_)) {
                    metrics::limit_reached("sessions_per_box");
                }
                error.public()
            })
    }
}
