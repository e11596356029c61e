//! Creates a box.
//!
//! * I1. Only the holder of the box's lock creates or changes it. An image pull, which takes long
//!   and changes no box, runs without the lock; the box is observed again after it.
//! * I2. The network policy is in force before the container starts; nothing of the user
//!   runs in the sandbox itself.
//! * I3. The remains of a killed `ensure` are removed before a box is created, unless its
//!   container runs already: then this waits for boxd only.
//!
//! A newer generation adopts a running box. A box is never created twice, because its user's
//! work would be lost.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, BoxSpec, FailureReason, NetworkPolicy, Observed, RuntimeError};
use chrono::Utc;
use k8s_cri::v1::ContainerState;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::box_state::{BoxLock, BoxState, Failure, Step};
use crate::context::Context;
use crate::cri::CriError;
use crate::error::io_failure;
use crate::image::{self, PullFailure};
use crate::network::BoxNetwork;
use crate::observe::Objects;
use crate::{cgroup, container, output, phase, sandbox, seccomp};

/// The pause between two connection attempts: boxd listens a few milliseconds after its start.
const READY_POLL: Duration = Duration::from_millis(2);
/// Connection attempts for each status request to containerd, which costs more. A container
/// that ends at once never listens.
const ATTEMPTS_PER_STATUS: u32 = 10;

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

