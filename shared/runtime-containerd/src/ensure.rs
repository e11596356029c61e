//! Makes a box.
//!
//! * I1. Only the holder of the box's lock makes or changes it; image pulls, which take
//!   long and harm nobody, go on without the lock, and the box is looked at anew after.
//! * I2. The network policy is in force before the container starts; nothing of the
//!   user's runs in the sandbox.
//! * I3. What a killed `ensure` left is removed before a box is made, never built upon,
//!   unless its container runs already: then only boxd is waited for.
//!
//! A newer generation of a box that runs adopts it: a box is never made twice, since
//! what its user did in it would be lost.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, BoxSpec, FailureReason, NetworkPolicy, Observed, RuntimeError};
use chrono::Utc;
use k8s_cri::v1::ContainerState;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::cri::CriError;
use crate::driver::{Inner, io_failure};
use crate::facts::{BoxLock, Facts, Failure, Step};
use crate::image::{self, PullFailure};
use crate::network::BoxNetwork;
use crate::observe::Objects;
use crate::{cgroup, container, output, sandbox, seccomp};

/// boxd listens a few milliseconds after its start.
const READY_POLL: Duration = Duration::from_millis(2);
/// A container that ends at once never listens; asking containerd costs more than a poll.
const POLLS_PER_LOOK: u32 = 10;

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

