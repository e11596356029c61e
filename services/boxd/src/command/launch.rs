//! The few lines that run in the child between fork and exec.
//!
//! What runs there may only make system calls: no memory
//! is allocated, no lock is taken.

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

use super::Order;

/// What the command's standard streams are.
pub enum Session {
    Pipes {
        stdin: Stdio,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The terminal's inner end, which becomes the controlling terminal.
    Terminal(OwnedFd),
}

/// `order`, whose program resolved to `file`, as the leader of its own session and
/// group, with the signal mask and dispositions of a fresh process, and first in line
/// for the kernel's OOM killer.
///
/// # Errors
/// As `dup(2)`.
pub fn launchable(order: &Order, file: &Path, session: Session) -> io::Result<Command> {
    let mut command = Command::new(file);
    if let Some((name, arguments)) = order.argv.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(&order.variables);
    if let Some(directory) = &order.working_dir {
        command.current_dir(directory);
    }
    let terminal = matches!(session, Session::Terminal(_));
    match session {
        Session::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        Session::Terminal(inner) => {
            command
                .stdin(inner.try_clone()?)
                .stdout(inner.try_clone()?)
                .stderr(inner);
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
            default_signals();
            first_to_die();
            Ok(())
        });
    }
    Ok(command)
}

/// A disposition of "ignored" would be inherited through exec. By system call, because
/// the C library refuses the two signals that it uses itself, which may be ignored too.
fn default_signals() {
    // The kernel's `struct sigaction`, all zero: SIG_DFL, no flags, an empty mask.
    let default = [0u64; 4];
    let no_old = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: `default` is as large as the kernel reads, and SIG_DFL runs no code of
        // ours; the two signals that cannot be set stay as they are.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, 8) };
    }
}

/// Raising one's own score needs no privilege. Where it fails all the same (no /proc,
/// another owner of it), the box works without.
fn first_to_die() {
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
