//! Supervises a process: its timeout, its readers and its end.

use std::future::pending;
use std::io;
use std::time::Duration;

use agentbox_contracts::logs::OutputStream;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Launched, OutputStore};
use crate::background_output::BackgroundOutput;
use crate::pump::{Sink, pump};
use crate::reaper::ExitStatus;
use crate::usage;

/// How long the exit of a killed process is awaited. The kernel may hold a process much
/// longer, for example on a hung disk.
const KILL_DEADLINE: Duration = Duration::from_millis(500);
/// How long readers have to read the remaining output when the box shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
pub struct Limits {
    pub timeout: Option<Duration>,
    /// How long it may run without a reader. `None`: it needs none.
    pub orphan_grace: Option<Duration>,
}

/// How and why the process ended.
pub struct ProcessEnd {
    /// `None`: killed, but not reaped within [`KILL_DEADLINE`].
    pub status: Option<ExitStatus>,
    pub timed_out: bool,
    /// The kernel's OOM killer killed a process of this box while the command ran, and the
    /// command ended by SIGKILL.
    pub oom_killed: bool,
    pub duration: Duration,
    /// All output is in the store.
    pub is_complete: bool,
    /// Killed because the box shuts down.
    by_shutdown: bool,
}

impl ProcessEnd {
    /// Whether the command ended by itself, not by the shutdown of its box.
    #[must_use]
    pub fn is_own_exit(&self) -> bool {
        !self.by_shutdown || matches!(self.status, Some(ExitStatus::Exited(_)))
    }
}

/// Supervises the process until it has ended and its output is in the store. Processes that
/// outlive the command keep its pipes, see [`BackgroundOutput`].
pub async fn supervise<S: OutputStore>(
    launched: Launched,
    store: &S,
    limits: Limits,
    background_output: &BackgroundOutput,
    closing: &CancellationToken,
) -> ProcessEnd {
    let Launched {
        process,
        mut child,
        sources,
        started_at,
        oom_kills,
        ..
    } = launched;
    let pumps = sources.iter().map(|(stream, source)| {
        let sink = StreamSink {
            store,
            stream: *stream,
        };
        let ended = process.ended.clone();
        async move { pump(source, &sink, ended).await }
    });
    let mut pumps = Box::pin(join_all(pumps));
    let mut output_done = false;
    let mut unread = store.unread_since();
    let mut deadline = limits
        .timeout
        .and_then(|timeout| started_at.checked_add(timeout));
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
        let is_orphan = is_orphan(&unread, limits.orphan_grace);
        if !killed && (timed_out || closing.is_cancelled() || is_orphan) {
            killed = true;
            by_shutdown = closing.is_cancelled() && !timed_out;
            if closing.is_cancelled() {
                process.kill_group();
            } else {
                process.kill();
            }
            deadline = Instant::now().checked_add(KILL_DEADLINE);
        }
    };
    let duration = started_at.elapsed();
    process.ended.cancel();

    let is_complete = output_done
        || tokio::select! {
            biased;
            _ = &mut pumps => true,
            () = unread_for(&mut unread, limits.orphan_grace) => false,
            () = after_shutdown_grace(closing) => false,
        };
    drop(pumps);
    for (_, source) in sources {
        background_output.keep(source);
    }
    process.close().await;
    let by_sigkill = matches!(status, Some(ExitStatus::Signalled(9)));
    ProcessEnd {
        status,
        timed_out,
        oom_killed: by_sigkill && !killed && usage::oom_kills() > oom_kills,
        duration,
        is_complete,
        by_shutdown,
    }
}

fn is_orphan(unread: &watch::Receiver<Option<Instant>>, grace: Option<Duration>) -> bool {
    let since = *unread.borrow();
    since
        .zip(grace)
        .is_some_and(|(since, grace)| since.elapsed() >= grace)
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Returns when there has been no reader for `grace`.
async fn unread_for(unread: &mut watch::Receiver<Option<Instant>>, grace: Option<Duration>) {
    let Some(grace) = grace else {
        return pending().await;
    };
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

/// Writes one output stream of a process into its store.
struct StreamSink<'store, S> {
    store: &'store S,
    stream: OutputStream,
}

impl<S: OutputStore> Sink for StreamSink<'_, S> {
    fn read_into(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        self.store.read_into(self.stream, buffer, read)
    }

    async fn writable(&self) {
        self.store.writable(self.stream).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use agentbox_testing::repeat_until_below;
    use parking_lot::Mutex;
    use tokio::sync::oneshot;
    use tokio_util::task::TaskTracker;

    use super::super::{Process, output_pipe};
    use super::*;
    use crate::reaper::{Child, Reaper};

    /// Drops all output; has a reader.
    struct Read(watch::Sender<Option<Instant>>);

    impl OutputStore for Read {
        fn read_into(
            &self,
            _: OutputStream,
            buffer: &mut [u8],
            read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
        ) -> Option<io::Result<usize>> {
            Some(read(buffer))
        }

        async fn writable(&self, _: OutputStream) {}

        fn unread_since(&self) -> watch::Receiver<Option<Instant>> {
            self.0.subscribe()
        }
    }

    /// How long a supervision takes that kills at once and whose output ends in the middle of
    /// [`KILL_DEADLINE`].
    async fn supervision_with_an_event_after_the_kill() -> Duration {
        // The reaper signals only processes that it started.
        let leader = nix::unistd::Pid::from_raw(i32::MAX);
        // It never ends, as a process that the kernel holds.
        let (_sender, ended) = oneshot::channel();
        let (output, source) = output_pipe().unwrap();
        let launched = Launched {
            process: Arc::new(Process {
                leader,
                reaper: Reaper::new().unwrap().0,
                stdin: tokio::sync::Mutex::new(None),
                terminal: Mutex::new(None),
                ended: CancellationToken::new(),
            }),
            child: Child { pid: leader, ended },
            sources: vec![(OutputStream::Stdout, source)],
            started_at: Instant::now(),
            started_at_clock: SystemTime::now(),
            oom_kills: 0,
        };
        let limits = Limits {
            timeout: Some(Duration::ZERO),
            orphan_grace: Some(Duration::from_secs(3600)),
        };
        let closing = CancellationToken::new();
        let background_output = BackgroundOutput::new(TaskTracker::new(), closing.clone());
        let store = Read(watch::Sender::new(None));
        let begun = Instant::now();
        let supervised = supervise(launched, &store, limits, &background_output, &closing);
        let event = async {
            sleep(KILL_DEADLINE / 2).await;
            drop(output);
        };
        let (end, ()) = tokio::join!(supervised, event);
        let took = begun.elapsed();
        assert_eq!((end.status, end.timed_out), (None, true));
        assert!(took >= KILL_DEADLINE, "{took:?}");
        took
    }

    #[tokio::test]
    async fn event_after_the_kill_does_not_extend_its_deadline() {
        let bound = KILL_DEADLINE + KILL_DEADLINE / 3;
        repeat_until_below(bound, supervision_with_an_event_after_the_kill).await;
    }

    #[test]
    fn command_killed_by_shutdown_has_no_exit() {
        let own = |status, by_shutdown| {
            let end = ProcessEnd {
                status,
                timed_out: false,
                oom_killed: false,
                duration: Duration::ZERO,
                is_complete: true,
                by_shutdown,
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
