//! The test suite that every driver passes. Each test is a function over a [`Subject`].
//!
//! A driver's tests call [`crate::conformance_tests`] with an expression that makes a subject, and
//! each function becomes one test. The tests use only the two traits and boxd, through the driver's
//! connector: the exit code, the last output, commands and files show what happens inside a box.
//!
//! * I1. A test removes every box that it created, also when it fails.
//! * I2. Each wait has a deadline; none is a fixed pause.

pub mod accounts;
pub mod ending;
pub mod executions;
pub mod files;
pub mod gvisor;
pub mod hostile;
pub mod life;
pub mod limits;
pub mod network;
pub mod ports;
pub mod session;
pub mod start;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use parking_lot::Mutex;

use crate::{BoxConnector, BoxPhase, BoxSpec, ExitReason, Isolation, Observed, Resources, Runtime};

/// The deadline of every wait: long enough for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The drivers under test: two of one deployment, as in two replicas.
#[derive(Debug)]
pub struct Subject<D> {
    pub first: D,
    pub second: D,
    /// An image with `sh`, `nc`, `httpd`, `dd`, `grep`, `tail` and `timeout`: busybox.
    pub image: String,
    /// An image with `python3` 3.9 or later and `/bin/cat`: a Debian.
    pub python: String,
    pub differences: Differences,
    /// The owner of the boxes of [`Subject::spec`].
    owner: UserId,
    created: Mutex<Vec<EnvironmentId>>,
}

/// The differences of a kind of cluster that its tests expect. `docs/drivers.md` describes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The process limit that the cluster sets for every box, instead of the spec's.
    pub cluster_pids_limit: Option<u32>,
    /// Whether the output of an evicted box is lost.
    pub eviction_deletes_output: bool,
    /// Whether the group of an image's `USER user:group` is ignored.
    pub ignores_image_group: bool,
    /// Whether a box over its storage limit is evicted. Otherwise the kernel refuses its writes.
    pub measures_storage: bool,
    /// Whether a changed network policy leaves connections that are open.
    pub keeps_open_connections: bool,
    /// Whether boxes have no user namespace of their own.
    pub shares_user_ids: bool,
    /// Whether `use_entrypoint` is refused.
    pub refuses_entrypoint: bool,
}

/// A requirement that a driver does not meet.
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
pub fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(message()))
    }
}

/// Repeats a request until it has an answer.
///
/// The pauses grow with the time waited, so that many waiting tests do not keep a cluster busy.
///
/// # Errors
/// [`Violation`] with `expected` when there is no answer within [`TIMEOUT`].
pub async fn eventually<T, F>(
    expected: &str,
    mut request: impl FnMut() -> F,
) -> Result<T, Violation>
where
    F: Future<Output = Result<Option<T>, Violation>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = request().await? {
            return Ok(answer);
        }
        check(start.elapsed() < TIMEOUT, || {
            format!("not within {TIMEOUT:?}: {expected}")
        })?;
        tokio::time::sleep((start.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
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
            owner: UserId::random(),
            created: Mutex::default(),
        }
    }

    /// Sets the expected differences.
    #[must_use]
    pub fn with_differences(mut self, differences: Differences) -> Self {
        self.differences = differences;
        self
    }

    /// The spec of a small box with a new id, which [`Self::clean`] removes.
    pub fn spec(&self) -> BoxSpec {
        let spec = example_spec(|spec| {
            spec.owner.clone_from(&self.owner);
            spec.image.clone_from(&self.image);
            spec.resources.cpu = MilliCpu(1_000);
            spec.resources.storage = Bytes(64 << 20);
            "conformance".clone_into(&mut spec.boxd_token);
        });
        self.created.lock().push(spec.id.clone());
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
        eventually("a box starts", || async {
            let observed = self.first.ensure(spec, 1).await?;
            let is_starting = matches!(observed.phase, BoxPhase::Starting { .. });
            Ok((!is_starting).then_some(observed))
        })
        .await
    }

    /// Starts a box, and returns its address.
    ///
    /// # Errors
    /// [`Violation`] when it does not run.
    pub async fn run(&self, spec: &BoxSpec) -> Result<SocketAddr, Violation> {
        match self.start(spec).await?.phase {
            BoxPhase::Running { address, .. } => Ok(address),
            other => Err(Violation(format!("expected a running box: {other:?}"))),
        }
    }

    /// Starts a box, and waits for its end.
    ///
    /// # Errors
    /// [`Violation`] when it does not start or end.
    pub async fn run_to_end(&self, spec: &BoxSpec) -> Result<End, Violation> {
        self.start(spec).await?;
        self.end_of(&spec.id).await
    }

    /// Waits for the end of a started box.
    ///
    /// # Errors
    /// [`Violation`] with its output when it does not end, or failed to start.
    pub async fn end_of(&self, id: &EnvironmentId) -> Result<End, Violation> {
        let end = self.wait_for_end(id).await;
        if let Err(violation) = end {
            let output = self.output_of(id).await?;
            return Err(Violation(format!("{violation}; its output: {output:?}")));
        }
        end
    }

    async fn wait_for_end(&self, id: &EnvironmentId) -> Result<End, Violation> {
        eventually("a box ends", || async {
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

    /// Removes every box that this subject's tests created.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub async fn clean(&self) -> Result<(), Violation> {
        let created = std::mem::take(&mut *self.created.lock());
        for id in created {
            self.first.remove(&id).await?;
        }
        Ok(())
    }
}

/// A small box for tests, with `change` applied.
pub fn example_spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
    let mut spec = BoxSpec {
        id: EnvironmentId::random(),
        warm: false,
        owner: UserId::random(),
        image: "busybox".to_owned(),
        command: None,
        use_entrypoint: false,
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
        image_credential: None,
    };
    change(&mut spec);
    spec
}

