//! Creates a box.
//!
//! * I1. The namespace is created first, with the generation: a caller with an older one is
//!   refused before it changes anything.
//! * I2. The network policy and the pull secrets exist before the Pod.
//! * I3. Every step applies an object whose name follows from the id. Therefore a call completes an
//!   interrupted one, and concurrent calls have the same result.
//! * I4. A spec that is not warm completes the claim of the warm box of its id ([`crate::claim`]).
//! * I5. A box that has run, failed or been stopped never gets another Pod.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, BoxSpec, NetworkPolicy, Observed, RuntimeError};
use chrono::Utc;
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy as PolicyObject;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::Value;
use tokio::time::Instant;

use crate::box_state::{BlockedSince, BoxState, Failure, StateChange};
use crate::context::Context;
use crate::objects::MAIN;
use crate::observe::Snapshot;
use crate::phase::{self, is_rejected_by_node};
use crate::pod_watch::{Changes, wait_for_change};
use crate::rejection::{self, Rejection};
use crate::{objects, pod, pull_secret, stages};

/// Attempts to create or update the namespace. Each failure is another replica's progress.
const ATTEMPTS: u32 = 20;
/// The pause before a retry that waits for an object that was just created.
const RETRY_SOON: Duration = Duration::from_millis(20);
/// The pause before a retry for which the cluster may need seconds.
const RETRY_LATER: Duration = Duration::from_millis(500);
/// The pause between two connection attempts: boxd listens a few milliseconds after its start.
const READY_POLL: Duration = Duration::from_millis(5);
/// The longest pause between two reads, for when the watch misses a change.
const POLL: Duration = Duration::from_secs(1);

/// The creation of a box did not succeed.
enum EnsureError {
    /// The box can never run.
    Failed(Failure),
    /// A later call may succeed.
    Error(RuntimeError),
}

impl<E: Into<RuntimeError>> From<E> for EnsureError {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn cluster_error(message: &str) -> RuntimeError {
    RuntimeError::Cluster {
        operation: "ensure",
        message: message.to_owned(),
    }
}

impl Context {
    pub async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        let deadline = Instant::now() + Duration::from_secs(self.config.start_deadline_s);
        let mut changes = self.changes().await?;
        let policy = spec.network_policy(self.config.default_allow_internet);
        let state = self.ensure_namespace(spec, generation, &policy).await?;
        let may_create = state.failure.is_none() && state.started_at.is_none() && !state.is_stopped;
        if may_create && self.needs_pod(id).await? {
            match self.create(spec, &policy, deadline).await {
                Ok(()) => {}
                Err(EnsureError::Error(error)) => return Err(error),
                Err(EnsureError::Failed(failure)) => {
                    self.record(id, &StateChange::Failed(failure)).await?;
                }
            }
        }
        loop {
            let observed = self
                .wait_until_settled(spec, &mut changes, deadline)
                .await?;
            let BoxPhase::Running { address, .. } = observed.phase else {
                return Ok(observed);
            };
            if !state.is_warm || spec.warm {
                return Ok(observed);
            }
            let completed = self.complete_claim(spec, generation, &policy, address);
            match completed.await {
                // Its command may have ended, which the cluster learns later.
                Err(RuntimeError::Unreachable(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_LATER).await;
                }
                outcome => return outcome.map(|()| observed),
            }
        }
    }

    /// Whether a Pod must be created. One that its node rejected is deleted first.
    async fn needs_pod(&self, id: &EnvironmentId) -> Result<bool, RuntimeError> {
        let Some(pod) = self.pod(id).await? else {
            return Ok(true);
        };
        if !is_rejected_by_node(&pod) {
            return Ok(false);
        }
        let pods = self.cluster.box_pods(id).await?;
        let at_once = DeleteParams::default().grace_period(0);
        let this_pod = at_once.preconditions(Preconditions {
            uid: pod.metadata.uid,
            resource_version: None,
        });
        match self.cluster.delete(&pods, MAIN, &this_pod).await {
            // Another replica has replaced it.
            Err(error) if error.is_conflict() => Ok(false),
            outcome => outcome.map(|_| true).map_err(RuntimeError::from),
        }
    }

