//! Starts, reaps and signals child processes; nothing else in boxd does.
//!
//! As PID 1 boxd is also the parent of all orphans of the box. Commands are started by one
//! thread that is created with the reaper: at the box's process limit the kernel refuses a
//! new thread, and only the command that was to be started may fail. Invariants:
//! * I1. Only [`Reaper::run`] reaps; it sends the exit status to the task that started the
//!   child.
//! * I2. A child is not reaped before that task is registered, nor while it is being
//!   started ([`Spawner`] itself waits for a child whose exec failed).
//! * I3. A group is signalled only while its leader is not reaped: until then the kernel
//!   cannot reuse its id.
//! * I4. A start creates no thread.
//! * I5. A process that is stopped (SIGSTOP) before it executes is killed after [`STOPPED_START`]. Its
//!   user may do so once it has become that user, and nothing else is started or reaped meanwhile.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::command::{NewProcess, Spawner};

/// The number of scans for a session's processes: a process that forks during one scan is
/// found by the next.
const SESSION_PASSES: usize = 3;
/// The stack of each of boxd's threads, in bytes. Set explicitly: the default depends on an
/// environment variable, which an image may set.
pub const THREAD_STACK_BYTES: usize = 2 * 1024 * 1024;

/// How long a start takes before its process is killed if it is stopped.
const STOPPED_START: Duration = Duration::from_secs(2);
/// How often a start that others wait for is looked at.
const START_CHECK: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Exited(i32),
    Signalled(i32),
}

impl ExitStatus {
    /// The exit code as shells report it: 0..=255, or 128 plus the signal's number.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }

    fn from_wait_status(status: WaitStatus) -> Option<Self> {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Self::Exited(code)),
            (_, Some(signal)) => Some(Self::Signalled(signal)),
            // Stopped or continued: the process has not ended.
            _ => None,
        }
    }
}

/// A started process, leader of its own session and group.
pub struct Child {
    pub pid: Pid,
    pub ended: oneshot::Receiver<ExitStatus>,
}

/// The children that are not reaped yet, by process id.
type Children = Mutex<HashMap<i32, oneshot::Sender<ExitStatus>>>;

/// The id of the thread that starts commands, and since when it starts the present one.
type Starting = Mutex<Option<(Pid, Instant)>>;

/// A process for the thread that starts commands.
struct StartRequest {
    process: NewProcess,
    started: oneshot::Sender<io::Result<Child>>,
}

pub struct Reaper {
    /// Held by a start until its child is registered, and by reaping: I2. It is fair: neither waits for
    /// more than one of the other.
    gate: Arc<tokio::sync::Mutex<()>>,
    children: Arc<Children>,
    starting: Arc<Starting>,
    /// Notified when a process was started.
    started: Arc<Notify>,
    /// The number of waiting requests is bounded by the box's slots.
    requests: mpsc::Sender<StartRequest>,
}

