//! Puts lost firewall rules in force again.
//!
//! A host's own firewall service may flush every table when it is restarted, and then
//! boxes would be open. Every few seconds one replica compares the boxes that run with
//! the boxes that have rules.

use std::time::Duration;

use agentbox_runtime::RuntimeError;

use crate::driver::Inner;
use crate::facts::{BoxLock, Facts};

/// Between two looks: how long boxes may be open at most, and a little.
pub const INTERVAL: Duration = Duration::from_secs(2);

impl Inner {
    /// `_lead` shows that no other replica does the same now. One box's trouble is logged
    /// and does not keep the others from being repaired.
    pub async fn repair_firewall(&self, _lead: &BoxLock) -> Result<(), RuntimeError> {
        // In this order: what is listed as running had its rules before that.
        let running = self.all_objects().await?;
        let admitted = self.firewall.own_boxes().await?;
        for (id, objects) in running {
            if admitted.contains(&id) || !objects.is_running() {
                continue;
            }
            let lock = self.facts.lock(&id, self.config.call_deadline()).await?;
            // Looked at anew: it may have been stopped or removed meanwhile.
            if !self.objects(&id).await?.is_running() {
                continue;
            }
            let facts = self.facts.load(&id).await?;
            if let Some(Facts {
                network: Some(network),
                policy: Some(policy),
                ..
            }) = facts
            {
                tracing::warn!(environment.id = %id, "a box's firewall rules were gone");
                if let Err(error) = self.firewall.admit(&id, &network, &policy).await {
                    tracing::error!(%error, environment.id = %id, "a box has no firewall rules");
                }
            }
            drop(lock);
        }
        Ok(())
    }
}