    /// Brings the box's namespace to this generation; creates it if there is none.
    async fn ensure_namespace(
        &self,
        spec: &BoxSpec,
        generation: i64,
        policy: &NetworkPolicy,
    ) -> Result<BoxState, RuntimeError> {
        let id = &spec.id;
        let namespaces = self.cluster.namespaces().await?;
        let manifest = objects::namespace(&self.config, spec, generation, policy);
        let namespace: Namespace =
            serde_json::from_value(manifest).map_err(|error| cluster_error(&error.to_string()))?;
        for _ in 0..ATTEMPTS {
            let state = match self.box_state(id).await? {
                Some(state) => state,
                None => {
                    let parameters = PostParams::default();
                    let created = namespaces.create(&parameters, &namespace);
                    match self.cluster.call("create the namespace", created).await {
                        Ok(namespace) => return Ok(BoxState::read(&namespace)),
                        Err(error) if error.is_conflict() => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            if state.is_terminating() {
                return Err(cluster_error("the box is being removed"));
            }
            if state.generation > generation {
                return Err(RuntimeError::Fenced {
                    given: generation,
                    held: state.generation,
                });
            }
            if state.generation == generation {
                return Ok(state);
            }
            // The next round reads the result.
            self.record(id, &StateChange::Generation(generation))
                .await?;
        }
        Err(cluster_error(
            "a namespace with the box's name exists and is not of this deployment: delete it",
        ))
    }

    async fn create(
        &self,
        spec: &BoxSpec,
        policy: &NetworkPolicy,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let id = &spec.id;
        let config = &self.config;
        let nodes = self.unlisted_nodes().await?;
        let (policies, quotas, accounts, secrets, services, endpoints) = tokio::try_join!(
            self.cluster.box_objects::<PolicyObject>(id),
            self.cluster.box_objects::<ResourceQuota>(id),
            self.cluster.box_objects::<ServiceAccount>(id),
            self.cluster.box_objects::<Secret>(id),
            self.cluster.box_objects::<Service>(id),
            self.cluster.system_services(),
        )?;
        let owner = (!spec.warm).then_some(&spec.owner);
        let (policy, quota, account, secret, service, endpoint) = (
            objects::network_policy(config, id, owner, policy, &nodes),
            objects::quota(config, id),
            objects::service_account(config, id),
            objects::secret(config, spec),
            objects::service(config, id),
            objects::endpoint(config, id),
        );
        tokio::try_join!(
            self.cluster.apply(&policies, &policy),
            self.cluster.apply(&quotas, &quota),
            self.cluster.apply(&accounts, &account),
            self.cluster.apply(&secrets, &secret),
            self.cluster.apply(&services, &service),
            self.cluster.apply(&endpoints, &endpoint),
        )?;
        for name in &config.shared_pull_secrets {
            self.copy_shared_pull_secret(id, &secrets, name).await?;
        }
        let logins = self.logins(spec).await?;
        if !logins.is_empty() {
            let secret = objects::pull_secret(config, id, &logins);
            self.cluster.apply(&secrets, &secret).await?;
        }
        let pods: Api<Pod> = self.cluster.box_pods(id).await?;
        let pod = pod::pod(config, spec, !logins.is_empty());
        self.create_pod(&pods, &pod, deadline).await
    }

    /// The logins of the box's pulls: the deployment's for boxd's image, and the owner's for its
    /// registry.
    async fn logins(&self, spec: &BoxSpec) -> Result<BTreeMap<String, Value>, RuntimeError> {
        let mut logins = BTreeMap::new();
        for name in &self.config.image_pull_secrets {
            let secret = self.system_secret("image_pull_secrets", name).await?;
            logins.extend(pull_secret::boxd_login(&self.config.boxd_image, &secret));
        }
        logins.extend(pull_secret::owner_login(spec));
        Ok(logins)
    }

    /// A Secret of the system namespace that this field of the configuration names.
    async fn system_secret(&self, field: &str, name: &str) -> Result<Secret, RuntimeError> {
        let secrets: Api<Secret> = self.cluster.system_objects().await?;
        let secret = self.cluster.get(&secrets, name).await?;
        let namespace = &self.config.system_namespace;
        secret.ok_or_else(|| cluster_error(&format!("{field}: {namespace}/{name} does not exist")))
    }

    async fn copy_shared_pull_secret(
        &self,
        id: &EnvironmentId,
        secrets: &Api<Secret>,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let original = self.system_secret("shared_pull_secrets", name).await?;
        let original =
            serde_json::to_value(&original).map_err(|error| cluster_error(&error.to_string()))?;
        let copy = objects::shared_pull_secret(&self.config, id, name, &original);
        self.cluster.apply(secrets, &copy).await?;
        Ok(())
    }

    async fn create_pod(
        &self,
        pods: &Api<Pod>,
        manifest: &Value,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        loop {
            let Err(error) = self.cluster.apply(pods, manifest).await else {
                return Ok(());
            };
            let rejection = match error.refusal() {
                Some((code, message)) => rejection::classify(code, message),
                None => Rejection::Unknown,
            };
            let is_late = Instant::now() >= deadline;
            match rejection {
                Rejection::Final(failure) => return Err(EnsureError::Failed(failure)),
                Rejection::FinalAtDeadline(failure) if is_late => {
                    return Err(EnsureError::Failed(failure));
                }
                Rejection::FinalAtDeadline(_) => tokio::time::sleep(RETRY_LATER).await,
                Rejection::Retry if !is_late => tokio::time::sleep(RETRY_SOON).await,
                Rejection::Retry | Rejection::Unknown => return Err(error.into()),
            }
        }
    }

    /// Waits until the box has ended, has failed, or runs with a boxd that answers. At the deadline
    /// it returns the box as observed.
    async fn wait_until_settled(
        &self,
        spec: &BoxSpec,
        changes: &mut Changes,
        deadline: Instant,
    ) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        loop {
            let Some(snapshot) = self.snapshot(id).await? else {
                return Err(cluster_error("the box was removed at the same time"));
            };
            let Snapshot {
                mut observed,
                state,
                pod,
            } = snapshot;
            let is_late = Instant::now() >= deadline;
            match observed.phase.clone() {
                BoxPhase::Running { .. } if state.started_at.is_some() => return Ok(observed),
                BoxPhase::Running {
                    address,
                    started_at,
                } => match self.probe(spec, address).await {
                    Ok(()) => {
                        self.record(id, &StateChange::Started(started_at)).await?;
                        if let Some(pod) = &pod {
                            stages::record(pod, Utc::now());
                        }
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
                BoxPhase::Failed { reason, message } if state.failure.is_none() => {
                    tracing::info!(
                        environment.id = %id,
                        detail = pod.as_ref().and_then(phase::start_error),
                        failure = message,
                        "a box failed to start"
                    );
                    // The kubelet's next status may have no reason.
                    let failure = Failure { reason, message };
                    self.record(id, &StateChange::Failed(failure)).await?;
                }
                BoxPhase::Starting { .. } => {
                    self.record_blocked(id, &state, pod.as_ref()).await?;
                    // The next `ensure` replaces a Pod that its node rejected.
                    if is_late || pod.as_ref().is_some_and(is_rejected_by_node) {
                        return Ok(observed);
                    }
                    wait_for_change(id, changes, deadline.min(Instant::now() + POLL)).await;
                }
                _ => return Ok(observed),
            }
        }
    }
}

impl Context {
    /// Records since when a container of the box has been blocked. A failure that lasts fails the
    /// box ([`crate::blocked`]).
    async fn record_blocked(
        &self,
        id: &EnvironmentId,
        state: &BoxState,
        pod: Option<&Pod>,
    ) -> Result<(), RuntimeError> {
        let Some(blocked) = pod.and_then(phase::blocked) else {
            return Ok(());
        };
        let since = BlockedSince {
            key: blocked.key,
            since: Utc::now(),
        };
        let change = StateChange::Blocked(since);
        if !change.changes(state) {
            return Ok(());
        }
        // The user's message does not contain the cause.
        let is_deployment_image = blocked.is_deployment_image;
        tracing::warn!(
            environment.id = %id,
            is_deployment_image,
            detail = blocked.detail,
            "a box could not use an image"
        );
        self.record(id, &change).await?;
        Ok(())
    }
}
