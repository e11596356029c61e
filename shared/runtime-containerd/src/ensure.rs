//! Creates a box.
//!
//! * I1. Only the holder of the box's lock creates or changes it. An image pull, which takes long
//!   and changes no box, runs without the lock; the box is observed again after it.
//! * I2. The network policy is in force before the container starts; nothing of the user
//!   runs in the sandbox itself.
//! * I3. The remains of a killed `ensure` are removed before a box is created, unless its
//!   container runs already: then this waits for boxd only.
//!
//! A container that containerd refuses fails the box: at once if a later attempt cannot succeed,
//! else after a time ([`crate::refusal`]).
//!
//! The image of a private repository is pulled again for each owner ([`crate::image_access`]).
//!
//! A spec that is not warm claims the running warm box of its id ([`crate::claim`]).
//!
//! A newer generation adopts a running box. A box is never created twice, because its user's
//! work would be lost.

mod pull;
mod ready;
mod sandbox_start;

use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::metrics::{Stage, stage_completed};
use agentbox_runtime::{
    BoxPhase, BoxSpec, FailureReason, NetworkPolicy, Observed, RuntimeError, image_reference,
    start_failure,
};
use chrono::Utc;
use k8s_cri::v1::ContainerState;

use crate::box_state::{BoxLock, BoxState, Failure, Step, Warm};
use crate::context::Context;
use crate::cri::CriError;
use crate::disk::Disk;
use crate::error::io_failure;
use crate::image::ImageConfig;
use crate::observe::Objects;
use crate::{
    cgroup, container, memory, output, refusal, sandbox, snapshots, terminals, user_files,
};