impl Reaper {
    /// Makes boxd the parent of the box's orphans, also when it is not PID 1, and creates the
    /// thread that starts commands. The thread ends when the reaper is dropped.
    ///
    /// # Errors
    /// As `sigaction(2)`, `prctl(2)`, `mmap(2)`, `pthread_create(3)`.
    pub fn new() -> io::Result<(Arc<Self>, SignalStream)> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let child_signals = signal(SignalKind::child())?;
        let children = Arc::new(Children::default());
        let (requests, received) = mpsc::channel();
        let registered = Arc::clone(&children);
        let starting = Arc::new(Starting::default());
        let present = Arc::clone(&starting);
        let started = Arc::new(Notify::new());
        let notified = Arc::clone(&started);
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        let of_thread = Arc::clone(&gate);
        let spawner = Spawner::new()?;
        thread::Builder::new()
            .name("boxd-start".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                let thread = StartThread {
                    spawner,
                    gate: of_thread,
                    children: registered,
                    starting: present,
                    started: notified,
                };
                thread.run(&received);
            })?;
        let this = Self {
            gate,
            children,
            starting,
            started,
            requests,
        };
        Ok((Arc::new(this), child_signals))
    }

    /// Reaps until `stop`. Must be run once only.
    pub async fn run(self: Arc<Self>, mut child_signals: SignalStream, stop: CancellationToken) {
        loop {
            {
                let _no_starts = self.watching(self.gate.lock()).await;
                self.reap_all();
            }
            tokio::select! {
                _ = child_signals.recv() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn reap_all(&self) {
        let mut children = self.children.lock();
        // ECHILD (no children) ends the loop too.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = ExitStatus::from_wait_status(status) else {
                continue;
            };
            if let Some(sender) = children.remove(&pid.as_raw_nonzero().get()) {
                // The receiver may be gone; then the status is not needed.
                let _ = sender.send(status);
            }
        }
    }

    /// Starts a process, which leads its session.
    ///
    /// # Errors
    /// As [`Spawner::spawn`].
    pub async fn start(&self, process: NewProcess) -> io::Result<Child> {
        let (started, result) = oneshot::channel();
        let request = StartRequest { process, started };
        let ended = || io::Error::other("the thread that starts commands has ended");
        self.requests.send(request).map_err(|_| ended())?;
        let child = self.watching(result).await;
        child.unwrap_or_else(|_| Err(ended()))
    }

    /// Resolves when a process is started after this call.
    pub fn next_start(&self) -> Notified<'_> {
        self.started.notified()
    }

    /// Awaits `waiting`, and meanwhile kills the process that is being started if it is stopped: it would
    /// block `waiting` for ever (I5).
    async fn watching<T>(&self, waiting: impl Future<Output = T>) -> T {
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                done = &mut waiting => return done,
                () = sleep(START_CHECK) => self.kill_stopped_start(),
            }
        }
    }

    /// Kills the process that is being started, if it is stopped.
    fn kill_stopped_start(&self) {
        // Held to the end: nothing is reaped meanwhile, because the thread keeps its gate.
        let starting = self.starting.lock();
        let Some((thread, since)) = *starting else {
            return;
        };
        if since.elapsed() < STOPPED_START {
            return;
        }
        // Orphans are children of another thread.
        let path = format!("/proc/self/task/{thread}/children");
        let Ok(listed) = std::fs::read_to_string(path) else {
            return;
        };
        let children = self.children.lock();
        for pid in listed.split_whitespace() {
            let Ok(pid) = pid.parse::<i32>() else {
                continue;
            };
            if !children.contains_key(&pid) && is_stopped(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Signals the process group of `leader`; `false` when the leader has ended.
    pub fn signal_group(&self, leader: Pid, signal: Signal) -> bool {
        let children = self.children.lock();
        children.contains_key(&leader.as_raw()) && killpg(leader, signal).is_ok()
    }

    /// Kills the process group of `leader` and the rest of its session, such as the
    /// background jobs of a shell with job control. Does nothing when the leader has ended.
    pub fn kill_session(&self, leader: Pid) {
        let children = self.children.lock();
        if !children.contains_key(&leader.as_raw()) {
            return;
        }
        for _ in 0..SESSION_PASSES {
            let members = session_members(leader);
            let _ = killpg(leader, Signal::SIGKILL);
            if members.is_empty() {
                return;
            }
            for member in members {
                let _ = kill(member, Signal::SIGKILL);
            }
        }
    }
}

/// The thread that starts commands.
struct StartThread {
    spawner: Spawner,
    gate: Arc<tokio::sync::Mutex<()>>,
    children: Arc<Children>,
    starting: Arc<Starting>,
    started: Arc<Notify>,
}

impl StartThread {
    /// Starts the requested commands, one after the other, until the reaper is dropped.
    fn run(mut self, requests: &mpsc::Receiver<StartRequest>) {
        for StartRequest { process, started } in requests {
            if started.is_closed() {
                // Its caller has gone away while it waited.
                continue;
            }
            let child = self.start(&process);
            // Closes boxd's copies of the command's streams.
            drop(process);
            self.started.notify_waiters();
            // The receiver may be gone; the child is registered and will be reaped.
            let _ = started.send(child);
        }
    }

    /// Starts the process and registers it.
    fn start(&mut self, process: &NewProcess) -> io::Result<Child> {
        let _not_reaped = self.gate.blocking_lock();
        *self.starting.lock() = Some((gettid(), Instant::now()));
        let spawned = self.spawner.spawn(process);
        let (sender, ended) = oneshot::channel();
        if let Ok(pid) = &spawned {
            self.children.lock().insert(pid.as_raw(), sender);
        }
        *self.starting.lock() = None;
        spawned.map(|pid| Child { pid, ended })
    }
}

/// Whether the box has a process besides boxd, which is the parent of its commands and of all orphans.
#[must_use]
pub fn has_processes() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Not reaped here: I1.
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

fn is_stopped(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        fields.is_some_and(|fields| fields.starts_with(['T', 't']))
    })
}

/// The running processes of the session outside its leader's group.
fn session_members(leader: Pid) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| is_straggler(&stat, leader.as_raw()))
        })
        .map(Pid::from_raw)
        .collect()
}

/// `stat` as in proc_pid_stat(5): `pid (name) state ppid pgrp session …`.
fn is_straggler(stat: &str, leader: i32) -> bool {
    // A process name may contain parentheses: the last one ends it.
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = fields.split(' ');
    let state = fields.next();
    let mut number = || fields.next().and_then(|text| text.parse::<i32>().ok());
    let (_parent, group, session) = (number(), number(), number());
    state != Some("Z") && session == Some(leader) && group != Some(leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn straggler_is_a_live_session_member_outside_the_group() {
        for (stat, expected) in [
            ("9 (a) S 1 9 7 0 -1", true),
            ("9 (a) ) Z 1) R 1 9 7 0", true),
            ("9 (a) Z 1 9 7 0", false),
            ("9 (a) S 1 7 7 0", false),
            ("9 (a) S 1 9 8 0", false),
            ("", false),
            ("9 (a", false),
        ] {
            assert_eq!(is_straggler(stat, 7), expected, "{stat}");
        }
    }
}