impl Context {
    pub async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        let mut pulled = false;
        loop {
            let lock = self.states.lock(id, self.lock_deadline()).await?;
            let objects = self.objects(id).await?;
            let known = self.states.load(id).await?;
            let held = known
                .as_ref()
                .map(|state| state.generation)
                .max(objects.generation());
            if let Some(held) = held.filter(|held| *held > generation) {
                return Err(RuntimeError::Fenced {
                    given: generation,
                    held,
                });
            }
            if pulled && known.is_none() {
                return Err(RuntimeError::Cluster {
                    operation: "ensure",
                    message: "the box was removed during its image pull".to_owned(),
                });
            }
            let is_new = known.is_none();
            let mut state = known.unwrap_or_else(|| BoxState::new(generation, Utc::now()));
            if is_new || state.generation != generation {
                state.generation = generation;
                self.states.save(&lock, id, &state).await?;
            }
            let observed = self.observed(id, &objects, Some(state.clone())).await?;
            if !matches!(observed.phase, BoxPhase::Starting { .. }) {
                return Ok(observed);
            }
            if !pulled && self.cri.image(&spec.image).await?.is_none() {
                state.step = Step::PullingImage;
                self.states.save(&lock, id, &state).await?;
                drop(lock);
                if let Err(failure) = self.pull(&spec.image).await? {
                    return self.fail(id, generation, failure).await;
                }
                pulled = true;
                continue;
            }
            state.step = Step::Starting;
            let created = self
                .create(spec, generation, &objects, &lock, &mut state)
                .await;
            return match created {
                Ok(()) => self.observe(id).await,
                Err(EnsureError::Error(error)) => Err(error),
                Err(EnsureError::Failed(failure)) => {
                    state.failure = Some(failure);
                    self.states.save(&lock, id, &state).await?;
                    self.observe(id).await
                }
            };
        }
    }

    async fn observe(&self, id: &EnvironmentId) -> Result<Observed, RuntimeError> {
        let objects = self.objects(id).await?;
        self.observed(id, &objects, self.states.load(id).await?)
            .await
    }

    /// Records that the box will never run, unless it was removed or has a newer generation.
    async fn fail(
        &self,
        id: &EnvironmentId,
        generation: i64,
        failure: Failure,
    ) -> Result<Observed, RuntimeError> {
        let lock = self.states.lock(id, self.lock_deadline()).await?;
        if let Some(mut state) = self.states.load(id).await?
            && state.generation == generation
        {
            state.failure = Some(failure);
            self.states.save(&lock, id, &state).await?;
        }
        self.observe(id).await
    }

    async fn pull(&self, image: &str) -> Result<Result<(), Failure>, RuntimeError> {
        let deadline = Duration::from_secs(self.config.image_pull_deadline_s);
        let Err(error) = self.cri.pull_image(image, deadline).await else {
            return Ok(Ok(()));
        };
        tracing::warn!(image, error = %ErrorChain(&error), "an image could not be pulled");
        match image::classify_pull(image, &error, deadline) {
            PullFailure::Final(message) => Ok(Err(Failure {
                reason: FailureReason::ImagePull,
                message,
            })),
            PullFailure::Transient(message) => Err(RuntimeError::Cluster {
                operation: "image pull",
                message,
            }),
        }
    }

    async fn create(
        &self,
        spec: &BoxSpec,
        generation: i64,
        objects: &Objects,
        lock: &BoxLock,
        state: &mut BoxState,
    ) -> Result<(), EnsureError> {
        let id = &spec.id;
        let running = objects
            .container()
            .filter(|c| c.state() == ContainerState::ContainerRunning);
        if let (Some(container), Some(network)) = (running, state.network.clone()) {
            return self
                .wait_until_ready(id, &container.id, &network, lock, state)
                .await;
        }
        if !objects.sandboxes.is_empty() || state.network.is_some() {
            self.firewall.remove(id, state.network.as_ref()).await?;
            self.remove_sandboxes(objects).await?;
            state.network = None;
        }
        if let Some(image) = self.cri.image(&spec.image).await?
            && let Some(message) =
                image::user_problem(&image, spec.isolation.security_context.as_ref())
        {
            return Err(EnsureError::Failed(Failure {
                reason: FailureReason::ImageInvalid,
                message,
            }));
        }
        let policy = spec
            .isolation
            .network_policy
            .clone()
            .unwrap_or_else(|| NetworkPolicy::unspecified(self.config.default_allow_internet));
        self.states.save(lock, id, state).await?;
        let output = self.output_directory(id);
        let (pids, limits) = (spec.resources.pids, sandbox::limits(spec));
        cgroup::create(&self.config.deployment, id, pids, limits)
            .map_err(|error| io_failure("control group", &error))?;
        output::mount_fresh(&output).map_err(|error| io_failure("output directory", &error))?;

        let sandbox_config = sandbox::config(&self.config, spec, generation);
        let sandbox = self.run_sandbox(spec, sandbox_config.clone()).await?;
        let (network, seccomp) = self.read_sandbox(&sandbox).await?;
        state.network = Some(network.clone());
        state.policy = Some(policy.clone());
        self.states.save(lock, id, state).await?;

        let files = container::HostFiles {
            output: &output,
            seccomp: &seccomp,
        };
        let container_config = container::config(&self.config, spec, generation, files);
        let install = async {
            self.firewall
                .install(id, &network, &policy)
                .await
                .map_err(EnsureError::from)
        };
        let create = async {
            self.cri
                .create_container(&sandbox, container_config, sandbox_config)
                .await
                .map_err(|error| start_failure(spec, error))
        };
        let ((), container) = tokio::try_join!(install, create)?;
        let deadline = Duration::from_secs(self.config.start_deadline_s);
        self.cri
            .start_container(&container, deadline)
            .await
            .map_err(|error| start_failure(spec, error))?;
        self.wait_until_ready(id, &container, &network, lock, state)
            .await
    }

    async fn run_sandbox(
        &self,
        spec: &BoxSpec,
        config: k8s_cri::v1::PodSandboxConfig,
    ) -> Result<String, EnsureError> {
        let within = Duration::from_secs(self.config.sandbox_deadline_s);
        let deadline = Instant::now() + within;
        loop {
            let handler = sandbox::runtime_handler(spec);
            match self.cri.run_sandbox(config.clone(), handler, within).await {
                Ok(id) => return Ok(id),
                // containerd is still creating or removing the sandbox of a killed `ensure`. The
                // sandbox appears, or its name becomes free.
                Err(error) if error.message().contains("is reserved for") => {
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                    self.remove_sandboxes(&self.objects(&spec.id).await?)
                        .await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(start_failure(spec, error)),
            }
        }
    }

    /// The sandbox's network, and the file of the system-call filter for its container.
    async fn read_sandbox(&self, sandbox: &str) -> Result<(BoxNetwork, PathBuf), RuntimeError> {
        let status = self.cri.sandbox_status(sandbox).await?;
        let info = status.info.get("info").map_or("", String::as_str);
        let network =
            BoxNetwork::read(info, &self.config.bridge).map_err(|error| RuntimeError::Cluster {
                operation: "sandbox network",
                message: error.to_string(),
            })?;
        let filter = seccomp::restrict(info).map_err(|error| RuntimeError::Cluster {
            operation: "system-call filter",
            message: error.to_string(),
        })?;
        let stored = seccomp::store(&self.config.state_dir, &filter)
            .map_err(|error| io_failure("system-call filter", &error))?;
        Ok((network, stored))
    }

    /// Waits until boxd accepts a connection, or the container has ended.
    async fn wait_until_ready(
        &self,
        id: &EnvironmentId,
        container: &str,
        network: &BoxNetwork,
        lock: &BoxLock,
        state: &mut BoxState,
    ) -> Result<(), EnsureError> {
        let within = Duration::from_secs(self.config.start_deadline_s);
        let deadline = Instant::now() + within;
        let address = (network.address, DEFAULT_PORT);
        let mut attempts = 0u32;
        loop {
            let attempt = tokio::time::timeout_at(deadline, TcpStream::connect(address)).await;
            if matches!(attempt, Ok(Ok(_))) {
                break;
            }
            attempts += 1;
            if attempts.is_multiple_of(ATTEMPTS_PER_STATUS) {
                let Some(status) = self.cri.container_status(container).await? else {
                    break;
                };
                if status.state() == ContainerState::ContainerExited {
                    let termination = output::termination(&self.output_directory(id));
                    if let Some(failure) = phase::failed_start(&status, termination.as_ref()) {
                        return Err(EnsureError::Failed(failure));
                    }
                    // The container has run and ended; the phase has its exit status.
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Deadline(within).into());
            }
            tokio::time::sleep(READY_POLL).await;
        }
        state.ready_at = Some(Utc::now());
        self.states.save(lock, id, state).await?;
        Ok(())
    }
}