impl Inner {
    pub async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        let mut pulled = false;
        loop {
            let lock = self.facts.lock(id, self.lock_deadline()).await?;
            let objects = self.objects(id).await?;
            let known = self.facts.load(id).await?;
            let held = known
                .as_ref()
                .map(|f| f.generation)
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
                    message: "the box was removed while its image was pulled".to_owned(),
                });
            }
            let is_new = known.is_none();
            let mut facts = known.unwrap_or_else(|| Facts::new(generation, Utc::now()));
            if is_new || facts.generation != generation {
                facts.generation = generation;
                self.facts.save(&lock, id, &facts).await?;
            }
            let observed = self.observed(id, &objects, Some(facts.clone())).await?;
            if !matches!(observed.phase, BoxPhase::Starting { .. }) {
                return Ok(observed);
            }
            if !pulled && self.cri.image(&spec.image).await?.is_none() {
                facts.step = Step::PullingImage;
                self.facts.save(&lock, id, &facts).await?;
                drop(lock);
                if let Err(failure) = self.pull(&spec.image).await? {
                    return self.fail(id, generation, failure).await;
                }
                pulled = true;
                continue;
            }
            facts.step = Step::Starting;
            let made = self
                .make(spec, generation, &objects, &lock, &mut facts)
                .await;
            return match made {
                Ok(()) => self.look(id).await,
                Err(Halt::Error(error)) => Err(error),
                Err(Halt::Failed(failure)) => {
                    facts.failure = Some(failure);
                    self.facts.save(&lock, id, &facts).await?;
                    self.look(id).await
                }
            };
        }
    }

    async fn look(&self, id: &EnvironmentId) -> Result<Observed, RuntimeError> {
        let objects = self.objects(id).await?;
        self.observed(id, &objects, self.facts.load(id).await?)
            .await
    }

    /// Records that the box will never run, unless somebody removed or renewed it.
    async fn fail(
        &self,
        id: &EnvironmentId,
        generation: i64,
        failure: Failure,
    ) -> Result<Observed, RuntimeError> {
        let lock = self.facts.lock(id, self.lock_deadline()).await?;
        if let Some(mut facts) = self.facts.load(id).await?
            && facts.generation == generation
        {
            facts.failure = Some(failure);
            self.facts.save(&lock, id, &facts).await?;
        }
        self.look(id).await
    }

    async fn pull(&self, image: &str) -> Result<Result<(), Failure>, RuntimeError> {
        let deadline = Duration::from_secs(self.config.image_pull_deadline_s);
        let Err(error) = self.cri.pull_image(image, deadline).await else {
            return Ok(Ok(()));
        };
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

    async fn make(
        &self,
        spec: &BoxSpec,
        generation: i64,
        objects: &Objects,
        lock: &BoxLock,
        facts: &mut Facts,
    ) -> Result<(), Halt> {
        let id = &spec.id;
        let running = objects
            .container()
            .filter(|c| c.state() == ContainerState::ContainerRunning);
        if let (Some(container), Some(network)) = (running, facts.network.clone()) {
            return self
                .wait_until_ready(id, &container.id, &network, lock, facts)
                .await;
        }
        if !objects.sandboxes.is_empty() || facts.network.is_some() {
            self.firewall.dismiss(id, facts.network.as_ref()).await?;
            self.remove_sandboxes(objects).await?;
            facts.network = None;
        }
        if let Some(image) = self.cri.image(&spec.image).await?
            && let Some(message) =
                image::user_problem(&image, spec.isolation.security_context.as_ref())
        {
            return Err(Halt::Failed(Failure {
                reason: FailureReason::ImageInvalid,
                message,
            }));
        }
        let policy = spec
            .isolation
            .network_policy
            .clone()
            .unwrap_or_else(|| NetworkPolicy::unspecified(self.config.default_allow_internet));
        self.facts.save(lock, id, facts).await?;
        let output = self.output_directory(id);
        let (pids, whole) = (spec.resources.pids, sandbox::whole(spec));
        cgroup::create(&self.config.deployment, id, pids, whole)
            .map_err(|error| io_failure("control group", &error))?;
        output::mount_fresh(&output).map_err(|error| io_failure("output directory", &error))?;

        let sandbox_config = sandbox::config(&self.config, spec, generation);
        let sandbox = self.run_sandbox(spec, sandbox_config.clone()).await?;
        let (network, seccomp) = self.read_sandbox(&sandbox).await?;
        facts.network = Some(network.clone());
        facts.policy = Some(policy.clone());
        self.facts.save(lock, id, facts).await?;

        let of = container::Of {
            output: &output,
            seccomp: &seccomp,
        };
        let container_config = container::config(&self.config, spec, generation, of);
        let admit = async {
            self.firewall
                .admit(id, &network, &policy)
                .await
                .map_err(Halt::from)
        };
        let create = async {
            self.cri
                .create_container(&sandbox, container_config, sandbox_config)
                .await
                .map_err(|error| start_failure(spec, error))
        };
        let ((), container) = tokio::try_join!(admit, create)?;
        let deadline = Duration::from_secs(self.config.start_deadline_s);
        self.cri
            .start_container(&container, deadline)
            .await
            .map_err(|error| start_failure(spec, error))?;
        self.wait_until_ready(id, &container, &network, lock, facts)
            .await
    }

    async fn run_sandbox(
        &self,
        spec: &BoxSpec,
        config: k8s_cri::v1::PodSandboxConfig,
    ) -> Result<String, Halt> {
        let within = Duration::from_secs(self.config.sandbox_deadline_s);
        let deadline = Instant::now() + within;
        loop {
            let handler = sandbox::runtime_handler(spec);
            match self.cri.run_sandbox(config.clone(), handler, within).await {
                Ok(id) => return Ok(id),
                // Of an `ensure` that was killed: containerd is still making or unmaking
                // its sandbox. It appears or its name becomes free.
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

    /// Its place in the network, and the file of the filter that its container gets.
    async fn read_sandbox(&self, sandbox: &str) -> Result<(BoxNetwork, PathBuf), RuntimeError> {
        let status = self.cri.sandbox_status(sandbox).await?;
        let info = status.info.get("info").map_or("", String::as_str);
        let network =
            BoxNetwork::read(info, &self.config.bridge).map_err(|error| RuntimeError::Cluster {
                operation: "sandbox network",
                message: error.to_string(),
            })?;
        let filter = seccomp::narrowed(info).map_err(|error| RuntimeError::Cluster {
            operation: "system-call filter",
            message: error.to_string(),
        })?;
        let kept = seccomp::keep(&self.config.state_dir, &filter)
            .map_err(|error| io_failure("system-call filter", &error))?;
        Ok((network, kept))
    }

    /// Until boxd accepts a connection, or the container has ended.
    async fn wait_until_ready(
        &self,
        id: &EnvironmentId,
        container: &str,
        network: &BoxNetwork,
        lock: &BoxLock,
        facts: &mut Facts,
    ) -> Result<(), Halt> {
        let within = Duration::from_secs(self.config.start_deadline_s);
        let deadline = Instant::now() + within;
        let address = (network.address, DEFAULT_PORT);
        let mut polls = 0u32;
        loop {
            let attempt = tokio::time::timeout_at(deadline, TcpStream::connect(address)).await;
            if matches!(attempt, Ok(Ok(_))) {
                break;
            }
            polls += 1;
            if polls.is_multiple_of(POLLS_PER_LOOK) {
                let status = self.cri.container_status(container).await?;
                if status.is_none_or(|s| s.state() == ContainerState::ContainerExited) {
                    // It has run and ended: the phase tells how.
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Deadline(within).into());
            }
            tokio::time::sleep(READY_POLL).await;
        }
        facts.ready_at = Some(Utc::now());
        self.facts.save(lock, id, facts).await?;
        Ok(())
    }
}

/// Whether the image or the spec is to blame.
fn start_failure(spec: &BoxSpec, error: CriError) -> Halt {
    match failure_reason(error.message()) {
        Some(reason) => {
            let said: String = error
                .message()
                .chars()
                .filter(|c| !c.is_control())
                .take(400)
                .collect();
            let message = format!("the image \"{}\" cannot run: {said}", spec.image);
            Halt::Failed(Failure { reason, message })
        }
        None => error.into(),
    }
}

/// What containerd and runc say of images and specs that can never run.
fn failure_reason(message: &str) -> Option<FailureReason> {
    let said = message.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
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
    fn what_can_never_run_is_told_from_what_may() {
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
