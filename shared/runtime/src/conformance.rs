//! The suite that every driver passes: each claim is a function over a [`Subject`].
//!
//! A driver's tests call [`crate::conformance_tests`] with an expression that makes a
//! subject; every claim becomes one test. Claims use nothing but the seam: what happens
//! inside a box shows by its exit code and its last output.
//!
//! * I1. A claim removes every box it made, also when it does not hold.
//! * I2. Each wait has a deadline; none is a fixed pause.

pub mod ending;
pub mod gvisor;
pub mod hostile;
pub mod life;
pub mod limits;
pub mod network;
pub mod session;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use parking_lot::Mutex;

use crate::{BoxConnector, BoxPhase, BoxSpec, ExitReason, Isolation, Observed, Resources, Runtime};

/// Long enough for a busy machine; a claim that holds never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is tested: two drivers of one deployment, as two replicas have them.
#[derive(Debug)]
pub struct Subject<D> {
    pub first: D,
    pub second: D,
    /// With `sh`, `nc`, `httpd`, `dd`, `grep`, `tail` and `timeout`: busybox.
    pub image: String,
    /// With `python3` 3.9 or later and `/bin/cat`: a Debian.
    pub python: String,
    pub differences: Differences,
    made: Mutex<Vec<EnvironmentId>>,
}

/// Where a kind of cluster cannot do as the others do; claimed as it is. `docs/drivers.md`
/// is the list for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The limit of processes is the cluster's, for every box, not the spec's.
    pub pids_of_every_box: Option<u32>,
    /// A box that is over its storage limit loses its output.
    pub eviction_takes_the_output: bool,
}

/// A claim does not hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl From<crate::RuntimeError> for Violation {
    fn from(error: crate::RuntimeError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::NetworkPolicyError> for Violation {
    fn from(error: crate::NetworkPolicyError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::PreflightError> for Violation {
    fn from(error: crate::PreflightError) -> Self {
        Self(error.to_string())
    }
}

/// # Errors
/// [`Violation`] when `holds` is false.
pub fn claim(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(what()))
    }
}

/// Asks again every few milliseconds until there is an answer.
///
/// # Errors
/// [`Violation`] when there is none within [`PATIENCE`].
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T, Violation>
where
    F: Future<Output = Result<Option<T>, Violation>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        claim(start.elapsed() < PATIENCE, || {
            format!("not within {PATIENCE:?}: {what}")
        })?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl<D: Runtime + BoxConnector> Subject<D> {
    pub fn new(first: D, second: D, image: impl Into<String>) -> Self {
        Self {
            first,
            second,
            image: image.into(),
            python: "python:3.11-slim".to_owned(),
            differences: Differences::default(),
            made: Mutex::default(),
        }
    }

    /// The same, on a kind of cluster that differs.
    #[must_use]
    pub fn differing(mut self, differences: Differences) -> Self {
        self.differences = differences;
        self
    }

    /// A small box of a new id that will be removed at the end.
    pub fn spec(&self) -> BoxSpec {
        let spec = example_spec(|spec| {
            spec.image.clone_from(&self.image);
            spec.resources.cpu = MilliCpu(1_000);
            spec.resources.storage = Bytes(64 << 20);
            "conformance".clone_into(&mut spec.boxd_token);
        });
        self.made.lock().push(spec.id.clone());
        spec
    }

    /// As [`Self::spec`], running a shell script.
    pub fn script(&self, script: &str) -> BoxSpec {
        let mut spec = self.spec();
        spec.command = Some(["sh", "-c", script].map(str::to_owned).to_vec());
        spec
    }

    /// Ensures the box at generation 1 until it is past starting.
    ///
    /// # Errors
    /// [`Violation`] when it stays starting or the driver fails.
    pub async fn start(&self, spec: &BoxSpec) -> Result<Observed, Violation> {
        until("a box starts", || async {
            let observed = self.first.ensure(spec, 1).await?;
            let is_starting = matches!(observed.phase, BoxPhase::Starting { .. });
            Ok((!is_starting).then_some(observed))
        })
        .await
    }

    /// Starts it; its address.
    ///
    /// # Errors
    /// [`Violation`] when it does not run.
    pub async fn run(&self, spec: &BoxSpec) -> Result<SocketAddr, Violation> {
        match self.start(spec).await?.phase {
            BoxPhase::Running { address, .. } => Ok(address),
            other => Err(Violation(format!("expected a running box: {other:?}"))),
        }
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// [`Violation`] when it does not start or end.
    pub async fn run_to_end(&self, spec: &BoxSpec) -> Result<End, Violation> {
        self.start(spec).await?;
        self.end_of(&spec.id).await
    }

    /// # Errors
    /// [`Violation`] when it does not end, or failed to start.
    pub async fn end_of(&self, id: &EnvironmentId) -> Result<End, Violation> {
        let end = self.until_it_ends(id).await;
        if let Err(violation) = end {
            let output = self.output_of(id).await?;
            return Err(Violation(format!("{violation}; its output: {output:?}")));
        }
        end
    }

    async fn until_it_ends(&self, id: &EnvironmentId) -> Result<End, Violation> {
        until("a box ends", || async {
            let observed = self.second.get(id).await?;
            let Some(Observed { phase, .. }) = observed else {
                return Err(Violation("the box is gone".to_owned()));
            };
            match phase {
                BoxPhase::Exited {
                    exit_code,
                    reason,
                    message,
                    ..
                } => {
                    let output = self.output_of(id).await?;
                    Ok(Some(End {
                        exit_code,
                        reason,
                        message,
                        output,
                    }))
                }
                BoxPhase::Failed { .. } => Err(Violation(format!("the box failed: {phase:?}"))),
                BoxPhase::Starting { .. } | BoxPhase::Running { .. } => Ok(None),
            }
        })
        .await
    }

    async fn output_of(&self, id: &EnvironmentId) -> Result<String, Violation> {
        let entries = self.second.last_output(id, 1 << 20).await?;
        let lines = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.line).into_owned());
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Removes every box that this subject's claims made.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub async fn clean(&self) -> Result<(), Violation> {
        let made = std::mem::take(&mut *self.made.lock());
        for id in made {
            self.first.remove(&id).await?;
        }
        Ok(())
    }
}

