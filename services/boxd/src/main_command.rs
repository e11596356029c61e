//! The box's main command: one, once.
//!
//! Its output is the box's log, and is passed to boxd's own stdout and stderr; its end is
//! the box's end. Invariants:
//! * I1. It is started at most once, whoever asks how often.
//! * I2. How it ended is in the termination file before anybody hears of it.

mod lines;
mod tee;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use agentbox_box_protocol::output::NewEntry;
use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::logs::OutputStream;
use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::command::{CannotStart, NOT_EXECUTABLE, Order, Session, launchable};
use crate::environment::Environment;
use crate::lock::lock;
use crate::logs::Log;
use crate::pump::{Sink, Source, pump};
use crate::reaper::{Child, Ended, Reaper};
use crate::run::output_pipe;
use crate::usage;
use lines::Lines;

/// What the main command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none and will be none.
    Idle,
    /// It comes with `Configure`.
    Unconfigured,
    Starting,
    Running(Pid),
    /// With this exit code, 0..=255.
    Exited(i32),
}

pub struct MainCommand {
    pub reaper: Arc<Reaper>,
    pub environment: Arc<Environment>,
    pub log: Arc<Log>,
    pub tasks: TaskTracker,
    pub termination_file: Option<PathBuf>,
    phase: watch::Sender<Phase>,
}

impl MainCommand {
    #[must_use]
    pub fn new(
        reaper: Arc<Reaper>,
        environment: Arc<Environment>,
        log: Arc<Log>,
        tasks: TaskTracker,
        termination_file: Option<PathBuf>,
        phase: Phase,
    ) -> Self {
        let phase = watch::Sender::new(phase);
        Self {
            reaper,
            environment,
            log,
            tasks,
            termination_file,
            phase,
        }
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Its exit code, once it has ended; never for a box that idles.
    pub async fn ended(&self) -> i32 {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited(code) = *phase.borrow_and_update() {
                return code;
            }
            if phase.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Passes a signal on to its group; `false` when there is none.
    pub fn signal(&self, signal: Signal) -> bool {
        match self.phase() {
            Phase::Running(leader) => self.reaper.signal_group(leader, signal),
            // It will have ended, or gets the runtime's next signal.
            Phase::Starting | Phase::Exited(_) => true,
            Phase::Idle | Phase::Unconfigured => false,
        }
    }

    /// Without a command, the box idles. To be called once (I1 is the caller's: `life`
    /// for argv, `service` for `Configure`). A command that cannot start has ended.
    pub async fn start(self: &Arc<Self>, argv: Vec<OsString>) {
        if argv.is_empty() {
            self.phase.send_replace(Phase::Idle);
            return;
        }
        self.phase.send_replace(Phase::Starting);
        let started_at = Utc::now();
        let oom_kills = usage::oom_kills();
        match self.launch(argv).await {
            Ok((child, sources)) => {
                self.phase.send_replace(Phase::Running(child.pid));
                let this = Arc::clone(self);
                self.tasks.spawn(async move {
                    let ended = this.supervise(child, sources).await;
                    let killed = matches!(ended, Some(Ended::Signalled(9)));
                    let oom_killed = killed && usage::oom_kills() > oom_kills;
                    let code = ended.map_or(255, Ended::exit_code);
                    this.end(code, oom_killed, started_at, String::new());
                });
            }
            Err(refusal) => {
                let line = format!("boxd: {refusal}");
                let stream = OutputStream::Stderr;
                tee::write(stream, format!("{line}\n").as_bytes());
                self.log.append(&[NewEntry {
                    stream,
                    partial: false,
                    line: line.as_bytes(),
                }]);
                self.end(refusal.exit_code, false, started_at, refusal.message);
            }
        }
    }

    async fn launch(
        &self,
        argv: Vec<OsString>,
    ) -> Result<(Child, [(OutputStream, Source); 2]), CannotStart> {
        let order = Order {
            argv,
            working_dir: None,
            variables: self.environment.with([]),
        };
        let file = order.resolve()?;
        let no_pipes = |error: io::Error| CannotStart {
            exit_code: NOT_EXECUTABLE,
            message: format!("no pipe could be made: {error}"),
        };
        let (stdout, stdout_source) = output_pipe().map_err(no_pipes)?;
        let (stderr, stderr_source) = output_pipe().map_err(no_pipes)?;
        let session = Session::Pipes {
            stdin: Stdio::null(),
            stdout,
            stderr,
        };
        let command = launchable(&order, &file, session).map_err(no_pipes)?;
        let child = self.reaper.start(command).await.map_err(|error| {
            let program = order
                .argv
                .first()
                .map(OsString::as_os_str)
                .unwrap_or_default();
            CannotStart::from_exec(program, &error)
        })?;
        let sources = [
            (OutputStream::Stdout, stdout_source),
            (OutputStream::Stderr, stderr_source),
        ];
        Ok((child, sources))
    }

    async fn supervise(&self, child: Child, sources: [(OutputStream, Source); 2]) -> Option<Ended> {
        let command_ended = CancellationToken::new();
        let pumps = sources.map(|(stream, source)| {
            let sink = IntoLog {
                log: &self.log,
                stream,
                lines: Mutex::new(Lines::default()),
            };
            let command_ended = command_ended.clone();
            async move {
                pump(source, &sink, command_ended).await;
                sink.finish();
            }
        });
        let end = async {
            let ended = child.ended.await.ok();
            command_ended.cancel();
            ended
        };
        let [stdout, stderr] = pumps;
        let (ended, (), ()) = tokio::join!(end, stdout, stderr);
        ended
    }

    fn end(&self, exit_code: i32, oom_killed: bool, started_at: DateTime<Utc>, message: String) {
        let finished_at = Utc::now();
        let termination = Termination {
            exit_code,
            oom_killed,
            started_at,
            finished_at,
            message,
        };
        if let Some(path) = &self.termination_file
            && let Err(error) = termination.write(path)
        {
            // The exit code still tells the most of it.
            eprintln!("boxd: {error}");
        }
        self.log.end();
        self.phase.send_replace(Phase::Exited(exit_code));
    }
}

/// One stream on its way into the log and to boxd's own.
struct IntoLog<'main> {
    log: &'main Log,
    stream: OutputStream,
    lines: Mutex<Lines>,
}

impl IntoLog<'_> {
    fn finish(&self) {
        lock(&self.lines).finish(|partial, line| {
            self.log.append(&[NewEntry {
                stream: self.stream,
                partial,
                line,
            }]);
        });
    }
}

impl Sink for IntoLog<'_> {
    fn fill(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let result = read(buffer);
        if let Ok(count @ 1..) = result {
            let bytes = &buffer[..count];
            tee::write(self.stream, bytes);
            let mut lines = lock(&self.lines);
            let stream = self.stream;
            lines.push(bytes, |entries| {
                let entries: Vec<NewEntry<'_>> = entries
                    .iter()
                    .map(|(partial, line)| NewEntry {
                        stream,
                        partial: *partial,
                        line,
                    })
                    .collect();
                self.log.append(&entries);
            });
        }
        Some(result)
    }

    async fn room(&self) {
        // There always is: the log forgets its oldest.
    }
}
