//! Programs that are started and stopped together.
//!
//! * I1. A program that exits is restarted, after a pause that doubles while the program keeps
//!   exiting.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_testing::log_tail::{last_lines, tail};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::state_file::StateFile;
use crate::process::ProcessSpec;

const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// After a run of this length the pause is reset to its minimum.
const STABLE_RUN: Duration = Duration::from_secs(10);
/// After this number of exits, a program that is not ready yet has failed to start.
const MAX_EXITS_AT_START: u32 = 3;

/// A program did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("{name} keeps exiting ({end}); last log line: {last_line} (log: {log})")]
    KeepsExiting {
        name: String,
        end: String,
        last_line: String,
        log: PathBuf,
    },
    #[error("{name} is not ready after {waited:?}: {reason} (log: {log})")]
    Deadline {
        name: String,
        waited: Duration,
        reason: String,
        log: PathBuf,
    },
}

pub(super) struct ProcessGroup {
    state_file: StateFile,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    logs: std::collections::BTreeMap<String, PathBuf>,
}

/// Succeeds when `is_ready`; otherwise gives the reason.
pub(super) fn ready_or(is_ready: bool, reason: &str) -> Result<(), String> {
    if is_ready {
        Ok(())
    } else {
        Err(reason.to_owned())
    }
}

impl ProcessGroup {
    pub(super) fn new(state_file: StateFile) -> Self {
        Self {
            state_file,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            logs: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn state_file(&self) -> &StateFile {
        &self.state_file
    }

    pub(super) fn is_running(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Starts a program and restarts it when it exits, until [`Self::stop`].
    pub(super) fn supervise(&mut self, spec: ProcessSpec, admin_url: Option<String>) {
        self.state_file
            .update_process(&spec.name, |process| process.admin_url = admin_url);
        self.logs.insert(spec.name.clone(), spec.log.clone());
        self.tasks
            .spawn(supervise(spec, self.state_file.clone(), self.stop.clone()));
    }

    /// Stops all programs at the same time, and waits until they have exited.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Waits until `check` succeeds.
    pub(super) async fn wait_ready<F, C>(
        &self,
        name: &str,
        within: Duration,
        check: F,
    ) -> Result<(), NotReady>
    where
        F: Fn() -> C,
        C: Future<Output = Result<(), String>>,
    {
        let deadline = Instant::now() + within;
        let log = self.logs.get(name).cloned().unwrap_or_default();
        loop {
            let reason = match tokio::time::timeout(Duration::from_secs(3), check()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(reason)) => reason,
                Err(_) => "no answer within 3 s".to_owned(),
            };
            let (restarts, end) = self.state_file.read(|state| {
                let process = state.processes.get(name).cloned().unwrap_or_default();
                (process.restarts, process.last_end.unwrap_or_default())
            });
            if restarts >= MAX_EXITS_AT_START {
                return Err(NotReady::KeepsExiting {
                    name: name.to_owned(),
                    end,
                    last_line: last_lines(&tail(&log, 4096), 1),
                    log,
                });
            }
            if Instant::now() > deadline {
                return Err(NotReady::Deadline {
                    name: name.to_owned(),
                    waited: within,
                    reason,
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The pause before the next start, from the last pause and the length of the last run.
fn next_pause(last: Duration, ran: Duration) -> Duration {
    if ran >= STABLE_RUN {
        MIN_PAUSE
    } else {
        (last * 2).clamp(MIN_PAUSE, MAX_PAUSE)
    }
}

async fn supervise(spec: ProcessSpec, state_file: StateFile, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let end = match spec.start() {
            Err(error) => format!("it cannot be started: {error}"),
            Ok(mut running) => {
                let identity = running.identity;
                state_file.update_process(&spec.name, |process| {
                    process.identity = Some(identity);
                    process.started_at = chrono::Utc::now().timestamp();
                });
                tokio::select! {
                    status = running.wait() => {
                        running.drain_output().await;
                        status.map_or_else(|error| error.to_string(), |status| status.to_string())
                    }
                    () = stop.cancelled() => {
                        running.stop(&spec).await;
                        state_file.update_process(&spec.name, |process| process.identity = None);
                        return;
                    }
                }
            }
        };
        pause = next_pause(pause, started.elapsed());
        state_file.update_process(&spec.name, |process| {
            process.identity = None;
            process.restarts += 1;
            process.last_end = Some(end.clone());
        });
        state_file.log_step(&format!(
            "{} exited ({end}); restarting it in {pause:?}",
            spec.name
        ));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_pause_doubles_while_runs_are_short_and_resets_after_a_stable_run() {
        let short = Duration::from_millis(5);
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = next_pause(pause, short);
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(next_pause(pause, STABLE_RUN), MIN_PAUSE);
    }
}
