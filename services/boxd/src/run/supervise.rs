//! The life of a run's process: its timeout, its readers, its end.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentbox_box_protocol::proto;
use agentbox_contracts::logs::OutputStream;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Registry, Run};
use crate::lock::lock;
use crate::pump::{Sink, Source, pump};
use crate::reaper::{Child, Ended};
use crate::trace::Trace;
use crate::usage;

/// What a command that ran into its timeout exits with, as timeout(1) says it.
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 128 + 9;
/// A killed process that the kernel does not let go (a hung disk) does not hold the
/// answer any longer.
const KILL_DEADLINE: Duration = Duration::from_millis(500);
/// Readers get what was written when the box ends, if they read it within this.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

pub struct Limits {
    pub began: Instant,
    pub timeout: Option<Duration>,
    pub orphan_grace: Duration,
    /// The box's count when the run began.
    pub oom_kills: u64,
    /// The caller's trace, and since when the process has been there.
    pub trace: Option<(Trace, SystemTime)>,
}

/// How the process ended, and why.
struct End {
    /// `None`: killed, and still there.
    ended: Option<Ended>,
    /// boxd killed it.
    killed: bool,
    /// Because the box ends.
    closed: bool,
    timed_out: bool,
    duration: Duration,
}

/// Until the run has ended and its output is in the ring.
pub async fn supervise(
    run: Arc<Run>,
    mut child: Child,
    sources: Vec<(OutputStream, Source)>,
    limits: Limits,
    registry: Arc<Registry>,
    closing: CancellationToken,
) {
    let pumps = sources.into_iter().map(|(stream, source)| {
        let sink = IntoRing { run: &run, stream };
        let command_ended = run.command_ended.clone();
        async move { pump(source, &sink, command_ended).await }
    });
    let mut pumps = pin!(join_all(pumps));
    let mut pumped = false;
    let mut unread = run.unread_since.subscribe();
    let mut deadline = limits
        .timeout
        .and_then(|timeout| limits.began.checked_add(timeout));
    let (mut killed, mut closed, mut timed_out) = (false, false, false);

    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut child.ended => break ended.ok(),
            _ = &mut pumps, if !pumped => pumped = true,
            () = at(deadline) => {
                if killed {
                    break None;
                }
                timed_out = true;
            }
            () = unread_for(&mut unread, limits.orphan_grace), if !killed => {}
            () = closing.cancelled(), if !killed => {}
        }
        if timed_out
            || (!killed && (closing.is_cancelled() || is_orphan(&run, limits.orphan_grace)))
        {
            killed = true;
            closed = closing.is_cancelled() && !timed_out;
            if closing.is_cancelled() {
                run.kill_group();
            } else {
                run.kill();
            }
            deadline = Instant::now().checked_add(KILL_DEADLINE);
        }
    };
    let duration = limits.began.elapsed();
    run.command_ended.cancel();

    let complete = pumped
        || tokio::select! {
            biased;
            _ = &mut pumps => true,
            () = unread_for(&mut unread, limits.orphan_grace) => false,
            () = after_closing(&closing) => false,
        };
    let end = End {
        ended,
        killed,
        closed,
        timed_out,
        duration,
    };
    if complete && end.is_its_own() {
        let mut exited = exited(&end, limits.oom_kills);
        if let Some((trace, launched)) = &limits.trace {
            exited.spans = trace.of_command(*launched, duration);
        }
        run.finish(exited).await;
        registry.finish(&run);
    } else {
        // An exit without all the output before it would be a lie, and so would the code of
        // a command that ended only because its box did.
        registry.forget(&run);
        run.cut();
    }
}

impl End {
    fn is_its_own(&self) -> bool {
        !self.closed || matches!(self.ended, Some(Ended::Exited(_)))
    }
}

fn exited(end: &End, oom_kills_before: u64) -> proto::Exited {
    let exit_code = if end.timed_out {
        TIMED_OUT
    } else {
        end.ended.map_or(KILLED, Ended::exit_code)
    };
    let by_sigkill = matches!(end.ended, Some(Ended::Signalled(9)));
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

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Returns when nobody has read for `grace`.
async fn unread_for(unread: &mut watch::Receiver<Option<Instant>>, grace: Duration) {
    loop {
        let since = *unread.borrow_and_update();
        tokio::select! {
            () = at(since.and_then(|since| since.checked_add(grace))) => return,
            changed = unread.changed() => if changed.is_err() { return },
        }
    }
}

async fn after_closing(closing: &CancellationToken) {
    closing.cancelled().await;
    sleep(CLOSING_GRACE).await;
}

impl Run {
    async fn finish(&self, exited: proto::Exited) {
        lock(&self.state).exited = Some(exited);
        // Closing our end hangs up on those who still have the terminal.
        lock(&self.terminal).take();
        *self.stdin.lock().await = None;
        self.news.send_modify(|count| *count += 1);
    }

    /// Its reader gets what there is, and is then told that no exit follows.
    fn cut(&self) {
        lock(&self.state).cut = true;
        self.news.send_modify(|count| *count += 1);
    }

    fn has_room(&self) -> bool {
        let state = lock(&self.state);
        state.ring.room(state.floor()) > 0
    }
}

/// One of a run's streams on its way into the ring.
struct IntoRing<'run> {
    run: &'run Run,
    stream: OutputStream,
}

impl Sink for IntoRing<'_> {
    fn fill(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut state = lock(&self.run.state);
        let room = state.ring.room(state.floor()).min(buffer.len());
        let buffer = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty())?;
        let result = read(buffer);
        if let Ok(count @ 1..) = result {
            state.ring.push(self.stream, &buffer[..count]);
            drop(state);
            self.run.news.send_modify(|count| *count += 1);
        }
        Some(result)
    }

    async fn room(&self) {
        let mut changes = self.run.room.subscribe();
        while !self.run.has_room() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_says_what_happened() {
        let code = |ended, killed, timed_out| {
            let end = End {
                ended,
                killed,
                closed: false,
                timed_out,
                duration: Duration::ZERO,
            };
            exited(&end, u64::MAX).exit_code
        };
        assert_eq!(code(Some(Ended::Exited(3)), false, false), 3);
        assert_eq!(code(Some(Ended::Signalled(15)), false, false), 143);
        assert_eq!(code(Some(Ended::Signalled(9)), true, false), 137);
        assert_eq!(code(Some(Ended::Signalled(9)), true, true), 124);
        assert_eq!(code(None, true, false), 137);
        assert_eq!(code(None, true, true), 124);
    }

    #[test]
    fn what_its_box_took_along_has_no_end_of_its_own() {
        let own = |ended, closed| {
            let end = End {
                ended,
                killed: closed,
                closed,
                timed_out: false,
                duration: Duration::ZERO,
            };
            end.is_its_own()
        };
        assert!(own(Some(Ended::Signalled(9)), false));
        assert!(own(Some(Ended::Exited(3)), true), "it was faster");
        assert!(!own(Some(Ended::Signalled(9)), true));
        assert!(!own(None, true));
    }
}
