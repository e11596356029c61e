//! Tells which boxes may have changed.
//!
//! One watch of our Pods' metadata a driver, however many ask: each gets a copy of what
//! it tells. It begins with the first who asks and ends with the driver. Who follows the
//! changes also puts back what boxes have lost ([`crate::repair`]), while it is polled.
//!
//! * I1. After every gap (a lost connection, a list from the start, a reader that was too
//!   slow) `None` is told: anything may have changed.

use std::sync::Arc;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Change, ChangeStream, RuntimeError};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::{OnceCell, broadcast};
use tokio::task::JoinHandle;

use crate::driver::Inner;
use crate::labels;
use crate::repair::Repairer;

/// Changes that wait for a slow reader; what is more becomes one `None`.
const WAITING: usize = 1_024;

/// The driver's one watch.
#[derive(Debug, Default)]
pub struct Watch(OnceCell<Started>);

#[derive(Debug)]
struct Started {
    changes: broadcast::Sender<Option<EnvironmentId>>,
    task: JoinHandle<()>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    /// What changes from now on.
    ///
    /// # Errors
    /// When the API server cannot be addressed at all.
    pub async fn changes(
        &self,
    ) -> Result<broadcast::Receiver<Option<EnvironmentId>>, RuntimeError> {
        let started = self
            .watch
            .0
            .get_or_try_init(|| async {
                let pods: Api<PartialObjectMeta<Pod>> =
                    Api::all(self.cluster.client().await?.clone());
                let selector = labels::selector(&self.config.deployment);
                let (changes, _) = broadcast::channel(WAITING);
                let task = tokio::task::spawn(tell(pods, selector, changes.clone()));
                Ok::<_, RuntimeError>(Started { changes, task })
            })
            .await?;
        Ok(started.changes.subscribe())
    }
}

/// Goes on for ever: the watcher lists and watches again after whatever went wrong, with
/// growing pauses.
async fn tell(
    pods: Api<PartialObjectMeta<Pod>>,
    selector: String,
    changes: broadcast::Sender<Option<EnvironmentId>>,
) {
    let configuration = watcher::Config::default().labels(&selector);
    let mut events = watcher::watcher(pods, configuration)
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Apply(pod) | Event::Delete(pod)) => match id_of(&pod) {
                Some(id) => Some(id),
                None => continue,
            },
            Ok(Event::InitApply(_)) => continue,
            Ok(Event::Init | Event::InitDone) => None,
            Err(error) => {
                tracing::info!(%error, "the watch of Pods broke off");
                None
            }
        };
        // Nobody listens at the moment: nothing is lost.
        let _ = changes.send(change);
    }
}

fn id_of(pod: &PartialObjectMeta<Pod>) -> Option<EnvironmentId> {
    labels::id_of(pod.metadata.labels.as_ref())
}

/// # Errors
/// When the API server cannot be addressed at all.
pub async fn watch(inner: Arc<Inner>) -> Result<ChangeStream, RuntimeError> {
    let changes = inner.changes().await?;
    let repairer = Repairer::new(inner.clone()).await?;
    let told = stream::unfold((inner, changes), |(inner, mut changes)| async {
        let id = match changes.recv().await {
            Ok(id) => id,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::info!(missed, "a reader of changes was too slow");
                None
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((Change { id }, (inner, changes)))
    });
    let first = stream::once(async { Change { id: None } });
    let repairing = stream::once(repairer.run()).map(|never| match never {});
    Ok(Box::pin(stream::select(first.chain(told), repairing)))
}
