//! Starts processes: from a checked [`ProcessSpec`] to a process that is to be supervised.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use agentbox_contracts::logs::OutputStream;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Process, ProcessSpec, Slots, Stdin};
use crate::background_output::BackgroundOutput;
use crate::command::{CommandSpec, NOT_EXECUTABLE, NewProcess, StandardStreams, StartError};
use crate::environment::Environment;
use crate::null_device::NullDevice;
use crate::pump::Source;
use crate::reaper::{Child, Reaper};
use crate::terminal::{Size, Terminal};
use crate::usage;
use crate::user::User;

const DEFAULT_TERM: &str = "xterm-256color";

/// Starts commands; holds the parts of boxd that a command needs.
pub struct Starter {
    pub reaper: Arc<Reaper>,
    pub environment: Arc<Environment>,
    pub null_device: Arc<NullDevice>,
    pub background_output: Arc<BackgroundOutput>,
    pub slots: Slots,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
}

/// A command whose program and working directory were found.
pub struct Prepared {
    command: CommandSpec,
    file: PathBuf,
    terminal: Option<Size>,
    stdin: bool,
    merge_stderr: bool,
}

/// A started process, for [`super::supervise()`].
pub struct Launched {
    pub process: Arc<Process>,
    pub child: Child,
    pub sources: Vec<(OutputStream, Source)>,
    pub started_at: Instant,
    /// The same instant by the box's clock.
    pub started_at_clock: SystemTime,
    /// The box's OOM kill count at the start.
    pub oom_kills: u64,
}

/// boxd's ends of the command's standard streams.
struct ParentStreams {
    stdin: Option<Stdin>,
    terminal: Option<Arc<Terminal>>,
    sources: Vec<(OutputStream, Source)>,
}

impl Starter {
    /// The command with its whole environment, and the file to execute.
    ///
    /// # Errors
    /// [`StartError`]; with a code when the working directory cannot be used.
    pub fn prepare(&self, spec: &ProcessSpec) -> Result<Prepared, StartError> {
        let of_user = spec.user.iter().flat_map(User::variables);
        let mut variables = self
            .environment
            .merged_with(of_user.chain(spec.variables.iter().cloned()));
        if spec.terminal.is_some() {
            variables
                .entry("TERM".into())
                .or_insert_with(|| DEFAULT_TERM.into());
        }
        let mut command = CommandSpec {
            argv: spec.argv.clone(),
            working_dir: spec.working_dir.clone(),
            variables,
            user: spec.user.clone(),
        };
        let prepared = |command, file| Prepared {
            command,
            file,
            terminal: spec.terminal,
            stdin: spec.stdin,
            merge_stderr: spec.merge_stderr,
        };
        if !command.argv.is_empty() {
            return command.resolve().map(|file| prepared(command, file));
        }
        // Not a login shell: its profile would replace the PATH that the image set.
        command.argv = vec!["bash".into()];
        if let Ok(file) = command.resolve() {
            return Ok(prepared(command, file));
        }
        command.argv = vec!["sh".into()];
        command.resolve().map(|file| prepared(command, file))
    }

    /// # Errors
    /// [`StartError`]; then no process was started.
    pub async fn launch(&self, prepared: Prepared) -> Result<Launched, StartError> {
        let (child_streams, parent_streams) =
            open_streams(&prepared, &self.null_device).map_err(|error| stream_error(&error))?;
        let process = NewProcess::new(&prepared.command, &prepared.file, child_streams)
            .map_err(|error| stream_error(&error))?;
        let oom_kills = usage::oom_kills();
        let started_at = Instant::now();
        let child = self.reaper.start(process).await.map_err(|error| {
            let argv = &prepared.command.argv;
            let program = argv.first().map(OsString::as_os_str).unwrap_or_default();
            StartError::from_exec(program, &error)
        })?;
        let process = Arc::new(Process {
            leader: child.pid,
            reaper: Arc::clone(&self.reaper),
            stdin: tokio::sync::Mutex::new(parent_streams.stdin),
            terminal: Mutex::new(parent_streams.terminal),
            ended: CancellationToken::new(),
        });
        Ok(Launched {
            process,
            child,
            sources: parent_streams.sources,
            started_at,
            started_at_clock: SystemTime::now(),
            oom_kills,
        })
    }
}

fn stream_error(error: &io::Error) -> StartError {
    StartError {
        exit_code: NOT_EXECUTABLE,
        message: format!("creating a pipe or terminal failed: {error}"),
        code: None,
    }
}

fn open_streams(
    prepared: &Prepared,
    null_device: &NullDevice,
) -> io::Result<(StandardStreams, ParentStreams)> {
    if let Some(size) = prepared.terminal {
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
    let (stdin, parent_stdin) = if prepared.stdin {
        let (child_end, parent_end) = pipe2(OFlag::O_CLOEXEC)?;
        (
            child_end,
            Some(Stdin::Pipe(pipe::Sender::from_owned_fd(parent_end)?)),
        )
    } else {
        (null_device.stdin()?, None)
    };
    let (stdout, stdout_source) = output_pipe()?;
    let mut sources = vec![(OutputStream::Stdout, stdout_source)];
    let stderr = if prepared.merge_stderr {
        stdout.try_clone()?
    } else {
        let (stderr, stderr_source) = output_pipe()?;
        sources.push((OutputStream::Stderr, stderr_source));
        stderr
    };
    let parent_streams = ParentStreams {
        stdin: parent_stdin,
        terminal: None,
        sources,
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
