//! Starts a run: from a checked wish to a supervised process.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use agentbox_contracts::logs::OutputStream;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ring::Ring;
use super::supervise::{Limits, supervise};
use super::{Registry, RegistryError, Run, State, Stdin, Wish};
use crate::command::{CannotStart, NOT_EXECUTABLE, Order, Session, launchable};
use crate::environment::Environment;
use crate::pump::Source;
use crate::reaper::Reaper;
use crate::terminal::Terminal;
use crate::usage;

const DEFAULT_TERM: &str = "xterm-256color";

/// What it takes to start a run.
pub struct Starter {
    pub registry: Arc<Registry>,
    pub reaper: Arc<Reaper>,
    pub environment: Arc<Environment>,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
    pub ring_bytes: usize,
}

pub enum Started {
    Running(Arc<Run>),
    /// The command could not be started, which is an answer like an exit.
    Not(CannotStart),
}

/// Our ends of the command's standard streams.
struct Ends {
    stdin: Option<Stdin>,
    terminal: Option<Arc<Terminal>>,
    sources: Vec<(OutputStream, Source)>,
}

impl Starter {
    /// # Errors
    /// [`RegistryError`]: nothing was started.
    pub async fn start(&self, wish: Wish) -> Result<Started, RegistryError> {
        let slot = self.registry.reserve(&wish.id)?;
        let order = self.order(&wish);
        let launched = match order.and_then(|(order, file)| {
            let (session, ends) = streams(&wish).map_err(|error| no_streams(&error))?;
            let command = launchable(&order, &file, session).map_err(|error| no_streams(&error))?;
            Ok((command, ends, order.argv))
        }) {
            Ok(launched) => launched,
            Err(refusal) => return Ok(Started::Not(refusal)),
        };
        let (command, ends, argv) = launched;
        let oom_kills = usage::oom_kills();
        let began = Instant::now();
        let child = match self.reaper.start(command).await {
            Ok(child) => child,
            Err(error) => {
                let program = argv.first().map(OsString::as_os_str).unwrap_or_default();
                return Ok(Started::Not(CannotStart::from_exec(program, &error)));
            }
        };
        let launched = SystemTime::now();
        let run = Arc::new(Run {
            id: wish.id.clone(),
            leader: child.pid,
            reaper: Arc::clone(&self.reaper),
            state: Mutex::new(State {
                ring: Ring::new(self.ring_bytes),
                sent: 0,
                acked: 0,
                acks: wish.acks,
                reader: 0,
                exited: None,
                cut: false,
            }),
            news: watch::Sender::new(0),
            room: watch::Sender::new(0),
            unread_since: watch::Sender::new(Some(began)),
            stdin: tokio::sync::Mutex::new(ends.stdin),
            terminal: Mutex::new(ends.terminal),
            command_ended: CancellationToken::new(),
        });
        let limits = Limits {
            began,
            timeout: wish.timeout,
            orphan_grace: wish.orphan_grace,
            oom_kills,
            trace: wish.trace.map(|trace| (trace, launched)),
        };
        if slot.fill(Arc::clone(&run)) {
            run.kill();
        }
        let registry = Arc::clone(&self.registry);
        let closing = self.closing.clone();
        let supervised = Arc::clone(&run);
        self.tasks.spawn(async move {
            supervise(supervised, child, ends.sources, limits, registry, closing).await;
        });
        Ok(Started::Running(run))
    }

    fn order(&self, wish: &Wish) -> Result<(Order, std::path::PathBuf), CannotStart> {
        let mut variables = self.environment.with(wish.variables.iter().cloned());
        if wish.terminal.is_some() {
            variables
                .entry("TERM".into())
                .or_insert_with(|| DEFAULT_TERM.into());
        }
        let mut order = Order {
            argv: wish.argv.clone(),
            working_dir: wish.working_dir.clone(),
            variables,
        };
        if !order.argv.is_empty() {
            return order.resolve().map(|file| (order, file));
        }
        // Not a login shell: its profile would replace the PATH that the image set.
        order.argv = vec!["bash".into()];
        if let Ok(file) = order.resolve() {
            return Ok((order, file));
        }
        order.argv = vec!["sh".into()];
        order.resolve().map(|file| (order, file))
    }
}

fn no_streams(error: &io::Error) -> CannotStart {
    CannotStart {
        exit_code: NOT_EXECUTABLE,
        message: format!("no pipe or terminal could be made: {error}"),
    }
}

fn streams(wish: &Wish) -> io::Result<(Session, Ends)> {
    if let Some(size) = wish.terminal {
        let (terminal, inner) = Terminal::open(size)?;
        let terminal = Arc::new(terminal);
        let ends = Ends {
            stdin: Some(Stdin::Terminal(Arc::clone(&terminal))),
            sources: vec![(
                OutputStream::Stdout,
                Source::Terminal(Arc::clone(&terminal)),
            )],
            terminal: Some(terminal),
        };
        return Ok((Session::Terminal(inner), ends));
    }
    let (stdin, our_stdin) = if wish.stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        (
            Stdio::from(theirs),
            Some(Stdin::Pipe(pipe::Sender::from_owned_fd(ours)?)),
        )
    } else {
        (Stdio::null(), None)
    };
    let (stdout, stdout_source) = output_pipe()?;
    let (stderr, stderr_source) = output_pipe()?;
    let ends = Ends {
        stdin: our_stdin,
        terminal: None,
        sources: vec![
            (OutputStream::Stdout, stdout_source),
            (OutputStream::Stderr, stderr_source),
        ],
    };
    Ok((
        Session::Pipes {
            stdin,
            stdout,
            stderr,
        },
        ends,
    ))
}

/// The command's end, and ours.
///
/// # Errors
/// As `pipe2(2)`.
pub fn output_pipe() -> io::Result<(OwnedFd, Source)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((theirs, Source::Pipe(pipe::Receiver::from_owned_fd(ours)?)))
}