/// A small box for tests, with `change` applied.
pub fn example_spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
    let mut spec = BoxSpec {
        id: EnvironmentId::random(),
        owner: UserId::random(),
        image: "busybox".to_owned(),
        command: None,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        resources: Resources {
            cpu: MilliCpu(100),
            memory: Bytes(64 << 20),
            storage: Bytes(1 << 30),
            pids: 64,
        },
        isolation: Isolation::default(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        boxd_token: String::new(),
    };
    change(&mut spec);
    spec
}

/// How a box ended.
#[derive(Debug)]
pub struct End {
    pub exit_code: i32,
    pub reason: ExitReason,
    pub message: String,
    /// Lines of both streams.
    pub output: String,
}

/// Makes one test of each claim. The argument is an expression, awaited in each test,
/// that makes a [`Subject`].
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            life: ensure_twice_is_one_box,
            life: two_replicas_at_once_make_one_box,
            life: an_ensure_cut_off_anywhere_is_finished_by_the_next,
            life: a_slow_replica_is_fenced,
            life: a_newer_generation_adopts_a_running_box,
            life: remove_leaves_nothing_and_may_be_repeated,
            life: an_unknown_box_is_nothing_to_stop_or_remove,
            life: a_change_is_told,
            life: boxd_is_reached_and_an_end_is_unreachable,
            life: a_runtime_class_that_is_not_there_is_refused_before,
            life: a_node_selector_that_nothing_matches_is_refused_before,
            life: capacity_shrinks_by_what_is_promised,
            ending: an_exit_code_and_the_last_output_outlive_the_box,
            ending: a_command_that_does_not_exist_exits_127,
            ending: stop_lets_the_command_end_and_tells_so,
            ending: stop_without_grace_kills_at_once,
            ending: an_image_that_does_not_exist_fails_by_name_within_seconds,
            ending: an_image_for_root_fails_where_root_is_forbidden,
            ending: the_asked_user_runs_the_command,
            ending: a_read_only_root_is_read_only,
            ending: environment_reaches_the_command_and_our_secrets_do_not,
            limits: more_memory_than_the_limit_is_an_oom_kill,
            limits: a_memory_bomb_of_many_processes_ends_them_and_not_its_neighbours,
            limits: shared_memory_counts_as_memory,
            limits: more_storage_than_the_limit_is_an_eviction_for_every_replica,
            limits: no_more_processes_than_the_limit_exist,
            hostile: no_way_out_of_a_box_is_open,
            hostile: no_socket_that_could_forge_a_sender_is_opened,
            hostile: nothing_answers_over_ipv6,
            hostile: the_token_of_boxd_is_nowhere_to_be_found,
            hostile: boxd_does_nothing_for_who_has_no_token,
            hostile: rights_are_exactly_the_documented_ones,
            hostile: a_setuid_program_gains_nothing_unless_it_may,
            network: another_box_is_not_reached_by_default,
            network: boxes_that_allow_it_reach_each_other_but_no_boxd,
            network: an_opened_port_is_reached_and_no_other,
        }
    };
    (@each $subject:expr; $($noun:ident: $claim:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let subject = $subject.await;
                let outcome = $crate::conformance::$noun::$claim(&subject).await;
                subject.clean().await.expect("what a claim made can be removed");
                if let Err(violation) = outcome {
                    panic!("{violation}");
                }
            }
        )*
    };
}

/// As [`conformance_tests`], of boxes on gVisor: for where it is.
#[macro_export]
macro_rules! gvisor_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            gvisor: a_command_runs_on_gvisors_kernel_and_tells_its_end,
            gvisor: what_a_command_on_gvisor_is_told_and_says_comes_as_it_happens,
            gvisor: a_terminal_on_gvisor_has_a_size_and_its_keys_work,
            gvisor: boxes_on_gvisor_are_killed_and_removed_again_and_again,
        }
    };
}