/// Decides whether the image or the spec caused the error.
fn start_failure(spec: &BoxSpec, error: CriError) -> EnsureError {
    match failure_reason(error.message()) {
        Some(reason) => {
            let text: String = error
                .message()
                .chars()
                .filter(|c| !c.is_control())
                .take(400)
                .collect();
            let message = format!("the image \"{}\" cannot run: {text}", spec.image);
            EnsureError::Failed(Failure { reason, message })
        }
        None => error.into(),
    }
}

/// The reason in an error of containerd or runc that no later attempt can mend.
fn failure_reason(message: &str) -> Option<FailureReason> {
    let lower = message.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    if any(&["no runtime for", "unknown runtime", "runtime handler"]) {
        Some(FailureReason::RuntimeClass)
    } else if any(&[
        "no users found",
        "unable to find user",
        "unable to find group",
        "no matching entries in passwd",
        "no such user",
        "invalid user",
        "exec format error",
        "mkdir /.agentbox",
        "image os",
        "no command specified",
        "not a directory",
        "oci runtime create failed: container_linux",
        "memory limit too low",
        "minimum memory limit",
    ]) {
        Some(FailureReason::ImageInvalid)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permanent_start_errors_are_classified() {
        for (message, reason) in [
            (
                "no runtime for \"gvisor\" is configured",
                Some(FailureReason::RuntimeClass),
            ),
            (
                "unable to find user nobody2: no matching entries in passwd file",
                Some(FailureReason::ImageInvalid),
            ),
            (
                "exec /.agentbox/boxd: exec format error",
                Some(FailureReason::ImageInvalid),
            ),
            ("failed to reserve sandbox name", None),
            ("context deadline exceeded", None),
            (
                "failed to setup network for sandbox: no IP addresses available in range set",
                None,
            ),
        ] {
            assert_eq!(failure_reason(message), reason, "{message}");
        }
    }
}
