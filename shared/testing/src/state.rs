//! The state of an instance: `state.json`.
//!
//! The supervisor alone writes it, each time atomically. The commands of `agentbox-local` and
//! tests read it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::endpoint::gateway::GatewayEndpoint;
use crate::endpoint::nats::NatsEndpoint;
use crate::endpoint::observability::ObservabilityEndpoint;
use crate::endpoint::postgres::PostgresEndpoint;
use crate::private_file;
use crate::process_identity::{ProcessIdentity, boot_id};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    Starting,
    Ready,
    Stopping,
    /// The start failed; everything is stopped again.
    Failed {
        message: String,
    },
    Stopped,
}

/// One supervised program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessState {
    /// `None` between an exit and the restart.
    pub identity: Option<ProcessIdentity>,
    /// Seconds since the epoch.
    pub started_at: i64,
    pub restarts: u32,
    /// The status of the last exit, if there was one.
    pub last_end: Option<String>,
    /// `http://127.0.0.1:<port>` with `/health/ready` and `/metrics`, for a service.
    pub admin_url: Option<String>,
}

/// The content of the state file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub boot_id: String,
    pub deployment: String,
    pub supervisor: Option<ProcessIdentity>,
    #[serde(flatten)]
    pub phase: Phase,
    /// The completed steps of the start, in order.
    pub steps: Vec<String>,
    pub processes: BTreeMap<String, ProcessState>,
    pub postgres: Option<PostgresEndpoint>,
    pub nats: Option<NatsEndpoint>,
    #[serde(default)]
    pub clusters: Vec<Cluster>,
    pub gateway: Option<GatewayEndpoint>,
    /// `None` until the instance is observed.
    #[serde(default)]
    pub observability: Option<ObservabilityEndpoint>,
    /// Why the last attempt to observe the running instance failed.
    #[serde(default)]
    pub observability_error: Option<String>,
}

impl State {
    /// The first state of an instance, with this process as its supervisor.
    #[must_use]
    pub fn new(deployment: String) -> Self {
        Self {
            boot_id: boot_id(),
            deployment,
            supervisor: ProcessIdentity::own(),
            phase: Phase::Starting,
            steps: Vec::new(),
            processes: BTreeMap::new(),
            postgres: None,
            nats: None,
            clusters: Vec::new(),
            gateway: None,
            observability: None,
            observability_error: None,
        }
    }

    /// Reads a state file. `None` when there is none, or when it was written before the last
    /// reboot: its processes are gone.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let state: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (state.boot_id == boot_id()).then_some(state)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        private_file::write(path, &serde_json::to_vec_pretty(self)?)
    }

    #[must_use]
    pub fn supervisor_is_alive(&self) -> bool {
        self.supervisor
            .is_some_and(|supervisor| supervisor.is_alive())
    }
}
