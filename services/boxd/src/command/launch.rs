//! Builds the process of a command, with the code that runs between fork and exec.
//!
//! That code only makes system calls: it allocates no memory and takes no lock.

#![allow(
    unsafe_code,
    reason = "CommandExt::pre_exec is the only way to run system calls between fork and exec"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use rustix::process::{ioctl_tiocsctty, setsid};

use super::CommandSpec;
use crate::user::User;

/// The command's standard streams.
pub enum StandardStreams {
    Pipes {
        stdin: Stdio,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The tty, which becomes the controlling terminal.
    Terminal(OwnedFd),
}

/// Builds the process of `spec`, whose program resolved to `file`. It leads its own
/// session and process group, has default signal dispositions, and is the OOM killer's
/// first choice. Another user than boxd's own enters the working directory and executes the
/// program: the kernel decides whether that user may.
///
/// # Errors
/// As `dup(2)`; `InvalidInput` for a directory with a NUL.
pub fn build_command(
    spec: &CommandSpec,
    file: &Path,
    streams: StandardStreams,
) -> io::Result<Command> {
    let mut command = Command::new(file);
    if let Some((name, arguments)) = spec.argv.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(&spec.variables);
    let switch = spec
        .user
        .as_ref()
        .map(|user| Switch::new(user, spec.working_dir.as_deref()))
        .transpose()?;
    if switch.is_none()
        && let Some(directory) = &spec.working_dir
    {
        command.current_dir(directory);
    }
    let terminal = matches!(streams, StandardStreams::Terminal(_));
    match streams {
        StandardStreams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        StandardStreams::Terminal(tty) => {
            command
                .stdin(tty.try_clone()?)
                .stdout(tty.try_clone()?)
                .stderr(tty);
        }
    }
    // SAFETY: the closure only makes system calls (async-signal-safe) and touches no
    // memory shared with other threads of boxd.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if terminal {
                ioctl_tiocsctty(BorrowedFd::borrow_raw(0))?;
            }
            reset_signals();
            // Before the user changes: the file belongs to root.
            raise_oom_score();
            match &switch {
                Some(switch) => switch.apply(terminal),
                None => Ok(()),
            }
        });
    }
    Ok(command)
}

/// What the process does to become another user; everything is allocated before the fork.
struct Switch {
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
    directory: Option<CString>,
}

impl Switch {
    fn new(user: &User, directory: Option<&Path>) -> io::Result<Self> {
        let directory = directory.map(|path| CString::new(path.as_os_str().as_bytes()));
        Ok(Self {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
            directory: directory.transpose()?,
        })
    }

    /// Becomes the user, then enters the directory. The system calls are made directly: the C
    /// library's functions change all threads, for which they take locks.
    fn apply(&self, terminal: bool) -> io::Result<()> {
        for stream in 0..3 {
            give_stream(stream, terminal, self.uid, self.gid);
        }
        // SAFETY: the arrays and the text outlive the calls, which the kernel only reads.
        unsafe {
            succeeded(libc::syscall(
                libc::SYS_setgroups,
                self.groups.len(),
                self.groups.as_ptr(),
            ))?;
            succeeded(libc::syscall(
                libc::SYS_setresgid,
                self.gid,
                self.gid,
                self.gid,
            ))?;
            succeeded(libc::syscall(
                libc::SYS_setresuid,
                self.uid,
                self.uid,
                self.uid,
            ))?;
            if let Some(directory) = &self.directory {
                succeeded(libc::syscall(libc::SYS_chdir, directory.as_ptr()))?;
            }
        }
        Ok(())
    }
}

fn succeeded(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the terminal or a pipe to the user, who may then open it again as `/dev/stdout` or
/// `/dev/tty`. Other files, such as `/dev/null`, keep their owner. Errors are ignored: the stream
/// itself works.
fn give_stream(stream: libc::c_int, terminal: bool, uid: libc::uid_t, gid: libc::gid_t) {
    // SAFETY: zero is a valid value of the plain structure, which the kernel fills.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let is_pipe =
            libc::fstat(stream, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO;
        if terminal {
            // The group stays `tty`.
            libc::fchown(stream, uid, libc::gid_t::MAX);
        } else if is_pipe {
            libc::fchown(stream, uid, gid);
        }
    }
}

/// Resets all signals to their default: exec would keep ignored ones ignored. Uses the
/// system call, because the C library refuses to change the two signals that it uses.
fn reset_signals() {
    // The kernel's `struct sigaction`, all zero: SIG_DFL, no flags, an empty mask.
    let default = [0u64; 4];
    let no_old = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: `default` has the size that the kernel reads, and SIG_DFL calls no
        // handler. SIGKILL and SIGSTOP cannot be set: that error is ignored.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, 8) };
    }
}

/// Makes this process the OOM killer's first choice. Raising the own score needs no
/// privilege; errors are ignored (no /proc, or another owner of it).
fn raise_oom_score() {
    const SCORE: &[u8] = b"1000";
    // SAFETY: a constant path, a constant buffer, and the descriptor is closed here.
    unsafe {
        let file = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC,
        );
        if file >= 0 {
            libc::write(file, SCORE.as_ptr().cast(), SCORE.len());
            libc::close(file);
        }
    }
}