/// The creation of a box did not succeed.
enum EnsureError {
    /// The box can never run.
    Failed(Failure),
    /// containerd refused the container, or did not finish it.
    Refused(CriError),
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
            match observed.phase {
                BoxPhase::Starting { .. } => {}
                BoxPhase::Running { .. } if !spec.warm && state.awaits_claim() => {
                    self.finish_claim(spec, generation, &lock, &mut state)
                        .await?;
                    return self.observe(id).await;
                }
                _ => return Ok(observed),
            }
            if !pulled && self.needs_pull(spec).await? {
                state.step = Step::PullingImage;
                self.states.save(&lock, id, &state).await?;
                drop(lock);
                if let Err(failure) = self.pull(spec).await? {
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
                Ok(()) => {
                    // The container of a warm box was started by an earlier call.
                    if !spec.warm && state.awaits_claim() {
                        self.finish_claim(spec, generation, &lock, &mut state)
                            .await?;
                    }
                    self.observe(id).await
                }
                Err(EnsureError::Error(error)) => Err(error),
                Err(EnsureError::Failed(failure)) => {
                    state.failure = Some(failure);
                    self.states.save(&lock, id, &state).await?;
                    self.observe(id).await
                }
                Err(EnsureError::Refused(error)) => {
                    tracing::warn!(
                        error = %ErrorChain(&error),
                        environment.id = %id,
                        "containerd refused the container of a box"
                    );
                    refusal::record(&mut state, &spec.image, error.message(), Utc::now());
                    self.states.save(&lock, id, &state).await?;
                    match state.failure {
                        Some(_) => self.observe(id).await,
                        None => Err(error.into()),
                    }
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
        self.remove_earlier_start(id, objects, state).await?;
        let image = self.usable_image(spec).await?;
        // Nothing is open for a box that waits for its claim, and no box is opened for it.
        let (policy, owner_of_box) = match spec.warm {
            true => (NetworkPolicy::default(), None),
            false => (
                spec.network_policy(self.config.default_allow_internet),
                Some(spec.owner.clone()),
            ),
        };
        state.warm = spec.warm.then(|| Warm {
            entrypoint: match image.command_problem() {
                Some(_) => Vec::new(),
                None => image.command(),
            },
            ..Warm::default()
        });
        self.states.save(lock, id, state).await?;
        let users = self.take_user_range(spec).await?;
        let owner = users.map_or(0, |range| range.first);
        let disk = self.has_disk(spec)?.then(|| self.disk(id));
        let (output, memory) = (self.output_directory(id), self.memory_directory(id));
        let (pids, limits) = (spec.resources.pids, sandbox::limits(&self.config, spec));
        let bandwidth = self.disk_bandwidth().await?;
        cgroup::create(&self.config.deployment, id, pids, limits, &bandwidth)
            .map_err(|error| io_failure("control group", &error))?;
        // A runtime with a kernel of its own has its own terminals.
        let terminals = limits.is_none().then(|| self.terminals_directory(id));
        if let Some(directory) = &terminals {
            terminals::mount_fresh(directory, owner)
                .map_err(|error| io_failure("terminals", &error))?;
        }
        output::mount_fresh(&output, owner)
            .map_err(|error| io_failure("output directory", &error))?;
        memory::mount_fresh(&memory, spec.resources.memory, owner)
            .map_err(|error| io_failure("files in memory", &error))?;

        let sandbox_config = sandbox::config(&self.config, spec, generation, users);
        let dns = sandbox_config.dns_config.clone().unwrap_or_default();
        let make_disk = async {
            match &disk {
                Some(disk) => {
                    let within = self.config.call_deadline();
                    let made = disk.create(spec.resources.storage, within).await;
                    made.map_err(EnsureError::from)
                }
                None => Ok(()),
            }
        };
        let begun = Instant::now();
        let run_sandbox = self.run_sandbox(spec, sandbox_config.clone());
        let (sandbox, ()) = tokio::try_join!(run_sandbox, make_disk)?;
        let (mut network, inside, seccomp) = self.read_sandbox(&sandbox).await?;
        stage_completed(Stage::Sandbox, begun.elapsed());
        let begun = Instant::now();
        network.owner = owner_of_box;
        state.network = Some(network.clone());
        state.policy = Some(policy.clone());
        self.states.save(lock, id, state).await?;

        let names = disk.as_ref().map_or(memory.as_path(), Disk::directory);
        memory::write_names(names, id.as_str(), network.address, &dns, owner)
            .map_err(|error| io_failure("name files", &error))?;
        let files = container::HostFiles {
            output: &output,
            memory: &memory,
            names,
            terminals: terminals.as_deref(),
            seccomp: &seccomp,
        };
        let container_config =
            container::config(&self.config, spec, generation, &image, files, users);
        let install = async {
            self.firewall
                .install(id, &network, &policy)
                .await
                .map_err(EnsureError::from)
        };
        let restrict_neighbours = async {
            // gVisor has taken the routes out of the namespace: its kernel has the neighbours.
            match limits {
                None => self
                    .firewall
                    .restrict_neighbours(&inside)
                    .await
                    .map_err(EnsureError::from),
                Some(_) => Ok(()),
            }
        };
        let create = async {
            let creation = self
                .cri
                .create_container(&sandbox, container_config, sandbox_config);
            user_files::while_creating(creation)
                .await
                .map_err(container_error)
        };
        let ((), (), container) = tokio::try_join!(install, restrict_neighbours, create)?;
        self.start_container(id, &container, disk.as_ref()).await?;
        if refusal::clear(state) {
            self.states.save(lock, id, state).await?;
        }
        self.wait_until_ready(id, &container, &network, lock, state)
            .await?;
        stage_completed(Stage::Started, begun.elapsed());
        Ok(())
    }

    /// Removes what an interrupted start has left.
    async fn remove_earlier_start(
        &self,
        id: &EnvironmentId,
        objects: &Objects,
        state: &mut BoxState,
    ) -> Result<(), EnsureError> {
        // Also if it gets no disk now: its storage would not be measured.
        self.discard_disk(id).await?;
        if !objects.sandboxes.is_empty() || state.network.is_some() {
            self.remove_from_network(id, state.network.as_ref(), objects)
                .await?;
            state.network = None;
        }
        Ok(())
    }

    /// The configuration of the image, with which the box can run.
    async fn usable_image(&self, spec: &BoxSpec) -> Result<ImageConfig, EnsureError> {
        let image = self.image_config(&spec.image).await?;
        if let Some(problem) = self.image_problem(spec, &image).await? {
            return Err(EnsureError::Failed(Failure {
                reason: FailureReason::ImageInvalid,
                message: start_failure::cannot_run(&spec.image, &problem),
            }));
        }
        Ok(image)
    }

    /// The reason that the box can never run with this image.
    async fn image_problem(
        &self,
        spec: &BoxSpec,
        image: &ImageConfig,
    ) -> Result<Option<String>, RuntimeError> {
        let context = spec.isolation.security_context.as_ref();
        let of_command = || match spec.use_entrypoint {
            true => image.command_problem(),
            false => None,
        };
        if let Some(problem) = image.problem(context).or_else(of_command) {
            return Ok(Some(problem));
        }
        if let Some(problem) = self.user_file_problem(image).await {
            return Ok(Some(problem.to_owned()));
        }
        let Some(problem) = image.unmapped_user(context) else {
            return Ok(None);
        };
        Ok(self.has_user_namespace(spec).await?.then_some(problem))
    }

    /// Starts a created container, whose root file system is on the disk if there is one.
    async fn start_container(
        &self,
        id: &EnvironmentId,
        container: &str,
        disk: Option<&Disk>,
    ) -> Result<(), EnsureError> {
        let failed = |error: std::io::Error| EnsureError::from(io_failure("disk of a box", &error));
        let attached = match disk {
            Some(disk) => {
                let within = self.config.call_deadline();
                let found = snapshots::writable_directories(&self.cri, container, within).await;
                let directories = found.map_err(RuntimeError::from)?;
                disk.attach(&directories).map_err(failed)?;
                Some((disk, directories))
            }
            None => None,
        };
        let deadline = Duration::from_secs(self.config.start_deadline_s);
        let start = self.cri.start_container(container, deadline);
        // After an error the disk stays attached, because containerd may still start the container.
        user_files::while_starting(container, start)
            .await
            .map_err(container_error)?;
        let Some((disk, directories)) = attached else {
            return Ok(());
        };
        Disk::detach(&directories).map_err(failed)?;
        if disk.is_used_by(&directories) {
            return Ok(());
        }
        // Otherwise the next call would find a running box without a limit.
        self.remove_sandboxes(&self.objects(id).await?).await?;
        Err(failed(std::io::Error::other(
            "containerd does not see the mounts of this process: run both in one mount namespace",
        )))
    }

    pub async fn image_config(&self, image: &str) -> Result<ImageConfig, RuntimeError> {
        let unusable = |message: String| RuntimeError::Cluster {
            operation: "image status",
            message,
        };
        let status = self.cri.image(&image_reference::complete(image)).await?;
        let status = status.ok_or_else(|| unusable("the image was removed".to_owned()))?;
        ImageConfig::read(&status.info).map_err(|error| unusable(error.to_string()))
    }
}

/// An error of the container's creation or start.
fn container_error(error: CriError) -> EnsureError {
    match error {
        CriError::Unavailable { .. } => error.into(),
        CriError::Refused { .. } | CriError::Deadline { .. } => EnsureError::Refused(error),
    }
}
