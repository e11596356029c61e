//! One watch of the deployment's Pods for each driver, shared by all callers that wait for a
//! change.
//!
//! The watch begins with its first subscriber and ends with the driver.
//!
//! * I1. After every gap (a lost connection, a list from the start) subscribers receive `None`:
//!   any box may have changed.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OnceCell, broadcast};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::labels;

/// Changes that are queued for a slow subscriber. More changes become an error for it.
const CAPACITY: usize = 1_024;

/// The box that may have changed; `None`: any box may have.
pub type Changes = broadcast::Receiver<Option<EnvironmentId>>;

#[derive(Debug, Default)]
pub struct PodWatch(OnceCell<Started>);

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

impl PodWatch {
    /// Changes from now on.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn subscribe(
        &self,
        cluster: &Cluster,
        deployment: &str,
    ) -> Result<Changes, RuntimeError> {
        let started = self
            .0
            .get_or_try_init(|| async {
                let pods: Api<PartialObjectMeta<Pod>> = Api::all(cluster.client().await?.clone());
                let selector = labels::selector(deployment);
                let (changes, _) = broadcast::channel(CAPACITY);
                let task = tokio::task::spawn(publish_changes(pods, selector, changes.clone()));
                Ok::<_, RuntimeError>(Started { changes, task })
            })
            .await?;
        Ok(started.changes.subscribe())
    }
}

/// Never ends: after an error the watcher lists and watches again, with growing pauses.
async fn publish_changes(
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
            Ok(Event::Apply(pod) | Event::Delete(pod)) => {
                match labels::id_of(pod.metadata.labels.as_ref()) {
                    Some(id) => Some(id),
                    None => continue,
                }
            }
            Ok(Event::InitApply(_)) => continue,
            Ok(Event::Init | Event::InitDone) => None,
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), "the watch of Pods was interrupted");
                None
            }
        };
        // An error means that there is no subscriber now, and a later one lists first.
        let _ = changes.send(change);
    }
}

/// Waits until the box may have changed, and at most until `deadline`.
pub async fn wait_for_change(id: &EnvironmentId, changes: &mut Changes, deadline: Instant) {
    let changed = async {
        loop {
            match changes.recv().await {
                Ok(Some(changed)) if changed != *id => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                // The watch has ended: only the deadline is left.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    };
    let _ = tokio::time::timeout_at(deadline, changed).await;
}
