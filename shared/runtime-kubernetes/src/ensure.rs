//! Makes a box.
//!
//! * I1. The namespace comes first, and with it the generation: whoever has an older one is
//!   refused before it changes anything.
//! * I2. The network policy is there before the Pod: the cluster's network plugin lets
//!   nothing of the user's run without it.
//! * I3. Every step is an apply under a name that follows from the id: after a process that
//!   was killed at any line the next one goes on, and two at once do the same.
//! * I4. A box that has run, failed or been stopped is never given another Pod.

use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, BoxSpec, Observed, RuntimeError};
use chrono::Utc;
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::Value;
use tokio::sync::broadcast::Receiver;
use tokio::time::Instant;

use crate::driver::Inner;
use crate::facts::{BlockedSince, Fact, Facts, Failure};
use crate::objects::MAIN;
use crate::observe::Look;
use crate::phase::{self, is_rejected_by_node};
use crate::refusal::{self, Refusal};
use crate::{objects, pod};

/// Others' progress that is waited out before a claim is given up.
const ATTEMPTS: u32 = 20;
/// What the cluster has not caught up with, it has in a moment.
const NOT_YET: Duration = Duration::from_millis(20);
/// Between two attempts where the cluster may need seconds.
const STILL_NOT: Duration = Duration::from_millis(500);
/// boxd listens a few milliseconds after its start.
const READY_POLL: Duration = Duration::from_millis(5);
/// A change may be missed.
const LOOK: Duration = Duration::from_secs(1);

/// Where making a box stopped.
enum Halt {
    /// It will never run.
    Failed(Failure),
    /// Try again.
    Error(RuntimeError),
}

impl<E: Into<RuntimeError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn refused(message: &str) -> RuntimeError {
    RuntimeError::Cluster {
        operation: "ensure",
        message: message.to_owned(),
    }
}

