//! The stream of changes for the scheduler.
//!
//! Polling the stream also restores deleted network policies ([`crate::repair`]).
//!
//! * I1. A subscriber that was too slow receives `None`: any box may have changed.

use std::sync::Arc;

use agentbox_runtime::{Change, ChangeStream, RuntimeError};
use futures::{StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;

use crate::context::Context;
use crate::pod_watch::Changes;
use crate::repair::Repairer;

impl Context {
    /// Changes of the deployment's Pods from now on.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn changes(&self) -> Result<Changes, RuntimeError> {
        self.pod_watch
            .subscribe(&self.cluster, &self.config.deployment)
            .await
    }
}

/// # Errors
/// When the kubeconfig cannot be read.
pub async fn watch(context: Arc<Context>) -> Result<ChangeStream, RuntimeError> {
    let changes = context.changes().await?;
    let repairer = Repairer::new(context.clone()).await?;
    // The context keeps the watch's task alive.
    let changed = stream::unfold((context, changes), |(context, mut changes)| async {
        let id = match changes.recv().await {
            Ok(id) => id,
            Err(RecvError::Lagged(missed)) => {
                tracing::info!(missed, "a subscriber of changes was too slow");
                None
            }
            Err(RecvError::Closed) => return None,
        };
        Some((Change { id }, (context, changes)))
    });
    let first = stream::once(async { Change { id: None } });
    let repairing = stream::once(repairer.run()).map(|never| match never {});
    Ok(Box::pin(stream::select(first.chain(changed), repairing)))
}
