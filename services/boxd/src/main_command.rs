//! The box's main command.
//!
//! Its output is the box's log. When it ends, the box ends. Invariants:
//! * I1. It is started at most once.
//! * I2. The termination file is written before the end is published. A box that ends without
//!   one was lost, or failed to start.
//! * I3. The claim of a warm box is in that file before the command is started.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::logs::OutputStream;
use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::command::{CommandSpec, NOT_EXECUTABLE, NewProcess, StandardStreams, StartError};
use crate::environment::Environment;
use crate::logs::Log;
use crate::null_device::NullDevice;
use crate::process::output_pipe;
use crate::pump::{Sink, Source, pump};
use crate::reaper::{Child, ExitStatus, Reaper};
use crate::stderr;
use crate::usage;
use crate::user::User;

/// The state of the main command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The box has no main command.
    Idle,
    /// A warm box: the main command comes with `Configure`.
    Unconfigured,
    Starting,
    Running(Pid),
    /// Ended with this exit code, 0..=255.
    Exited(i32),
}

pub struct MainCommand {
    pub reaper: Arc<Reaper>,
    pub environment: Arc<Environment>,
    pub null_device: Arc<NullDevice>,
    pub log: Arc<Log>,
    pub tasks: TaskTracker,
    pub termination_file: Option<PathBuf>,
    claim: OnceLock<String>,
    phase: watch::Sender<Phase>,
}

impl MainCommand {
    #[must_use]
    pub fn new(
        reaper: Arc<Reaper>,
        environment: Arc<Environment>,
        null_device: Arc<NullDevice>,
        log: Arc<Log>,
        tasks: TaskTracker,
        termination_file: Option<PathBuf>,
        phase: Phase,
    ) -> Self {
        let phase = watch::Sender::new(phase);
        Self {
            reaper,
            environment,
            null_device,
            log,
            tasks,
            termination_file,
            claim: OnceLock::new(),
            phase,
        }
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The claim of a warm box, once it has one.
    #[must_use]
    pub fn claim(&self) -> Option<&str> {
        self.claim.get().map(String::as_str)
    }

    /// Ends the wait of a warm box for its claim. [`Self::start`] follows. Must be called once only.
    pub fn begin(&self, claim: String) {
        if let Some(path) = &self.termination_file
            && let Err(error) = Termination::record_claim(path, &claim)
        {
            // The report of the end has it too.
            stderr::line(&format!("boxd: {error}"));
        }
        let _ = self.claim.set(claim);
        self.phase.send_replace(Phase::Starting);
    }

    /// Waits for the end; returns the exit code. Never returns for an idle box.
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

    /// Forwards a signal to its process group; `false` when there is no main command.
    pub fn signal(&self, signal: Signal) -> bool {
        match self.phase() {
            Phase::Running(leader) => self.reaper.signal_group(leader, signal),
            // It has ended, or gets the runtime's next signal.
            Phase::Starting | Phase::Exited(_) => true,
            Phase::Idle | Phase::Unconfigured => false,
        }
    }

    /// Starts the command; without one the box idles. A command that cannot be started
    /// counts as ended. Must be called once only: `init` calls it for the command line,
    /// `service` for `Configure`.
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
                    let killed = matches!(ended, Some(ExitStatus::Signalled(9)));
                    let oom_killed = killed && usage::oom_kills() > oom_kills;
                    let code = ended.map_or(255, ExitStatus::exit_code);
                    this.end(code, oom_killed, started_at, String::new()).await;
                });
            }
            Err(error) => {
                let line = format!("boxd: {error}\n");
                self.log.write(OutputStream::Stderr, line.as_bytes());
                self.end(error.exit_code, false, started_at, error.message)
                    .await;
            }
        }
    }

    async fn launch(
        &self,
        argv: Vec<OsString>,
    ) -> Result<(Child, [(OutputStream, Source); 2]), StartError> {
        let spec = CommandSpec {
            argv,
            working_dir: None,
            variables: self.environment.merged_with([]),
            user: User::of_box(),
        };
        let file = spec.resolve()?;
        let pipe_error = |error: io::Error| StartError {
            exit_code: NOT_EXECUTABLE,
            message: format!("creating a pipe failed: {error}"),
            code: None,
        };
        let (stdout, stdout_source) = output_pipe().map_err(pipe_error)?;
        let (stderr, stderr_source) = output_pipe().map_err(pipe_error)?;
        let streams = StandardStreams::Pipes {
            stdin: self.null_device.stdin().map_err(pipe_error)?,
            stdout,
            stderr,
        };
        let process = NewProcess::new(&spec, &file, streams).map_err(pipe_error)?;
        let child = self.reaper.start(process).await.map_err(|error| {
            let program = spec
                .argv
                .first()
                .map(OsString::as_os_str)
                .unwrap_or_default();
            StartError::from_exec(program, &error)
        })?;
        let sources = [
            (OutputStream::Stdout, stdout_source),
            (OutputStream::Stderr, stderr_source),
        ];
        Ok((child, sources))
    }

    async fn supervise(
        &self,
        child: Child,
        sources: [(OutputStream, Source); 2],
    ) -> Option<ExitStatus> {
        let command_ended = CancellationToken::new();
        let log: &Log = &self.log;
        let pumps = sources.map(|(stream, source)| {
            let sink = LogSink { log, stream };
            let command_ended = command_ended.clone();
            async move {
                tokio::select! {
                    () = pump(&source, &sink, command_ended) => {}
                    () = log.append_unfinished(stream) => {}
                }
                log.finish(stream);
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

    /// Reports the end of a box without a main command: it is ended by a signal, with code 0.
    pub async fn end_idle(&self) {
        self.end(0, false, Utc::now(), String::new()).await;
    }

    async fn end(
        &self,
        exit_code: i32,
        oom_killed: bool,
        started_at: DateTime<Utc>,
        message: String,
    ) {
        let finished_at = Utc::now();
        let termination = Termination {
            exit_code,
            oom_killed,
            started_at,
            finished_at,
            message,
            claim: self.claim.get().cloned(),
        };
        if let Some(path) = &self.termination_file
            && let Err(error) = termination.write(path)
        {
            // The exit code is still reported.
            stderr::line(&format!("boxd: {error}"));
        }
        self.log.copy_rest().await;
        self.log.end();
        self.phase.send_replace(Phase::Exited(exit_code));
    }
}

/// Writes one output stream into the log.
struct LogSink<'main> {
    log: &'main Log,
    stream: OutputStream,
}

impl Sink for LogSink<'_> {
    fn read_into(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let result = read(buffer);
        if let Ok(count @ 1..) = result {
            self.log.write(self.stream, &buffer[..count]);
        }
        Some(result)
    }

    async fn writable(&self) {
        // There is always space: the log drops its oldest entries.
    }
}
