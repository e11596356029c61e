//! Stops a box, and removes all of it.
//!
//! * I1. The reason is recorded before the box is ended, so that every replica reports the same
//!   one.
//! * I2. The firewall's rules are removed before the sandbox's address is free: a box without
//!   rules reaches nothing, and the next holder of the address has only its own rules.
//! * I3. The state file is removed last: until then the box is listed, and `remove` is repeated.

use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;
use futures::future::try_join_all;

use crate::box_state::Ending;
use crate::context::Context;
use crate::error::io_failure;
use crate::network::BoxNetwork;
use crate::observe::Objects;
use crate::{cgroup, tmpfs};

impl Context {
    pub async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        let within = self.lock_deadline();
        let container = self.record_ending(id, Ending::Stopped, within).await?;
        // Without the lock, so that a removal need not wait for the grace period.
        match container {
            Some(container) => Ok(self.cri.stop_container(&container, grace).await?),
            None => Ok(()),
        }
    }

    /// Kills the box, and records a message that every replica reports. Fails at once if the box is
    /// changing, because the other boxes are not checked meanwhile.
    pub async fn evict(&self, id: &EnvironmentId, message: String) -> Result<(), RuntimeError> {
        let why = Ending::Evicted { message };
        match self.record_ending(id, why, Duration::ZERO).await? {
            Some(container) => Ok(self.cri.stop_container(&container, Duration::ZERO).await?),
            None => Ok(()),
        }
    }

    /// Records why the box ends, and returns its running container. The first reason stays.
    async fn record_ending(
        &self,
        id: &EnvironmentId,
        why: Ending,
        within: Duration,
    ) -> Result<Option<String>, RuntimeError> {
        let lock = self.states.lock(id, within).await?;
        let objects = self.objects(id).await?;
        let state = self.states.load(id).await?;
        if state.is_none() && objects.sandboxes.is_empty() {
            lock.discard();
            return Ok(None);
        }
        let Some(container) = objects.container().filter(|_| objects.is_running()) else {
            return Ok(None);
        };
        if let Some(mut state) = state
            && state.ending.is_none()
        {
            state.ending = Some(why);
            self.states.save(&lock, id, &state).await?;
        }
        Ok(Some(container.id.clone()))
    }

    pub async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let lock = self.states.lock(id, self.lock_deadline()).await?;
        let objects = self.objects(id).await?;
        let state = self.states.load(id).await?;
        let network = state.as_ref().and_then(|state| state.network.as_ref());
        self.remove_from_network(id, network, &objects).await?;
        for directory in [
            self.output_directory(id),
            self.memory_directory(id),
            self.terminals_directory(id),
        ] {
            tmpfs::unmount(&directory).map_err(|error| io_failure("unmount", &error))?;
        }
        self.discard_disk(id).await?;
        cgroup::remove(&self.config.deployment, id, self.config.call_deadline())
            .await
            .map_err(|error| io_failure("control group", &error))?;
        self.states.remove(&lock, id).await?;
        lock.discard();
        Ok(())
    }

    /// Removes the disk of a box that has ended or was never started. Its output is not on it.
    pub async fn discard_disk(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let disk = self.disk(id);
        // The kernel may write the disk's last changes first.
        tokio::task::spawn_blocking(move || disk.discard())
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| io_failure("disk of a box", &error))
    }

    /// Removes a box's rules, and then its sandboxes and the entries of its connections.
    pub async fn remove_from_network(
        &self,
        id: &EnvironmentId,
        network: Option<&BoxNetwork>,
        objects: &Objects,
    ) -> Result<(), RuntimeError> {
        let addresses = self.firewall.remove(id, network).await?;
        // At once: without rules the box opens no connection, and both take long.
        let forget_connections = async {
            self.firewall.forget_connections(&addresses).await;
            Ok::<(), RuntimeError>(())
        };
        tokio::try_join!(self.remove_sandboxes(objects), forget_connections)?;
        Ok(())
    }

    pub async fn remove_sandboxes(&self, objects: &Objects) -> Result<(), RuntimeError> {
        let deadline = Duration::from_secs(self.config.sandbox_deadline_s);
        let removals = objects
            .sandboxes
            .iter()
            .map(|sandbox| self.cri.remove_sandbox(&sandbox.id, deadline));
        try_join_all(removals).await?;
        Ok(())
    }
}
