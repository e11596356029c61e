//! Supervises a run's process: its timeout, its readers and its exit.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentbox_box_protocol::proto;
use agentbox_contracts::logs::OutputStream;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Registry, Run};
use crate::background_output::BackgroundOutput;
use crate::pump::{Sink, Source, pump};
use crate::reaper::{Child, ExitStatus};
use crate::trace::Trace;
use crate::usage;

/// The exit code of a command that reached its timeout, as of timeout(1).
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 128 + 9;
/// How long the exit of a killed process is awaited. The kernel may hold a process much
/// longer, for example on a hung disk.
const KILL_DEADLINE: Duration = Duration::from_millis(500);
/// How long readers have to read the remaining output when the box shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

pub struct Limits {
    pub started_at: Instant,
    pub timeout: Option<Duration>,
    pub orphan_grace: Duration,
    /// The box's OOM kill count when the run started.
    pub oom_kills: u64,
    /// The caller's trace, and when the process was started.
    pub trace: Option<(Trace, SystemTime)>,
}

/// How and why the process ended.
struct RunEnd {
    /// `None`: killed, but not reaped within [`KILL_DEADLINE`].
    status: Option<ExitStatus>,
    /// boxd killed it.
    killed: bool,
    /// Killed because the box shuts down.
    by_shutdown: bool,
    timed_out: bool,
    duration: Duration,
}

/// Supervises the run until it has ended and its output is in the ring. Processes that outlive
/// the command keep its pipes, see [`BackgroundOutput`].
pub async fn supervise(
    run: Arc<Run>,
    mut child: Child,
    sources: Vec<(OutputStream, Source)>,
    limits: Limits,
    registry: Arc<Registry>,
    background_output: Arc<BackgroundOutput>,
    closing: CancellationToken,
) {
    let pumps = sources.iter().map(|(stream, source)| {
        let sink = RingSink {
            run: &run,
            stream: *stream,
        };
        let command_ended = run.command_ended.clone();
        async move { pump(source, &sink, command_ended).await }
    });
    let mut pumps = Box::pin(join_all(pumps));
    let mut output_done = false;
    let mut unread = run.unread_since.subscribe();
    let mut deadline = limits
        .timeout
        .and_then(|timeout| limits.started_at.checked_add(timeout));
    let (mut killed, mut by_shutdown, mut timed_out) = (false, false, false);

    let status = loop {
        tokio::select! {
            biased;
            status = &mut child.ended => break status.ok(),
            _ = &mut pumps, if !output_done => output_done = true,
            () = sleep_until_some(deadline) => {
                if killed {
                    break None;
                }
                timed_out = true;
            }
            () = unread_for(&mut unread, limits.orphan_grace), if !killed => {}
            () = closing.cancelled(), if !killed => {}
        }
        // Once only: another event, such as the end of the output, must not extend the deadline.
        if !killed && (timed_out || closing.is_cancelled() || is_orphan(&run, limits.orphan_grace))
        {
            killed = true;
            by_shutdown = closing.is_cancelled() && !timed_out;
            if closing.is_cancelled() {
                run.kill_group();
            } else {
                run.kill();
            }
            deadline = Instant::now().checked_add(KILL_DEADLINE);
        }
    };
    let duration = limits.started_at.elapsed();
    run.command_ended.cancel();

    let complete = output_done
        || tokio::select! {
            biased;
            _ = &mut pumps => true,
            () = unread_for(&mut unread, limits.orphan_grace) => false,
            () = after_shutdown_grace(&closing) => false,
        };
    drop(pumps);
    for (_, source) in sources {
        background_output.keep(source);
    }
    let end = RunEnd {
        status,
        killed,
        by_shutdown,
        timed_out,
        duration,
    };
    if complete && end.is_own_exit() {
        let mut exited = exited(&end, limits.oom_kills);
        if let Some((trace, launched)) = &limits.trace {
            exited.spans = trace.command_spans(*launched, duration);
        }
        run.finish(exited).await;
        registry.finish(&run);
    } else {
        // No exit is reported without all the output before it, nor for a command that
        // was killed by the shutdown of its box.
        registry.remove(&run);
        run.abort();
    }
}

impl RunEnd {
    /// Whether the command ended by itself, not by the shutdown of its box.
    fn is_own_exit(&self) -> bool {
        !self.by_shutdown || matches!(self.status, Some(ExitStatus::Exited(_)))
    }
}

fn exited(end: &RunEnd, oom_kills_before: u64) -> proto::Exited {
    let exit_code = if end.timed_out {
        TIMED_OUT
    } else {
        end.status.map_or(KILLED, ExitStatus::exit_code)
    };
    let by_sigkill = matches!(end.status, Some(ExitStatus::Signalled(9)));
    proto::Exited {
        exit_code,
        timed_out: end.timed_out,
        oom_killed: by_sigkill && !end.killed && usage::oom_kills() > oom_kills_before,
        duration_ms: u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
        start_error: String::new(),
        spans: Vec::new(),
    }
}

