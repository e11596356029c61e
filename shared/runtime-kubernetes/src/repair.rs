//! Puts back the network policy of a box that somebody removed it from: without one the box
//! is open.
//!
//! * I1. After every list from the start all boxes are compared with all policies: one that
//!   was removed while nobody looked is found.
//! * I2. What could not be put back is tried again until it could, or the box is gone.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime as seam;
use agentbox_runtime::RuntimeError;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};

use crate::cluster::ApiError;
use crate::driver::Inner;
use crate::facts::Facts;
use crate::{labels, objects};

/// After something could not be put back.
const RETRY: Duration = Duration::from_secs(2);

type PolicyMetadata = PartialObjectMeta<NetworkPolicy>;

/// Follows the boxes' policies.
pub struct Repairer {
    inner: Arc<Inner>,
    events: BoxStream<'static, Result<Event<PolicyMetadata>, watcher::Error>>,
    /// Policies of a list, as far as it has come.
    listed: BTreeSet<EnvironmentId>,
    /// A list has come to its end, and boxes were not compared with it.
    is_unchecked: bool,
    /// Boxes whose policy is gone.
    missing: BTreeSet<EnvironmentId>,
}

impl Repairer {
    /// # Errors
    /// When the API server cannot be addressed at all.
    pub async fn new(inner: Arc<Inner>) -> Result<Self, RuntimeError> {
        let policies: Api<PolicyMetadata> = Api::all(inner.cluster.client().await?.clone());
        let selector = labels::selector(&inner.config.deployment);
        let configuration = watcher::Config::default().labels(&selector);
        let events = watcher::watcher(policies, configuration);
        Ok(Self {
            inner,
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
                Some(event) = self.events.next() => self.note(event),
                () = tokio::time::sleep(RETRY), if has_work => {}
                // The watcher does not end.
                else => return std::future::pending().await,
            }
            if self.is_unchecked {
                match self.inner.boxes_without(&self.listed).await {
                    Ok(found) => {
                        self.missing.extend(found);
                        self.is_unchecked = false;
                    }
                    Err(error) => tracing::warn!(%error, "policies and boxes were not compared"),
                }
            }
            for id in self.missing.clone() {
                match self.inner.restore_policy(&id).await {
                    Ok(()) => _ = self.missing.remove(&id),
                    Err(error) => {
                        tracing::error!(%error, environment.id = %id, "a box has no network policy");
                    }
                }
            }
        }
    }

    fn note(&mut self, event: Result<Event<PolicyMetadata>, watcher::Error>) {
        let id_of = |policy: &PolicyMetadata| labels::id_of(policy.metadata.labels.as_ref());
        match event {
            // What was listed before is not compared any more: this list's end asks for that.
            Ok(Event::Init) => {
                self.listed.clear();
                self.is_unchecked = false;
            }
            Ok(Event::InitApply(policy)) => self.listed.extend(id_of(&policy)),
            Ok(Event::InitDone) => self.is_unchecked = true,
            Ok(Event::Delete(policy)) => self.missing.extend(id_of(&policy)),
            Ok(Event::Apply(_)) => {}
            Err(error) => tracing::info!(%error, "the watch of network policies broke off"),
        }
    }
}

/// What a box must have: nothing is put into one that goes.
fn policy_of(facts: Facts) -> Option<seam::NetworkPolicy> {
    match facts.is_going() {
        true => None,
        false => facts.policy,
    }
}

impl Inner {
    async fn boxes_without(
        &self,
        policies: &BTreeSet<EnvironmentId>,
    ) -> Result<BTreeSet<EnvironmentId>, ApiError> {
        let selector = labels::selector(&self.config.deployment);
        let namespaces = self.cluster.namespaces().await?;
        let namespaces = self.cluster.list(&namespaces, Some(&selector)).await?;
        Ok(namespaces
            .iter()
            .filter(|namespace| policy_of(Facts::read(namespace)).is_some())
            .filter_map(|namespace| labels::id_of(namespace.metadata.labels.as_ref()))
            .filter(|id| !policies.contains(id))
            .collect())
    }

    async fn restore_policy(&self, id: &EnvironmentId) -> Result<(), ApiError> {
        let Some(policy) = self.facts(id).await?.and_then(policy_of) else {
            return Ok(());
        };
        let policies = self.cluster.of_box::<NetworkPolicy>(id).await?;
        let manifest = objects::network_policy(&self.config, id, &policy);
        self.cluster.apply(&policies, &manifest).await?;
        tracing::warn!(environment.id = %id, "a box's network policy was gone, and is there again");
        Ok(())
    }
}
