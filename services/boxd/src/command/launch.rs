//! Builds the process of a command, with the code that runs between fork and exec.
//!
//! That code only makes system calls: it allocates no memory and takes no lock.

#![allow(
    unsafe_code,
    reason = "CommandExt::pre_exec is the only way to run system calls between fork and exec"
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use rustix::process::{ioctl_tiocsctty, setsid};

use super::CommandSpec;

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
/// first choice.
///
/// # Errors
/// As `dup(2)`.
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
    if let Some(directory) = &spec.working_dir {
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
            raise_oom_score();
            Ok(())
        });
    }
    Ok(command)
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
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if file >= 0 {
            libc::write(file, SCORE.as_ptr().cast(), SCORE.len());
            libc::close(file);
        }
    }
}
