//! Keeps the network policies of boxes: restores deleted ones, because a box without one is open,
//! and applies those again that do not exclude the present addresses of the cluster's nodes.
//!
//! * I1. Whenever the watch has listed all policies again, all boxes are compared with them, so
//!   that a deletion during a gap is found.
//! * I2. A policy that failed to apply is tried again, with growing pauses, until it succeeds or the
//!   box is gone. The other boxes are not affected.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{NetworkPolicy, Retries, RuntimeError};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::networking::v1::NetworkPolicy as PolicyObject;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;

use crate::box_state::BoxState;
use crate::cluster::ApiError;
use crate::context::Context;
use crate::node_watch::{Published, unlisted};
use crate::{labels, objects};

/// The longest pause until failed work is looked at again.
const RETRY: Duration = Duration::from_secs(2);

type PolicyMetadata = PartialObjectMeta<PolicyObject>;

/// Watches the boxes' policies and the nodes' addresses.
pub struct Repairer {
    context: Arc<Context>,
    events: BoxStream<'static, Result<Event<PolicyMetadata>, watcher::Error>>,
    nodes: watch::Receiver<Published>,
    /// The policies that exist, with the nodes' addresses that each excludes.
    policies: BTreeMap<EnvironmentId, String>,
    /// A list is complete and not compared with the boxes yet.
    is_unchecked: bool,
    /// Boxes without their policy.
    missing: BTreeSet<EnvironmentId>,
    /// Boxes whose policy excludes other addresses than the nodes have now.
    outdated: BTreeSet<EnvironmentId>,
    retries: Retries,
}

impl Repairer {
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn new(context: Arc<Context>) -> Result<Self, RuntimeError> {
        let policies: Api<PolicyMetadata> = Api::all(context.cluster.client().await?.clone());
        let selector = labels::selector(&context.config.deployment);
        let configuration = watcher::Config::default().labels(&selector);
        let events = watcher::watcher(policies, configuration);
        let nodes = context.node_watch.subscribe(&context.cluster).await?;
        Ok(Self {
            context,
            events: events.default_backoff().boxed(),
            nodes,
            policies: BTreeMap::new(),
            is_unchecked: false,
            missing: BTreeSet::new(),
            outdated: BTreeSet::new(),
            retries: Retries::default(),
        })
    }

    pub async fn run(mut self) -> Infallible {
        loop {
            let has_work =
                self.is_unchecked || !self.missing.is_empty() || !self.outdated.is_empty();
            tokio::select! {
                Some(event) = self.events.next() => self.handle(event),
                Ok(()) = self.nodes.changed() => self.compare_nodes(),
                () = tokio::time::sleep(RETRY), if has_work => {}
                // The watches never end.
                else => return std::future::pending().await,
            }
            if self.is_unchecked {
                match self.context.boxes_without_policy(&self.policies).await {
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
            // The watch may have found a policy that could not be applied.
            self.retries
                .retain(|id| self.missing.contains(id) || self.outdated.contains(id));
            let now = Instant::now();
            let wanted = self.missing.union(&self.outdated);
            let due: Vec<EnvironmentId> = wanted
                .filter(|id| self.retries.is_due(id, now))
                .cloned()
                .collect();
            for id in due {
                self.apply(&id).await;
            }
        }
    }

    fn handle(&mut self, event: Result<Event<PolicyMetadata>, watcher::Error>) {
        match event {
            // The boxes are compared at the end of this list.
            Ok(Event::Init) => {
                self.policies.clear();
                self.is_unchecked = false;
            }
            Ok(Event::InitApply(policy)) => self.record_policy(&policy),
            Ok(Event::InitDone) => {
                self.is_unchecked = true;
                self.compare_nodes();
            }
            Ok(Event::Delete(policy)) => {
                if let Some(id) = labels::id_of(policy.metadata.labels.as_ref()) {
                    self.policies.remove(&id);
                    self.missing.insert(id);
                }
            }
            Ok(Event::Apply(policy)) => {
                self.record_policy(&policy);
                self.compare_nodes();
            }
            Err(error) => tracing::info!(
                error = %ErrorChain(&error),
                "the watch of network policies was interrupted"
            ),
        }
    }

    /// Notes that a policy exists, and which addresses it excludes.
    fn record_policy(&mut self, policy: &PolicyMetadata) {
        if let Some(id) = labels::id_of(policy.metadata.labels.as_ref()) {
            let excluded = objects::excluded_nodes(policy.metadata.annotations.as_ref());
            self.policies.insert(id, excluded.to_owned());
        }
    }

    /// Finds the policies that exclude other addresses than the nodes have now.
    fn compare_nodes(&mut self) {
        let present = {
            let published = self.nodes.borrow_and_update();
            let Some(addresses) = published.as_ref() else {
                return;
            };
            objects::nodes_annotation(&unlisted(addresses, &self.context.config))
        };
        let outdated = self.policies.iter();
        self.outdated = outdated
            .filter(|(_, excluded)| **excluded != present)
            .map(|(id, _)| id.clone())
            .collect();
    }

    async fn apply(&mut self, id: &EnvironmentId) {
        match self.context.apply_policy(id).await {
            Ok(is_applied) => {
                self.retries.succeeded(id);
                // The watch reports the policy as it is now.
                self.outdated.remove(id);
                if self.missing.remove(id) && is_applied {
                    tracing::warn!(
                        environment.id = %id,
                        "restored the deleted network policy of a box"
                    );
                } else if is_applied {
                    tracing::info!(
                        environment.id = %id,
                        "closed the present addresses of the nodes in the network policy of a box"
                    );
                }
            }
            Err(error) => {
                let pause = self.retries.failed(id, Instant::now());
                tracing::error!(
                    error = %ErrorChain(&error),
                    environment.id = %id,
                    retry_after = ?pause,
                    "could not apply the network policy of a box"
                );
            }
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
        policies: &BTreeMap<EnvironmentId, String>,
    ) -> Result<BTreeSet<EnvironmentId>, ApiError> {
        let selector = labels::selector(&self.config.deployment);
        let namespaces = self.cluster.namespaces().await?;
        let namespaces = self.cluster.list(&namespaces, Some(&selector)).await?;
        Ok(namespaces
            .iter()
            .filter(|namespace| required_policy(BoxState::read(namespace)).is_some())
            .filter_map(|namespace| labels::id_of(namespace.metadata.labels.as_ref()))
            .filter(|id| !policies.contains_key(id))
            .collect())
    }

    /// Applies the policy that a box must have; `false` for a box that is being removed.
    pub async fn apply_policy(&self, id: &EnvironmentId) -> Result<bool, ApiError> {
        let Some((policy, owner)) = self.box_state(id).await?.and_then(required_policy) else {
            return Ok(false);
        };
        let nodes = self.unlisted_nodes().await?;
        let policies = self.cluster.box_objects::<PolicyObject>(id).await?;
        let manifest = objects::network_policy(&self.config, id, owner.as_ref(), &policy, &nodes);
        self.cluster.apply(&policies, &manifest).await?;
        Ok(true)
    }
}
