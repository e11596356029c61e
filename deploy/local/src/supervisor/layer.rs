//! Programs that are started and ended together. Each is restarted when it dies, after
//! a pause that grows while it keeps dying.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use crate::child::Launch;
use crate::log_file::tail;
use crate::tool::last_lines;

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Who has run this long has recovered.
const RECOVERED: Duration = Duration::from_secs(10);
/// While starting, so many ends mean that it never will.
const ENDS_TO_GIVE_UP: u32 = 3;

/// A program did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("{name} keeps ending ({end}); its last words: {words} (log: {log})")]
    KeepsEnding {
        name: String,
        end: String,
        words: String,
        log: PathBuf,
    },
    #[error("{name} is not ready after {waited:?}: {why} (log: {log})")]
    TooSlow {
        name: String,
        waited: Duration,
        why: String,
        log: PathBuf,
    },
}

pub(super) struct Layer {
    board: Board,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    logs: std::collections::BTreeMap<String, PathBuf>,
}

/// For checks that only know yes and no.
pub(super) fn ready(is_ready: bool, otherwise: &str) -> Result<(), String> {
    if is_ready {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

impl Layer {
    pub(super) fn new(board: Board) -> Self {
        Self {
            board,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            logs: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    pub(super) fn is_running(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Starts a program and keeps it running until [`Self::end`].
    pub(super) fn keep(&mut self, launch: Launch, admin_url: Option<String>) {
        self.board
            .process(&launch.name, |process| process.admin_url = admin_url);
        self.logs.insert(launch.name.clone(), launch.log.clone());
        self.tasks
            .spawn(keep(launch, self.board.clone(), self.stop.clone()));
    }

    /// Ends all of them, at the same time, and waits for it.
    pub(super) async fn end(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Waits until `check` is content.
    pub(super) async fn until_ready<F, C>(
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
            let why = match tokio::time::timeout(Duration::from_secs(3), check()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) => "it does not answer".to_owned(),
            };
            let (restarts, end) = self.board.read(|state| {
                let process = state.processes.get(name).cloned().unwrap_or_default();
                (process.restarts, process.last_end.unwrap_or_default())
            });
            if restarts >= ENDS_TO_GIVE_UP {
                let words = last_lines(&tail(&log, 4096), 1);
                return Err(NotReady::KeepsEnding {
                    name: name.to_owned(),
                    end,
                    words,
                    log,
                });
            }
            if Instant::now() > deadline {
                return Err(NotReady::TooSlow {
                    name: name.to_owned(),
                    waited: within,
                    why,
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The pause before the next start, from the last pause and how long it has run.
fn next_pause(last: Duration, ran: Duration) -> Duration {
    if ran >= RECOVERED {
        SHORTEST_PAUSE
    } else {
        (last * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }
}

async fn keep(launch: Launch, board: Board, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let end = match launch.start() {
            Err(error) => format!("it cannot be started: {error}"),
            Ok(mut running) => {
                let identity = running.identity;
                board.process(&launch.name, |process| {
                    process.identity = Some(identity);
                    process.started_at = chrono::Utc::now().timestamp();
                });
                tokio::select! {
                    status = running.wait() => {
                        running.finish().await;
                        status.map_or_else(|error| error.to_string(), |status| status.to_string())
                    }
                    () = stop.cancelled() => {
                        running.end(&launch).await;
                        board.process(&launch.name, |process| process.identity = None);
                        return;
                    }
                }
            }
        };
        pause = next_pause(pause, begun.elapsed());
        board.process(&launch.name, |process| {
            process.identity = None;
            process.restarts += 1;
            process.last_end = Some(end.clone());
        });
        board.say(&format!(
            "{} ended ({end}); starting it again in {pause:?}",
            launch.name
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
    fn the_pause_grows_while_it_keeps_dying_and_is_forgotten_when_it_has_run() {
        let short = Duration::from_millis(5);
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = next_pause(pause, short);
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(next_pause(pause, RECOVERED), SHORTEST_PAUSE);
    }
}
