//! What an instance is doing: `state.json`, written by its supervisor alone, each time
//! in one step; read by `status`, `down` and the tests.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::identity::{ProcessIdentity, boot_id};
use crate::nats::NatsEndpoint;
use crate::postgres::PostgresEndpoint;
use crate::secrets::write_private;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub(crate) enum Phase {
    Starting,
    Ready,
    Stopping,
    /// It could not be started; everything has been taken down again.
    Failed {
        message: String,
    },
    Stopped,
}

/// One supervised program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ProcessState {
    /// `None` between its end and its restart.
    pub(crate) identity: Option<ProcessIdentity>,
    /// Seconds since the epoch.
    pub(crate) started_at: i64,
    pub(crate) restarts: u32,
    /// How it ended the last time, if it did.
    pub(crate) last_end: Option<String>,
    /// `http://127.0.0.1:<port>` with `/health/ready` and `/metrics`, for a service.
    pub(crate) admin_url: Option<String>,
}

/// Where api-gateway listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayEndpoint {
    /// Shared by all replicas.
    pub url: String,
    /// Each replica's own, by index.
    pub replica_urls: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) boot_id: String,
    pub(crate) deployment: String,
    pub(crate) supervisor: Option<ProcessIdentity>,
    #[serde(flatten)]
    pub(crate) phase: Phase,
    /// What has been done so far, for a person who waits.
    pub(crate) steps: Vec<String>,
    pub(crate) processes: BTreeMap<String, ProcessState>,
    pub(crate) postgres: Option<PostgresEndpoint>,
    pub(crate) nats: Option<NatsEndpoint>,
    #[serde(default)]
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) gateway: Option<GatewayEndpoint>,
}

impl State {
    pub(crate) fn new(deployment: String) -> Self {
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
        }
    }

    /// `None` when there is none, or it is of another boot: nothing of it exists.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let state: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (state.boot_id == boot_id()).then_some(state)
    }

    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        write_private(path, &serde_json::to_vec_pretty(self)?)
    }

    pub(crate) fn supervisor_is_alive(&self) -> bool {
        self.supervisor
            .is_some_and(|supervisor| supervisor.is_alive())
    }
}