fn is_orphan(run: &Run, grace: Duration) -> bool {
    run.unread_since
        .borrow()
        .is_some_and(|since| since.elapsed() >= grace)
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Returns when there has been no reader for `grace`.
async fn unread_for(unread: &mut watch::Receiver<Option<Instant>>, grace: Duration) {
    loop {
        let since = *unread.borrow_and_update();
        tokio::select! {
            () = sleep_until_some(since.and_then(|since| since.checked_add(grace))) => return,
            changed = unread.changed() => if changed.is_err() { return },
        }
    }
}

async fn after_shutdown_grace(closing: &CancellationToken) {
    closing.cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

impl Run {
    async fn finish(&self, exited: proto::Exited) {
        self.state.lock().exited = Some(exited);
        // Closing boxd's end sends SIGHUP to processes that still use the terminal.
        self.terminal.lock().take();
        *self.stdin.lock().await = None;
        self.output_changed.send_modify(|count| *count += 1);
    }

    /// Ends the run without an exit: its reader gets the remaining output, then an error.
    fn abort(&self) {
        self.state.lock().aborted = true;
        self.output_changed.send_modify(|count| *count += 1);
    }

    fn has_space(&self) -> bool {
        let state = self.state.lock();
        state.ring.free_space(state.floor()) > 0
    }
}

/// Writes one of a run's output streams into its ring.
struct RingSink<'run> {
    run: &'run Run,
    stream: OutputStream,
}

impl Sink for RingSink<'_> {
    fn read_into(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut state = self.run.state.lock();
        let space = state.ring.free_space(state.floor()).min(buffer.len());
        let buffer = buffer
            .get_mut(..space)
            .filter(|buffer| !buffer.is_empty())?;
        let result = read(buffer);
        if let Ok(count @ 1..) = result {
            state.ring.push(self.stream, &buffer[..count]);
            drop(state);
            self.run.output_changed.send_modify(|count| *count += 1);
        }
        Some(result)
    }

    async fn writable(&self) {
        let mut changes = self.run.space_freed.subscribe();
        while !self.run.has_space() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use parking_lot::Mutex;
    use tokio::sync::oneshot;
    use tokio::time::{timeout, timeout_at};
    use tokio_util::task::TaskTracker;

    use super::super::ring::Ring;
    use super::super::{State, output_pipe};
    use super::*;
    use crate::reaper::Reaper;

    fn run_with_a_reader() -> Arc<Run> {
        Arc::new(Run {
            id: "killed-once".to_owned().try_into().unwrap(),
            // The reaper signals only processes that it started.
            leader: nix::unistd::Pid::from_raw(i32::MAX),
            reaper: Reaper::new().unwrap().0,
            state: Mutex::new(State {
                ring: Ring::new(1024),
                sent: 0,
                acked: 0,
                acks: false,
                reader: 1,
                exited: None,
                aborted: false,
            }),
            output_changed: watch::Sender::new(0),
            space_freed: watch::Sender::new(0),
            unread_since: watch::Sender::new(None),
            stdin: tokio::sync::Mutex::new(None),
            terminal: Mutex::new(None),
            command_ended: CancellationToken::new(),
        })
    }

    #[tokio::test]
    async fn event_after_the_kill_does_not_extend_its_deadline() {
        let run = run_with_a_reader();
        // It never ends, as a process that the kernel holds.
        let (_sender, ended) = oneshot::channel();
        let child = Child {
            pid: run.leader,
            ended,
        };
        let (output, source) = output_pipe().unwrap();
        let limits = Limits {
            started_at: Instant::now(),
            timeout: Some(Duration::ZERO),
            orphan_grace: Duration::from_secs(3600),
            oom_kills: 0,
            trace: None,
        };
        let closing = CancellationToken::new();
        let mut supervised = pin!(supervise(
            Arc::clone(&run),
            child,
            vec![(OutputStream::Stdout, source)],
            limits,
            Arc::new(Registry::default()),
            Arc::new(BackgroundOutput::new(TaskTracker::new(), closing.clone())),
            closing,
        ));
        let killed = timeout(Duration::from_millis(50), supervised.as_mut()).await;
        killed.unwrap_err();
        let killed_by = Instant::now();
        sleep_until(killed_by + KILL_DEADLINE / 2).await;
        drop(output);
        let end = killed_by + KILL_DEADLINE + KILL_DEADLINE / 3;
        timeout_at(end, supervised).await.unwrap();
        let exited = run.state.lock().exited.clone().unwrap();
        assert_eq!((exited.exit_code, exited.timed_out), (TIMED_OUT, true));
    }

    #[test]
    fn exit_code_distinguishes_exit_signal_and_timeout() {
        let code = |status, killed, timed_out| {
            let end = RunEnd {
                status,
                killed,
                by_shutdown: false,
                timed_out,
                duration: Duration::ZERO,
            };
            exited(&end, u64::MAX).exit_code
        };
        assert_eq!(code(Some(ExitStatus::Exited(3)), false, false), 3);
        assert_eq!(code(Some(ExitStatus::Signalled(15)), false, false), 143);
        assert_eq!(code(Some(ExitStatus::Signalled(9)), true, false), 137);
        assert_eq!(code(Some(ExitStatus::Signalled(9)), true, true), 124);
        assert_eq!(code(None, true, false), 137);
        assert_eq!(code(None, true, true), 124);
    }

    #[test]
    fn command_killed_by_shutdown_has_no_exit() {
        let own = |status, by_shutdown| {
            let end = RunEnd {
                status,
                killed: by_shutdown,
                by_shutdown,
                timed_out: false,
                duration: Duration::ZERO,
            };
            end.is_own_exit()
        };
        assert!(own(Some(ExitStatus::Signalled(9)), false));
        assert!(
            own(Some(ExitStatus::Exited(3)), true),
            "it exited before the kill"
        );
        assert!(!own(Some(ExitStatus::Signalled(9)), true));
        assert!(!own(None, true));
    }
}
