//! A real driver behind a gate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_contracts::environment::Environment;
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{
    BoxSpec, Capacity, ChangeStream, IMAGE_PULL, Observed, PolicyApplication, PreflightError,
    Runtime, RuntimeError,
};
use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::SOON;
use crate::support::cluster::World;
use crate::support::{eventually, request};

/// An image whose registry refuses pulls for now.
pub const BUSY_REGISTRY: &str = "agentbox-scheduler/busy:1";

/// Calls of `apply_network_policy` that pass at once, unless a test takes their permits.
pub const POLICIES: usize = 1024;

/// A real driver that can be made unreachable, and whose `ensure` can be delayed.
pub struct Gate {
    driver: Arc<dyn Runtime>,
    is_closed: AtomicBool,
    /// One permit for each `ensure` at a time.
    ensures: Semaphore,
    /// Calls of `ensure` so far.
    pub ensure_calls: AtomicUsize,
    /// One permit for each `apply_network_policy` at a time.
    pub policies: Semaphore,
    /// Calls of `apply_network_policy` so far.
    pub policy_calls: AtomicUsize,
    /// Refreshes of the capacity that the closed gate has refused so far.
    refused_refreshes: AtomicUsize,
}

impl Gate {
    pub fn new(driver: Arc<dyn Runtime>, ensures: usize) -> Arc<Self> {
        Arc::new(Self {
            driver,
            is_closed: AtomicBool::new(false),
            ensures: Semaphore::new(ensures),
            ensure_calls: AtomicUsize::new(0),
            policies: Semaphore::new(POLICIES),
            policy_calls: AtomicUsize::new(0),
            refused_refreshes: AtomicUsize::new(0),
        })
    }

    pub fn set_open(&self, open: bool) {
        self.is_closed.store(!open, Ordering::SeqCst);
    }

    /// Waits until the closed gate has refused two more refreshes of the capacity: at the second
    /// one the scheduler has handled the first.
    pub async fn wait_for_refused_refreshes(&self) {
        let refused = || self.refused_refreshes.load(Ordering::SeqCst);
        let before = refused();
        eventually("the closed gate refuses a refresh", SOON, async || {
            refused() >= before + 2
        })
        .await;
    }

    /// Creates an environment while the gate is closed. It opens when it has refused refreshes
    /// meanwhile.
    pub async fn create_while_closed(&self, world: &World) -> Result<Environment, Error> {
        let opens = async {
            self.wait_for_refused_refreshes().await;
            self.set_open(true);
        };
        tokio::join!(world.try_create(request("early")), opens).0
    }

    fn pass(&self) -> Result<&dyn Runtime, RuntimeError> {
        if self.is_closed.load(Ordering::SeqCst) {
            Err(RuntimeError::Unavailable("the gate is closed".into()))
        } else {
            Ok(&*self.driver)
        }
    }
}

#[async_trait]
impl Runtime for Gate {
    async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        self.driver.preflight(spec).await
    }

    async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        self.ensure_calls.fetch_add(1, Ordering::SeqCst);
        if spec.image == BUSY_REGISTRY {
            return Err(RuntimeError::Cluster {
                operation: IMAGE_PULL,
                message: format!("cannot pull the image \"{BUSY_REGISTRY}\": try later"),
            });
        }
        let _held = self.ensures.acquire().await;
        self.pass()?.ensure(spec, generation).await
    }

    async fn claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        address: SocketAddr,
    ) -> Result<Observed, RuntimeError> {
        self.pass()?.claim(spec, generation, address).await
    }

    async fn apply_network_policy(
        &self,
        spec: &BoxSpec,
        generation: i64,
    ) -> Result<PolicyApplication, RuntimeError> {
        self.policy_calls.fetch_add(1, Ordering::SeqCst);
        let _held = self.policies.acquire().await;
        self.pass()?.apply_network_policy(spec, generation).await
    }

    async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        self.pass()?.stop(id, grace).await
    }

    async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        self.pass()?.remove(id).await
    }

    async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        self.pass()?.get(id).await
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.pass()?.list().await
    }

    async fn watch(&self) -> Result<ChangeStream, RuntimeError> {
        self.pass()?.watch().await
    }

    async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        let driver = self.pass().inspect_err(|_| {
            self.refused_refreshes.fetch_add(1, Ordering::SeqCst);
        })?;
        driver.capacity().await
    }
}
