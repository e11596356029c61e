//! The test suite that every driver passes. Each test is a function over a [`Subject`].
//!
//! A driver's tests call [`crate::conformance_tests`] with an expression that makes a subject, and
//! each function becomes one test. The tests use only the two traits and boxd, through the driver's
//! connector: the exit code, the last output, commands and files show what happens inside a box.
//!
//! * I1. A test removes every box that it created, also when it fails.
//! * I2. Each wait has a deadline; none is a fixed pause.

pub mod accounts;
pub mod boxd;
pub mod claims;
pub mod ending;
pub mod executions;
pub mod files;
pub mod gvisor;
pub mod hostile;
pub mod life;
pub mod limits;
pub mod network;
pub mod ports;
pub mod start;
mod suite;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use parking_lot::Mutex;

use crate::{
    BoxConnector, BoxPhase, BoxSpec, ExitReason, Isolation, Observed, Resources, Runtime,
    RuntimeError,
};

/// The deadline of every wait: long enough for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The drivers under test: two of one deployment, as in two replicas.
#[derive(Debug)]
pub struct Subject<D> {
    pub first: D,
    pub second: D,
    /// An image with `sh`, `nc`, `httpd`, `dd`, `grep`, `tail` and `timeout`: busybox.
    pub image: String,
    /// An image with `python3` 3.9 or later and `/bin/cat`: a Debian.
    pub python: String,
    pub differences: Differences,
    /// The owner of the boxes of [`Subject::spec`].
    owner: UserId,
    /// Whether boxes are claimed warm ones.
    claims: bool,
    created: Mutex<Vec<EnvironmentId>>,
}

/// The differences of a kind of cluster that its tests expect. `docs/drivers.md` describes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The process limit that the cluster sets for every box, instead of the spec's.
    pub cluster_pids_limit: Option<u32>,
    /// Whether the output of an evicted box is lost.
    pub eviction_deletes_output: bool,
    /// Whether the group of an image's `USER user:group` is ignored.
    pub ignores_image_group: bool,
    /// Whether a box over its storage limit is evicted. Otherwise the kernel refuses its writes.
    pub measures_storage: bool,
    /// Whether a changed network policy leaves connections that are open.
    pub keeps_open_connections: bool,
    /// Whether boxes have no user namespace of their own.
    pub shares_user_ids: bool,
    /// Whether `use_entrypoint` is refused.
    pub refuses_entrypoint: bool,
    /// Whether a claim keeps the network policy of its warm box, and cannot open the owner's boxes.
    pub matches_network_policy: bool,
}

/// A requirement that a driver does not meet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl From<RuntimeError> for Violation {
    fn from(error: RuntimeError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::NetworkPolicyError> for Violation {
    fn from(error: crate::NetworkPolicyError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::PreflightError> for Violation {
    fn from(error: crate::PreflightError) -> Self {
        Self(error.to_string())
    }
}

/// # Errors
/// [`Violation`] when `holds` is false.
pub fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(message()))
    }
}

