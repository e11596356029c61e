//! Ends a box, and removes all of it.
//!
//! * I1. Why we ended a box is recorded before it is ended, so that whoever looks next
//!   tells the same reason.
//! * I2. The firewall's rules go before the sandbox gives its address back: a box whose
//!   rules are gone reaches nothing, and the next holder of the address gets only its own.
//! * I3. The facts go last: until then the box is listed, and `remove` is called again.

use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;
use futures::future::try_join_all;

use crate::driver::{Inner, io_failure};
use crate::facts::Ending;
use crate::observe::Objects;
use crate::{cgroup, output};

impl Inner {
    pub async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        let container = self.mark(id, Ending::Stopped).await?;
        // Without the lock: a forced removal must not wait for the grace period.
        match container {
            Some(container) => Ok(self.cri.stop_container(&container, grace).await?),
            None => Ok(()),
        }
    }

    /// Ends it at once, for good, with a message that every replica will tell.
    pub async fn evict(&self, id: &EnvironmentId, message: String) -> Result<(), RuntimeError> {
        match self.mark(id, Ending::Evicted { message }).await? {
            Some(container) => Ok(self.cri.stop_container(&container, Duration::ZERO).await?),
            None => Ok(()),
        }
    }

    /// Records why the box ends; its container, if it runs. A box that is ending keeps
    /// its first reason.
    async fn mark(&self, id: &EnvironmentId, why: Ending) -> Result<Option<String>, RuntimeError> {
        let lock = self.facts.lock(id, self.lock_deadline()).await?;
        let objects = self.objects(id).await?;
        let facts = self.facts.load(id).await?;
        if facts.is_none() && objects.sandboxes.is_empty() {
            lock.discard();
            return Ok(None);
        }
        let Some(container) = objects.container().filter(|_| objects.is_running()) else {
            return Ok(None);
        };
        if let Some(mut facts) = facts
            && facts.ending.is_none()
        {
            facts.ending = Some(why);
            self.facts.save(&lock, id, &facts).await?;
        }
        Ok(Some(container.id.clone()))
    }

    pub async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let lock = self.facts.lock(id, self.lock_deadline()).await?;
        let objects = self.objects(id).await?;
        let facts = self.facts.load(id).await?;
        let network = facts.as_ref().and_then(|facts| facts.network.as_ref());
        self.firewall.dismiss(id, network).await?;
        self.remove_sandboxes(&objects).await?;
        output::unmount(&self.output_directory(id))
            .map_err(|error| io_failure("output directory", &error))?;
        cgroup::remove(&self.config.deployment, id, self.config.call_deadline())
            .await
            .map_err(|error| io_failure("control group", &error))?;
        self.facts.remove(&lock, id).await?;
        lock.discard();
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
