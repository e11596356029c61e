//! What a new process does until it executes its program.
//!
//! The process may share its memory with boxd, whose other threads run meanwhile. So this code only
//! makes system calls and reads what was prepared: it allocates nothing, takes no lock, cannot panic and
//! calls nothing of the C library that changes its state, besides `errno` of the thread that waits for
//! this process. Identities are changed by the system calls themselves: the C library's functions change
//! those of all threads.

#![allow(
    unsafe_code,
    reason = "system calls between the creation of a process and its execution"
)]

use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_long, c_void};

use super::launch::{Ids, NewProcess};

/// The size of the kernel's set of signals, in bytes.
pub(super) const SIGNAL_SET_BYTES: usize = 8;
/// The highest signal.
const MAX_SIGNAL: c_int = 64;
/// Runs a script without an interpreter line, as execvp(3) does.
pub(super) const SHELL: &std::ffi::CStr = c"/bin/sh";

/// The argument of [`run`]. It outlives the process's use of it.
pub(super) struct Start<'process> {
    pub(super) process: &'process NewProcess,
    /// Arrays that end with a null pointer, of texts of `process`.
    pub(super) arguments: *const *const c_char,
    pub(super) shell_arguments: *const *const c_char,
    pub(super) variables: *const *const c_char,
    /// Receives the number of the error that kept the process from executing. In memory that is shared
    /// with boxd in any case.
    pub(super) error: &'process AtomicI32,
}

/// The first function of the process. Signals are blocked.
pub(super) extern "C" fn run(start: *mut c_void) -> c_int {
    // SAFETY: the creator passes a `Start`, which it keeps until this process has executed or ended.
    let start = unsafe { &*start.cast::<Start<'_>>() };
    let failure = match prepare(start.process) {
        Ok(()) => execute(start),
        Err(error) => error,
    };
    start.error.store(failure, Ordering::Release);
    // SAFETY: ends only this process, and runs no destructor or handler.
    unsafe { libc::_exit(127) }
}

/// The number of an error.
type Failure = c_int;

fn prepare(process: &NewProcess) -> Result<(), Failure> {
    // SAFETY: system calls without pointers, on descriptors that the process has.
    unsafe {
        checked(libc::setsid().into())?;
        for (number, stream) in (0..).zip(&process.streams) {
            checked(libc::dup2(stream.as_raw_fd(), number).into())?;
        }
        if process.terminal {
            checked(libc::ioctl(0, libc::TIOCSCTTY, 0).into())?;
        }
    }
    reset_signals();
    // Before the user changes: the file belongs to root.
    raise_oom_score();
    if let Some(ids) = &process.user {
        for stream in 0..3 {
            give_stream(stream, process.terminal, ids);
        }
        become_user(ids)?;
    }
    if let Some(directory) = &process.directory {
        // SAFETY: the text ends with a NUL and outlives the call.
        unsafe { checked(libc::chdir(directory.as_ptr()).into())? };
    }
    Ok(())
}

/// Unblocks all signals and executes the program. Returns only why that failed.
fn execute(start: &Start<'_>) -> Failure {
    let none = 0_u64;
    // SAFETY: `none` has the size that the kernel reads. The arrays and their texts outlive the calls.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            null_mut::<u64>(),
            SIGNAL_SET_BYTES,
        );
        libc::execve(
            start.process.file.as_ptr(),
            start.arguments,
            start.variables,
        );
        if Errno::last_raw() == libc::ENOEXEC {
            libc::execve(SHELL.as_ptr(), start.shell_arguments, start.variables);
        }
    }
    Errno::last_raw()
}

fn checked(result: c_long) -> Result<(), Failure> {
    if result < 0 {
        return Err(Errno::last_raw());
    }
    Ok(())
}

fn become_user(ids: &Ids) -> Result<(), Failure> {
    let (uid, gid) = (ids.uid, ids.gid);
    // SAFETY: the array outlives the call, which the kernel only reads.
    unsafe {
        checked(libc::syscall(
            libc::SYS_setgroups,
            ids.groups.len(),
            ids.groups.as_ptr(),
        ))?;
        checked(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        // Where fs.suid_dumpable is 1, the user could read this copy of boxd's memory until the execution,
        // for as long as the user stops this process.
        checked(libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0_u64))
    }
}

/// Gives the terminal or a pipe to the user, who may then open it again as `/dev/stdout` or
/// `/dev/tty`. Other files, such as `/dev/null`, keep their owner. Errors are ignored: the stream
/// itself works.
fn give_stream(stream: c_int, terminal: bool, ids: &Ids) {
    // SAFETY: zero is a valid value of the plain structure, which the kernel fills.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let is_pipe =
            libc::fstat(stream, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO;
        if terminal {
            // The group stays `tty`.
            libc::fchown(stream, ids.uid, libc::gid_t::MAX);
        } else if is_pipe {
            libc::fchown(stream, ids.uid, ids.gid);
        }
    }
}

/// Resets all signals to their default: exec would keep ignored ones ignored, and a handler of boxd must
/// not run here once signals are not blocked any more. Uses the system call, because the C library
/// refuses to change the two signals that it uses. The table of boxd is another one.
fn reset_signals() {
    // The kernel's `struct sigaction`, all zero: SIG_DFL, no flags, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=MAX_SIGNAL {
        // SAFETY: `default` has the size that the kernel reads, and SIG_DFL calls no
        // handler. SIGKILL and SIGSTOP cannot be set: that error is ignored.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                null_mut::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
    }
}

/// Makes this process the OOM killer's first choice. Raising the own score needs no privilege; errors
/// are ignored (no /proc, or another owner of it). The kernel changes the score of all processes that
/// share memory, unless the creator waits for this one's execution, as boxd does.
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