/// The end of a box.
#[derive(Debug)]
pub struct End {
    pub exit_code: i32,
    pub reason: ExitReason,
    pub message: String,
    /// Lines of both streams.
    pub output: String,
}

/// Makes one test of each function. The argument is an expression, awaited in each test,
/// that makes a [`Subject`].
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            life: ensure_twice_makes_one_box,
            life: concurrent_ensures_make_one_box,
            life: interrupted_ensure_is_completed_by_the_next,
            life: older_generation_is_fenced,
            life: newer_generation_adopts_running_box,
            life: repeated_remove_leaves_nothing,
            life: unknown_box_stop_and_remove_succeed,
            life: box_change_is_reported_by_watch,
            life: boxd_is_reachable_until_the_box_ends,
            life: unknown_runtime_class_fails_preflight,
            life: unmatched_node_selector_fails_preflight,
            life: capacity_excludes_reserved_resources,
            ending: ended_box_keeps_exit_code_and_last_output,
            ending: killed_box_keeps_its_unfinished_line,
            ending: missing_command_exits_127,
            executions: killed_box_keeps_its_executions,
            executions: execution_outlives_its_connection_and_is_resumed,
            ending: box_that_cannot_execute_boxd_does_not_report_an_exit_of_its_command,
            ending: stop_with_grace_lets_the_command_exit,
            ending: stop_without_grace_kills_at_once,
            ending: missing_image_fails_by_name_within_seconds,
            ending: root_image_fails_when_root_is_forbidden,
            ending: requested_user_runs_the_command,
            ending: read_only_root_refuses_writes,
            ending: command_sees_user_variables_and_no_secrets,
            start: command_and_variables_arrive_unchanged,
            start: hosts_file_names_the_box_and_nothing_of_the_machine,
            start: shared_memory_has_the_size_of_the_memory_limit,
            start: read_only_root_has_a_writable_tmp_in_memory,
            files: files_have_the_user_of_their_operation_and_replace_no_mount,
            files: box_without_root_acts_as_no_other_user_and_writes_to_volumes_only,
            ports: server_on_the_loopback_of_the_box_is_reached_and_listed,
            limits: memory_over_limit_is_oom_killed,
            limits: memory_bomb_ends_only_its_own_processes,
            limits: shared_memory_counts_as_memory,
            limits: storage_over_limit_is_refused_or_evicted_for_every_replica,
            limits: processes_over_limit_are_refused,
            limits: bomb_ends_neither_the_box_nor_later_commands,
            limits: system_v_objects_of_a_full_box_leave_others_theirs,
            limits: kernel_objects_of_a_full_box_leave_others_theirs,
            hostile: escape_attempts_are_refused,
            hostile: sender_forging_sockets_are_refused,
            hostile: ipv6_probes_get_no_answer,
            hostile: boxd_token_is_not_readable_in_the_box,
            hostile: boxd_refuses_calls_without_token,
            hostile: boxd_files_are_closed_to_other_users_of_the_box,
            hostile: forged_report_does_not_change_the_exit_code,
            hostile: filled_report_is_emptied_and_does_not_change_the_exit_code,
            hostile: capabilities_are_exactly_the_documented_ones,
            hostile: each_box_has_user_ids_of_its_own,
            hostile: setuid_program_gains_root_only_when_allowed,
            network: other_box_is_unreachable_by_default,
            network: cluster_internal_boxes_reach_each_other_but_not_boxd,
            network: box_of_another_owner_is_unreachable_under_every_policy,
            network: only_opened_ports_are_reachable,
            network: changed_policy_applies_to_new_and_to_open_connections,
            network: policy_of_an_older_generation_is_fenced,
            network: box_has_few_neighbours,
        }
    };
    (@each $subject:expr; $($noun:ident: $test:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let subject = $subject.await;
                let outcome = $crate::conformance::$noun::$test(&subject).await;
                subject.clean().await.expect("the created boxes can be removed");
                if let Err(violation) = outcome {
                    panic!("{violation}");
                }
            }
        )*
    };
}

/// As [`conformance_tests`], for a cluster with the images of
/// [`crate::conformance::accounts::images`].
#[macro_export]
macro_rules! account_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            accounts: image_user_has_its_own_groups_and_not_those_of_root,
            accounts: variables_of_the_image_do_not_configure_boxd,
            accounts: files_and_executions_of_a_user_need_no_program_of_the_image,
            accounts: image_that_can_never_start_fails_soon_without_a_path_of_the_server,
            accounts: entrypoint_of_the_image_runs_with_its_cmd_if_it_is_requested,
            accounts: image_without_a_command_fails_if_its_entrypoint_is_requested,
        }
    };
}

/// As [`conformance_tests`], for boxes on gVisor.
#[macro_export]
macro_rules! gvisor_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            gvisor: command_on_gvisor_returns_its_exit_code,
            gvisor: command_on_gvisor_streams_stdin_and_stdout,
            gvisor: terminal_on_gvisor_has_size_and_control_keys,
            gvisor: files_executions_and_ports_on_gvisor_work_as_elsewhere,
            gvisor: gvisor_boxes_are_killed_and_removed_repeatedly,
        }
    };
}
