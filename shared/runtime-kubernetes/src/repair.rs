//! Restores deleted network policies: a box without one is open.
//!
//! * I1. Whenever the watch has listed all policies again, all boxes are compared with them, so
//!   that a deletion during a gap is found.
//! * I2. A failed restore is retried until it succeeds or the box is gone.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{NetworkPolicy, RuntimeError};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::networking::v1::NetworkPolicy as PolicyObject;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};

use crate::box_state::BoxState;
use crate::cluster::ApiError;
use crate::context::Context;
use crate::{labels, objects};

/// The pause after a failed restore.
const RETRY: Duration = Duration::from_secs(2);

type PolicyMetadata = PartialObjectMeta<PolicyObject>;

/// Watches the boxes' policies.
pub struct Repairer {
    context: Arc<Context>,
    events: BoxStream<'static, Result<Event<PolicyMetadata>, watcher::Error>>,
    /// The policies of the list in progress that have arrived.
    listed: BTreeSet<EnvironmentId>,
    /// A list is complete and not compared with the boxes yet.
    is_unchecked: bool,
    /// Boxes without their policy.
    missing: BTreeSet<EnvironmentId>,
}

impl Repairer {
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn new(context: Arc<Context>) -> Result<Self, RuntimeError> {
        let policies: Api<PolicyMetadata> = Api::all(context.cluster.client().await?.clone());
        let selector = labels::selector(&context.config.deployment);
        let configuration = watcher::Config::default().labels(&selector);
        let events = watcher::watcher(policies, configuration);
        Ok(Self {
            context,
            events: events.default_backoff().boxed(),
            listed: BTreeSet::new(),
            is_unchecked: false,
            missing: BTreeSet::new(),
        })
    }

    pub async fn run(mut self) -> Infallible {
        loop {
            let has_work = self.is_unchecked || !self.missing.is_empty();
            tokio::select! {
                Some(event) = self.events.next() => self.handle(event),
                () = tokio::time::sleep(RETRY), if has_work => {}
                // The watcher never ends.
                else => return std::future::pending().await,
            }
            if self.is_unchecked {
                match self.context.boxes_without_policy(&self.listed).await {
                    Ok(found) => {
                        self.missing.extend(found);
                        self.is_unchecked = false;
                    }
                    Err(error) => tracing::warn!(
                        error = %ErrorChain(&error),
                        "could not compare network policies with boxes"
                    ),
                }
            }
            for id in self.missing.clone() {
                match self.context.restore_policy(&id).await {
                    Ok(()) => _ = self.missing.remove(&id),
                    Err(error) => {
                        tracing::error!(
                            error = %ErrorChain(&error),
                            environment.id = %id,
                            "could not restore the network policy of a box"
                        );
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: Result<Event<PolicyMetadata>, watcher::Error>) {
        let id_of = |policy: &PolicyMetadata| labels::id_of(policy.metadata.labels.as_ref());
        match event {
            // The boxes are compared at the end of this list.
            Ok(Event::Init) => {
                self.listed.clear();
                self.is_unchecked = false;
            }
            Ok(Event::InitApply(policy)) => self.listed.extend(id_of(&policy)),
            Ok(Event::InitDone) => self.is_unchecked = true,
            Ok(Event::Delete(policy)) => self.missing.extend(id_of(&policy)),
            Ok(Event::Apply(_)) => {}
            Err(error) => tracing::info!(
                error = %ErrorChain(&error),
                "the watch of network policies was interrupted"
            ),
        }
    }
}

/// The policy that a box must have, and its owner; `None` for a box that is being removed.
fn required_policy(state: BoxState) -> Option<(NetworkPolicy, Option<UserId>)> {
    if state.is_terminating() {
        return None;
    }
    Some((state.policy?, state.owner))
}

impl Context {
    async fn boxes_without_policy(
        &self,
        policies: &BTreeSet<EnvironmentId>,
    ) -> Result<BTreeSet<EnvironmentId>, ApiError> {
        let selector = labels::selector(&self.config.deployment);
        let namespaces = self.cluster.namespaces().await?;
        let namespaces = self.cluster.list(&namespaces, Some(&selector)).await?;
        Ok(namespaces
            .iter()
            .filter(|namespace| required_policy(BoxState::read(namespace)).is_some())
            .filter_map(|namespace| labels::id_of(namespace.metadata.labels.as_ref()))
            .filter(|id| !policies.contains(id))
            .collect())
    }

    async fn restore_policy(&self, id: &EnvironmentId) -> Result<(), ApiError> {
        let Some((policy, owner)) = self.box_state(id).await?.and_then(required_policy) else {
            return Ok(());
        };
        let policies = self.cluster.box_objects::<PolicyObject>(id).await?;
        let manifest = objects::network_policy(&self.config, id, owner.as_ref(), &policy);
        self.cluster.apply(&policies, &manifest).await?;
        tracing::warn!(environment.id = %id, "restored the deleted network policy of a box");
        Ok(())
    }
}
