//! Starts a run: from a checked [`RunSpec`] to a supervised process.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::SystemTime;

use agentbox_contracts::logs::OutputStream;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ring::Ring;
use super::supervise::{Limits, supervise};
use super::{Registry, RegistryError, Run, RunSpec, State, Stdin};
use crate::background_output::BackgroundOutput;
use crate::command::{CommandSpec, NOT_EXECUTABLE, StandardStreams, StartError, build_command};
use crate::environment::Environment;
use crate::pump::Source;
use crate::reaper::Reaper;
use crate::terminal::Terminal;
use crate::usage;

const DEFAULT_TERM: &str = "xterm-256color";

/// Starts runs; holds the parts of boxd that a run needs.
pub struct Starter {
    pub registry: Arc<Registry>,
    pub reaper: Arc<Reaper>,
    pub environment: Arc<Environment>,
    pub background_output: Arc<BackgroundOutput>,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
    pub ring_bytes: usize,
}

pub enum Started {
    Running(Arc<Run>),
    /// The command could not be started. The caller gets an exit code for it too.
    Failed(StartError),
}

/// boxd's ends of the command's standard streams.
struct ParentStreams {
    stdin: Option<Stdin>,
    terminal: Option<Arc<Terminal>>,
    sources: Vec<(OutputStream, Source)>,
}

impl Starter {
    /// # Errors
    /// [`RegistryError`]; then nothing was started.
    pub async fn start(&self, spec: RunSpec) -> Result<Started, RegistryError> {
        let reservation = self.registry.reserve(&spec.id)?;
        let prepared = self.prepare(&spec).and_then(|(prepared, file)| {
            let (child_streams, parent_streams) =
                open_streams(&spec).map_err(|error| stream_error(&error))?;
            let command = build_command(&prepared, &file, child_streams)
                .map_err(|error| stream_error(&error))?;
            Ok((command, parent_streams, prepared.argv))
        });
        let (command, parent_streams, argv) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Started::Failed(error)),
        };
        let oom_kills = usage::oom_kills();
        let started_at = Instant::now();
        let child = match self.reaper.start(command).await {
            Ok(child) => child,
            Err(error) => {
                let program = argv.first().map(OsString::as_os_str).unwrap_or_default();
                return Ok(Started::Failed(StartError::from_exec(program, &error)));
            }
        };
        let process_started_at = SystemTime::now();
        let run = Arc::new(Run {
            id: spec.id.clone(),
            leader: child.pid,
            reaper: Arc::clone(&self.reaper),
            state: Mutex::new(State {
                ring: Ring::new(self.ring_bytes),
                sent: 0,
                acked: 0,
                acks: spec.acks,
                reader: 0,
                exited: None,
                aborted: false,
            }),
            output_changed: watch::Sender::new(0),
            space_freed: watch::Sender::new(0),
            unread_since: watch::Sender::new(Some(started_at)),
            stdin: tokio::sync::Mutex::new(parent_streams.stdin),
            terminal: Mutex::new(parent_streams.terminal),
            command_ended: CancellationToken::new(),
        });
        let limits = Limits {
            started_at,
            timeout: spec.timeout,
            orphan_grace: spec.orphan_grace,
            oom_kills,
            trace: spec.trace.map(|trace| (trace, process_started_at)),
        };
        if reservation.commit(Arc::clone(&run)) {
            run.kill();
        }
        let registry = Arc::clone(&self.registry);
        let background_output = Arc::clone(&self.background_output);
        let closing = self.closing.clone();
        let supervised = Arc::clone(&run);
        self.tasks.spawn(async move {
            supervise(
                supervised,
                child,
                parent_streams.sources,
                limits,
                registry,
                background_output,
                closing,
            )
            .await;
        });
        Ok(Started::Running(run))
    }

    /// The command with its whole environment, and the file to execute.
    fn prepare(&self, spec: &RunSpec) -> Result<(CommandSpec, PathBuf), StartError> {
        let mut variables = self.environment.merged_with(spec.variables.iter().cloned());
        if spec.terminal.is_some() {
            variables
                .entry("TERM".into())
                .or_insert_with(|| DEFAULT_TERM.into());
        }
        let mut command = CommandSpec {
            argv: spec.argv.clone(),
            working_dir: spec.working_dir.clone(),
            variables,
            user: None,
        };
        if !command.argv.is_empty() {
            return command.resolve().map(|file| (command, file));
        }
        // Not a login shell: its profile would replace the PATH that the image set.
        command.argv = vec!["bash".into()];
        if let Ok(file) = command.resolve() {
            return Ok((command, file));
        }
        command.argv = vec!["sh".into()];
        command.resolve().map(|file| (command, file))
    }
}

fn stream_error(error: &io::Error) -> StartError {
    StartError {
        exit_code: NOT_EXECUTABLE,
        message: format!("creating a pipe or terminal failed: {error}"),
    }
}

fn open_streams(spec: &RunSpec) -> io::Result<(StandardStreams, ParentStreams)> {
    if let Some(size) = spec.terminal {
        let (terminal, tty) = Terminal::open(size)?;
        let terminal = Arc::new(terminal);
        let parent_streams = ParentStreams {
            stdin: Some(Stdin::Terminal(Arc::clone(&terminal))),
            sources: vec![(
                OutputStream::Stdout,
                Source::Terminal(Arc::clone(&terminal)),
            )],
            terminal: Some(terminal),
        };
        return Ok((StandardStreams::Terminal(tty), parent_streams));
    }
    let (stdin, parent_stdin) = if spec.stdin {
        let (child_end, parent_end) = pipe2(OFlag::O_CLOEXEC)?;
        (
            Stdio::from(child_end),
            Some(Stdin::Pipe(pipe::Sender::from_owned_fd(parent_end)?)),
        )
    } else {
        (Stdio::null(), None)
    };
    let (stdout, stdout_source) = output_pipe()?;
    let (stderr, stderr_source) = output_pipe()?;
    let parent_streams = ParentStreams {
        stdin: parent_stdin,
        terminal: None,
        sources: vec![
            (OutputStream::Stdout, stdout_source),
            (OutputStream::Stderr, stderr_source),
        ],
    };
    Ok((
        StandardStreams::Pipes {
            stdin,
            stdout,
            stderr,
        },
        parent_streams,
    ))
}

/// An output pipe: the command's end and boxd's.
///
/// # Errors
/// As `pipe2(2)`.
pub fn output_pipe() -> io::Result<(OwnedFd, Source)> {
    let (parent_end, child_end) = pipe2(OFlag::O_CLOEXEC)?;
    let source = Source::Pipe(pipe::Receiver::from_owned_fd(parent_end)?);
    Ok((child_end, source))
}