/// Repeats a request until it has an answer.
///
/// The pauses grow with the time waited, so that many waiting tests do not keep a cluster busy.
///
/// # Errors
/// [`Violation`] with `expected` when there is no answer within [`TIMEOUT`].
pub async fn eventually<T, F>(
    expected: &str,
    mut request: impl FnMut() -> F,
) -> Result<T, Violation>
where
    F: Future<Output = Result<Option<T>, Violation>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = request().await? {
            return Ok(answer);
        }
        check(start.elapsed() < TIMEOUT, || {
            format!("not within {TIMEOUT:?}: {expected}")
        })?;
        tokio::time::sleep((start.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

impl<D: Runtime + BoxConnector> Subject<D> {
    pub fn new(first: D, second: D, image: impl Into<String>) -> Self {
        Self {
            first,
            second,
            image: image.into(),
            python: "python:3.11-slim".to_owned(),
            differences: Differences::default(),
            owner: UserId::random(),
            claims: false,
            created: Mutex::default(),
        }
    }

    /// Sets the expected differences.
    #[must_use]
    pub fn with_differences(mut self, differences: Differences) -> Self {
        self.differences = differences;
        self
    }

    /// Makes [`Self::start`] claim a warm box for each spec.
    #[must_use]
    pub fn claiming(mut self) -> Self {
        self.claims = true;
        self
    }

    /// The spec of a small box with a new id, which [`Self::clean`] removes.
    pub fn spec(&self) -> BoxSpec {
        let spec = example_spec(|spec| {
            spec.owner.clone_from(&self.owner);
            spec.image.clone_from(&self.image);
            spec.resources.cpu = MilliCpu(1_000);
            spec.resources.storage = Bytes(64 << 20);
            "conformance".clone_into(&mut spec.boxd_token);
        });
        self.created.lock().push(spec.id.clone());
        spec
    }

    /// As [`Self::spec`], running a shell script.
    pub fn script(&self, script: &str) -> BoxSpec {
        let mut spec = self.spec();
        spec.command = Some(["sh", "-c", script].map(str::to_owned).to_vec());
        spec
    }

    /// Ensures the box at generation 1 until it is past starting. With [`Self::claiming`] it is a
    /// claimed warm box.
    ///
    /// # Errors
    /// [`Violation`] when it stays starting or the driver fails.
    pub async fn start(&self, spec: &BoxSpec) -> Result<Observed, Violation> {
        if self.claims {
            let warm = self.ensure_until_started(&self.warm_spec(spec)).await?;
            if let BoxPhase::Running { address, .. } = warm.phase {
                let claimed = self.second.claim(spec, 1, address).await;
                // Such a driver refuses some claims, and the next `ensure` makes the box without one.
                let is_left_to_ensure = self.differences.matches_network_policy
                    && matches!(claimed, Err(RuntimeError::NotClaimable(_)));
                if !is_left_to_ensure {
                    claimed?;
                }
            }
        }
        self.ensure_until_started(spec).await
    }

    /// The spec of a warm box that `spec` can claim: what is fixed when it is created, for a pool of
    /// another user.
    fn warm_spec(&self, spec: &BoxSpec) -> BoxSpec {
        let mut warm = spec.clone();
        warm.warm = true;
        warm.owner = UserId::random();
        warm.command = None;
        warm.use_entrypoint = false;
        warm.env.clear();
        warm.labels.clear();
        if !self.differences.matches_network_policy {
            warm.isolation.network_policy = None;
        }
        warm
    }

    /// Starts a warm box that `spec` can claim, and returns its address.
    ///
    /// # Errors
    /// [`Violation`] when it does not run.
    pub async fn run_warm(&self, spec: &BoxSpec) -> Result<SocketAddr, Violation> {
        match self
            .ensure_until_started(&self.warm_spec(spec))
            .await?
            .phase
        {
            BoxPhase::Running { address, .. } => Ok(address),
            other => Err(Violation(format!("expected a running box: {other:?}"))),
        }
    }

    async fn ensure_until_started(&self, spec: &BoxSpec) -> Result<Observed, Violation> {
        eventually("a box starts", || async {
            let observed = self.first.ensure(spec, 1).await?;
            let is_starting = matches!(observed.phase, BoxPhase::Starting { .. });
            Ok((!is_starting).then_some(observed))
        })
        .await
    }

    /// Starts a box, and returns its address.
    ///
    /// # Errors
    /// [`Violation`] when it does not run.
    pub async fn run(&self, spec: &BoxSpec) -> Result<SocketAddr, Violation> {
        match self.start(spec).await?.phase {
            BoxPhase::Running { address, .. } => Ok(address),
            other => Err(Violation(format!("expected a running box: {other:?}"))),
        }
    }

    /// Starts a box, and waits for its end.
    ///
    /// # Errors
    /// [`Violation`] when it does not start or end.
    pub async fn run_to_end(&self, spec: &BoxSpec) -> Result<End, Violation> {
        self.start(spec).await?;
        self.end_of(&spec.id).await
    }

    /// Waits for the end of a started box.
    ///
    /// # Errors
    /// [`Violation`] with its output when it does not end, or failed to start.
    pub async fn end_of(&self, id: &EnvironmentId) -> Result<End, Violation> {
        let end = self.wait_for_end(id).await;
        if let Err(violation) = end {
            let output = self.output_of(id).await?;
            return Err(Violation(format!("{violation}; its output: {output:?}")));
        }
        end
    }

    async fn wait_for_end(&self, id: &EnvironmentId) -> Result<End, Violation> {
        eventually("a box ends", || async {
            let observed = self.second.get(id).await?;
            let Some(Observed { phase, .. }) = observed else {
                return Err(Violation("the box is gone".to_owned()));
            };
            match phase {
                BoxPhase::Exited {
                    exit_code,
                    reason,
                    message,
                    ..
                } => {
                    let output = self.output_of(id).await?;
                    Ok(Some(End {
                        exit_code,
                        reason,
                        message,
                        output,
                    }))
                }
                BoxPhase::Failed { .. } => Err(Violation(format!("the box failed: {phase:?}"))),
                BoxPhase::Starting { .. } | BoxPhase::Running { .. } => Ok(None),
            }
        })
        .await
    }

    async fn output_of(&self, id: &EnvironmentId) -> Result<String, Violation> {
        let entries = self.second.last_output(id, 1 << 20).await?;
        let lines = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.line).into_owned());
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Removes every box that this subject's tests created.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub async fn clean(&self) -> Result<(), Violation> {
        let created = std::mem::take(&mut *self.created.lock());
        for id in created {
            self.first.remove(&id).await?;
        }
        Ok(())
    }
}

/// A small box for tests, with `change` applied.
pub fn example_spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
    let mut spec = BoxSpec {
        id: EnvironmentId::random(),
        warm: false,
        owner: UserId::random(),
        image: "busybox".to_owned(),
        command: None,
        use_entrypoint: false,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        resources: Resources {
            cpu: MilliCpu(100),
            memory: Bytes(64 << 20),
            storage: Bytes(1 << 30),
            pids: 64,
        },
        isolation: Isolation::default(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        boxd_token: String::new(),
        image_credential: None,
    };
    change(&mut spec);
    spec
}

/// The end of a box.
#[derive(Debug)]
pub struct End {
    pub exit_code: i32,
    pub reason: ExitReason,
    pub message: String,
    /// Lines of both streams.
    pub output: String,
}