impl Inner {
    pub async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        let deadline = Instant::now() + Duration::from_secs(self.config.start_deadline_s);
        let mut changes = self.changes().await?;
        let policy = spec.isolation.network_policy.clone();
        let policy = policy.unwrap_or_else(|| {
            agentbox_runtime::NetworkPolicy::unspecified(self.config.default_allow_internet)
        });
        let facts = self.claim(id, generation, &policy).await?;
        let is_to_make = facts.failure.is_none() && facts.started_at.is_none() && !facts.is_stopped;
        if is_to_make && self.lacks_pod(id).await? {
            match self.make(spec, &policy, deadline).await {
                Ok(()) => {}
                Err(Halt::Error(error)) => return Err(error),
                Err(Halt::Failed(failure)) => {
                    self.learn(id, &Fact::Failed(failure)).await?;
                }
            }
        }
        self.wait_until_settled(id, &mut changes, deadline).await
    }

    /// Whether a Pod is to be made. One that its node refused to admit is removed first.
    async fn lacks_pod(&self, id: &EnvironmentId) -> Result<bool, RuntimeError> {
        let Some(pod) = self.pod(id).await? else {
            return Ok(true);
        };
        if !is_rejected_by_node(&pod) {
            return Ok(false);
        }
        let pods = self.cluster.pods_of(id).await?;
        let at_once = DeleteParams::default().grace_period(0);
        let this_one = at_once.preconditions(Preconditions {
            uid: pod.metadata.uid,
            resource_version: None,
        });
        match self.cluster.delete(&pods, MAIN, &this_one).await {
            // Another replica has replaced it.
            Err(error) if error.is_conflict() => Ok(false),
            outcome => outcome.map(|_| true).map_err(RuntimeError::from),
        }
    }

    /// The box's namespace at this generation; made if there is none.
    async fn claim(
        &self,
        id: &EnvironmentId,
        generation: i64,
        policy: &agentbox_runtime::NetworkPolicy,
    ) -> Result<Facts, RuntimeError> {
        let namespaces = self.cluster.namespaces().await?;
        let manifest = objects::namespace(&self.config, id, generation, policy);
        let namespace: Namespace =
            serde_json::from_value(manifest).map_err(|error| refused(&error.to_string()))?;
        for _ in 0..ATTEMPTS {
            let facts = match self.facts(id).await? {
                Some(facts) => facts,
                None => {
                    let parameters = PostParams::default();
                    let made = namespaces.create(&parameters, &namespace);
                    match self.cluster.call("create the namespace", made).await {
                        Ok(namespace) => return Ok(Facts::read(&namespace)),
                        Err(error) if error.is_conflict() => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            if facts.is_going() {
                return Err(refused("the box is being removed"));
            }
            if facts.generation > generation {
                return Err(RuntimeError::Fenced {
                    given: generation,
                    held: facts.generation,
                });
            }
            if facts.generation == generation {
                return Ok(facts);
            }
            // What it became is looked at in the next round.
            self.learn(id, &Fact::Generation(generation)).await?;
        }
        Err(refused(
            "a namespace of the box's name is there and not ours",
        ))
    }

    async fn make(
        &self,
        spec: &BoxSpec,
        policy: &agentbox_runtime::NetworkPolicy,
        deadline: Instant,
    ) -> Result<(), Halt> {
        let id = &spec.id;
        let config = &self.config;
        let (policies, quotas, accounts, secrets, services, endpoints) = tokio::try_join!(
            self.cluster.of_box::<NetworkPolicy>(id),
            self.cluster.of_box::<ResourceQuota>(id),
            self.cluster.of_box::<ServiceAccount>(id),
            self.cluster.of_box::<Secret>(id),
            self.cluster.of_box::<Service>(id),
            self.cluster.system_services(),
        )?;
        let manifests = (
            objects::network_policy(config, id, policy),
            objects::quota(config, id),
            objects::service_account(config, id),
            objects::secret(config, spec),
            objects::service(config, id),
            objects::endpoint(config, id),
        );
        tokio::try_join!(
            self.cluster.apply(&policies, &manifests.0),
            self.cluster.apply(&quotas, &manifests.1),
            self.cluster.apply(&accounts, &manifests.2),
            self.cluster.apply(&secrets, &manifests.3),
            self.cluster.apply(&services, &manifests.4),
            self.cluster.apply(&endpoints, &manifests.5),
        )?;
        for name in &config.image_pull_secrets {
            self.copy_pull_secret(id, &secrets, name).await?;
        }
        let pods: Api<Pod> = self.cluster.pods_of(id).await?;
        self.make_pod(&pods, &pod::pod(config, spec), deadline)
            .await
    }

    async fn copy_pull_secret(
        &self,
        id: &EnvironmentId,
        secrets: &Api<Secret>,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let originals: Api<Secret> = self.cluster.of_system().await?;
        let Some(original) = self.cluster.get(&originals, name).await? else {
            let of = &self.config.system_namespace;
            return Err(refused(&format!(
                "the image pull secret {of}/{name} is not there"
            )));
        };
        let original =
            serde_json::to_value(&original).map_err(|error| refused(&error.to_string()))?;
        let copy = objects::pull_secret(&self.config, id, name, &original);
        self.cluster.apply(secrets, &copy).await?;
        Ok(())
    }

    async fn make_pod(
        &self,
        pods: &Api<Pod>,
        manifest: &Value,
        deadline: Instant,
    ) -> Result<(), Halt> {
        loop {
            let Err(error) = self.cluster.apply(pods, manifest).await else {
                return Ok(());
            };
            let refusal = match error.refusal() {
                Some((code, message)) => refusal::classify(code, message),
                None => Refusal::Unknown,
            };
            let is_late = Instant::now() >= deadline;
            match refusal {
                Refusal::Final(failure) => return Err(Halt::Failed(failure)),
                Refusal::FinalIfItLasts(failure) if is_late => return Err(Halt::Failed(failure)),
                Refusal::FinalIfItLasts(_) => tokio::time::sleep(STILL_NOT).await,
                Refusal::NotYet if !is_late => tokio::time::sleep(NOT_YET).await,
                Refusal::NotYet | Refusal::Unknown => return Err(error.into()),
            }
        }
    }

    /// Until it runs and boxd answers, has ended or will never run; or as it is at the
    /// deadline.
    async fn wait_until_settled(
        &self,
        id: &EnvironmentId,
        changes: &mut Receiver<Option<EnvironmentId>>,
        deadline: Instant,
    ) -> Result<Observed, RuntimeError> {
        loop {
            let Some(look) = self.look(id).await? else {
                return Err(refused("the box was removed meanwhile"));
            };
            let Look {
                mut observed,
                facts,
                pod,
            } = look;
            let is_late = Instant::now() >= deadline;
            match observed.phase.clone() {
                BoxPhase::Running { .. } if facts.started_at.is_some() => return Ok(observed),
                BoxPhase::Running {
                    address,
                    started_at,
                } => match self.dial(id, address).await {
                    Ok(_) => {
                        self.learn(id, &Fact::Started(started_at)).await?;
                        return Ok(observed);
                    }
                    Err(error) if is_late => {
                        observed.phase = BoxPhase::Starting {
                            message: format!("boxd does not answer yet: {error}"),
                        };
                        return Ok(observed);
                    }
                    Err(_) => tokio::time::sleep(READY_POLL).await,
                },
                BoxPhase::Failed { reason, message } if facts.failure.is_none() => {
                    // What the kubelet says next may be less.
                    let failure = Failure { reason, message };
                    self.learn(id, &Fact::Failed(failure)).await?;
                }
                BoxPhase::Starting { .. } => {
                    self.record_blocked(id, &facts, pod.as_ref()).await?;
                    // The next `ensure` replaces a Pod that its node rejected.
                    if is_late || pod.as_ref().is_some_and(is_rejected_by_node) {
                        return Ok(observed);
                    }
                    wait_for(id, changes, deadline.min(Instant::now() + LOOK)).await;
                }
                _ => return Ok(observed),
            }
        }
    }
}

impl Inner {
    /// Records since when a container of the box has been blocked: it fails the box when it
    /// lasts ([`crate::image`]).
    async fn record_blocked(
        &self,
        id: &EnvironmentId,
        facts: &Facts,
        pod: Option<&Pod>,
    ) -> Result<(), RuntimeError> {
        let Some(blocked) = pod.and_then(phase::blocked) else {
            return Ok(());
        };
        let since = BlockedSince {
            key: blocked.key,
            since: Utc::now(),
        };
        let fact = Fact::Blocked(since);
        if !fact.changes(facts) {
            return Ok(());
        }
        if blocked.is_ours {
            tracing::warn!(
                environment.id = %id,
                detail = blocked.detail,
                "an image of the deployment could not be used by a box"
            );
        }
        self.learn(id, &fact).await?;
        Ok(())
    }
}

/// Until something of the box may have changed; at the latest until then.
pub async fn wait_for(
    id: &EnvironmentId,
    changes: &mut Receiver<Option<EnvironmentId>>,
    until: Instant,
) {
    let changed = async {
        loop {
            match changes.recv().await {
                Ok(Some(changed)) if changed != *id => {}
                // A gap, or the watch is gone: then it is the time that wakes.
                Ok(_) => return,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => return,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                    return std::future::pending().await;
                }
            }
        }
    };
    let _ = tokio::time::timeout_at(until, changed).await;
}
