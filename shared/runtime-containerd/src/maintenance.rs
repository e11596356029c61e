//! The checks of all boxes by a driver that watches: it evicts boxes over their storage limit, removes
//! images, and restores lost firewall rules.
//!
//! * I1. They are a task, which the stream of changes owns and which ends with it. The reader of a stream
//!   stops polling it while it is busy with changes, and a check within the stream would stop too,
//!   with the locks that it holds: no replica could change that box or check the others.
//! * I2. One replica checks at a time: the holder of the lead.
//! * I3. An error of a check is logged, and the next check tries again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_runtime::{Retries, RuntimeError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::box_state::BoxLock;
use crate::context::Context;
use crate::image_gc::{self, ImageCollection};
use crate::repair;
use crate::storage::{self, StorageUsage};

/// The running checks. Dropping it ends them.
#[derive(Debug)]
pub struct Maintenance(JoinHandle<Infallible>);

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Maintenance {
    pub fn start(context: Arc<Context>) -> Self {
        let now = Instant::now();
        let checks = Checks {
            context,
            storage_usage: StorageUsage::default(),
            next_images: now,
            image_collection: ImageCollection::default(),
            next_repair: now,
            repairs: Retries::default(),
        };
        Self(tokio::task::spawn(checks.run()))
    }

    /// Waits until the checks have ended, which they do only by a defect.
    pub async fn ended(&mut self) -> RuntimeError {
        let Err(error) = (&mut self.0).await;
        RuntimeError::Cluster {
            operation: "checks of all boxes",
            message: error.to_string(),
        }
    }
}

struct Checks {
    context: Arc<Context>,
    storage_usage: StorageUsage,
    next_images: Instant,
    image_collection: ImageCollection,
    next_repair: Instant,
    repairs: Retries,
}

impl Checks {
    async fn run(mut self) -> Infallible {
        loop {
            self.check().await;
            tokio::time::sleep(storage::INTERVAL).await;
        }
    }

    /// Checks storage, images and firewall rules, if this replica holds the lead.
    async fn check(&mut self) {
        let lead = match self.context.states.try_lead() {
            Ok(Some(lead)) => lead,
            Ok(None) => return self.storage_usage.clear(),
            Err(error) => {
                return tracing::error!(
                    error = %ErrorChain(&error),
                    "could not lock the checks of storage, images and firewall rules"
                );
            }
        };
        self.check_storage(&lead).await;
        if Instant::now() >= self.next_images {
            let pause = self.collect_images(&lead).await;
            self.next_images = Instant::now() + pause;
        }
        if Instant::now() >= self.next_repair {
            self.repair_firewall(&lead).await;
            self.next_repair = Instant::now() + repair::INTERVAL;
        }
    }

    async fn check_storage(&mut self, lead: &BoxLock) {
        let usage = &mut self.storage_usage;
        if let Err(error) = self.context.check_storage(lead, usage).await {
            tracing::error!(error = %ErrorChain(&error), "could not check the storage of boxes");
        }
    }

    /// Returns the pause before the next collection.
    async fn collect_images(&mut self, lead: &BoxLock) -> Duration {
        let collection = &mut self.image_collection;
        match self.context.collect_images(lead, collection).await {
            Ok(true) => image_gc::SHORT_INTERVAL,
            Ok(false) => image_gc::INTERVAL,
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "could not remove unused images");
                image_gc::INTERVAL
            }
        }
    }

    async fn repair_firewall(&mut self, lead: &BoxLock) {
        let retries = &mut self.repairs;
        if let Err(error) = self.context.repair_firewall(lead, retries).await {
            tracing::error!(
                error = %ErrorChain(&error),
                "could not compare the boxes with the firewall rules"
            );
        }
    }
}
