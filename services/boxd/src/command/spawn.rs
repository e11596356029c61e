//! Creates the process of a command without copying boxd's memory.
//!
//! `fork(2)` copies the page tables of boxd, and afterwards each of its threads takes a fault for every
//! page that it writes. So the process is created as `vfork(2)` and `posix_spawn(3)` do it:
//! `clone(CLONE_VM | CLONE_VFORK)` shares the memory, and the calling thread waits in the kernel until the
//! process has executed its program, or has ended. `posix_spawn` itself lacks what a command needs: another
//! user, and the OOM killer's score before the first instruction.
//!
//! Why it is sound:
//! * I1. The process has a stack of its own. It is used by one process at a time, because
//!   [`Spawner::spawn`] has it exclusively and returns after the process has left it.
//! * I2. The process only makes system calls on what [`NewProcess`] holds (see [`super::child`]). boxd's
//!   other threads change other memory only.
//! * I3. No handler of boxd runs in the process: all signals are blocked while it is created, and it
//!   resets them before it unblocks them. Without `CLONE_SIGHAND`, `CLONE_FILES` and `CLONE_FS` it has a
//!   table of signals, descriptors and a directory of its own.
//! * I4. Memory is shared only with a process of boxd's own user. A process that becomes another user gets a
//!   copy of it: where `fs.suid_dumpable` is 1, the kernel makes memory dumpable when a process that has it
//!   changes its user. Shared memory would then be boxd's own, with the box's token, and that user could read
//!   and write it through the process. The copy is made not dumpable again at once.
//! * I5. The OOM killer ignores a process between vfork and exec, and a change of its score then does not
//!   change boxd's (Linux 4.8 and later).

#![allow(
    unsafe_code,
    reason = "the standard library creates a process with actions of its own only by fork"
)]

use std::io;
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::child::{SHELL, SIGNAL_SET_BYTES, Start, run};
use super::launch::NewProcess;

/// The stack of a new process, in bytes. It needs far less.
const STACK_BYTES: usize = 64 * 1024;
/// No access: a stack that is used up ends the process and changes nothing. The largest page size.
const GUARD_BYTES: usize = 64 * 1024;

/// Creates one process at a time.
pub struct Spawner {
    /// The guard, then the stack, which grows down towards it.
    stack: Mapping,
    /// An [`AtomicI32`], which is shared with a process that has a copy of the memory, too.
    error: Mapping,
}

impl Spawner {
    /// # Errors
    /// As `mmap(2)`.
    pub fn new() -> io::Result<Self> {
        let stack = Mapping::new(
            GUARD_BYTES + STACK_BYTES,
            libc::MAP_PRIVATE | libc::MAP_STACK,
        )?;
        // SAFETY: the guard is a part of the mapping, which nothing uses yet.
        let guarded = unsafe { libc::mprotect(stack.start(), GUARD_BYTES, libc::PROT_NONE) };
        if guarded != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            stack,
            error: Mapping::new(size_of::<AtomicI32>(), libc::MAP_SHARED)?,
        })
    }

    /// Creates the process, and returns once it executes its program. One that is killed before that is
    /// returned too. Nobody else may reap meanwhile.
    ///
    /// # Errors
    /// As `clone(2)`, and as the system call that kept the process from executing, such as `execve(2)`; then
    /// no process is left.
    pub fn spawn(&mut self, process: &NewProcess) -> io::Result<Pid> {
        let arguments = process.arguments.iter().map(|text| text.as_ptr());
        let script = [SHELL.as_ptr(), process.file.as_ptr()].into_iter();
        let shell_arguments = script.chain(arguments.clone().skip(1));
        let variables = process.variables.iter().map(|text| text.as_ptr());
        let (arguments, shell_arguments, variables) = (
            null_terminated(arguments),
            null_terminated(shell_arguments),
            null_terminated(variables),
        );
        // SAFETY: the mapping is aligned, large enough, zero at first, and used for nothing else.
        let error = unsafe { self.error.memory.cast::<AtomicI32>().as_ref() };
        error.store(0, Ordering::Release);
        let start = Start {
            process,
            arguments: arguments.as_ptr(),
            shell_arguments: shell_arguments.as_ptr(),
            variables: variables.as_ptr(),
            error,
        };
        let sharing = match process.user {
            None => libc::CLONE_VM,
            Some(_) => 0,
        };
        let blocked = BlockedSignals::new()?;
        // SAFETY: I1 to I3. `CLONE_VFORK` suspends this thread until the process does not use the stack and
        // `start` any more. The end of the stack is aligned, because it is the end of a page.
        let created = unsafe {
            libc::clone(
                run,
                self.stack.end(),
                sharing | libc::CLONE_VFORK | libc::SIGCHLD,
                (&raw const start).cast_mut().cast::<c_void>(),
            )
        };
        let created = Errno::result(created);
        drop(blocked);
        let pid = Pid::from_raw(created?);
        match error.load(Ordering::Acquire) {
            0 => Ok(pid),
            failure => {
                reap(pid);
                Err(io::Error::from_raw_os_error(failure))
            }
        }
    }
}

/// Waits for a process that ends at once.
fn reap(pid: Pid) {
    while waitpid(pid, None) == Err(Errno::EINTR) {}
}

fn null_terminated(texts: impl Iterator<Item = *const c_char>) -> Vec<*const c_char> {
    texts.chain([null()]).collect()
}

/// Memory from the kernel, until it is dropped.
struct Mapping {
    memory: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the memory belongs to no thread, and a shared reference gives only its address.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(bytes: usize, flags: c_int) -> io::Result<Self> {
        // SAFETY: new memory at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory).ok_or(Errno::ENOMEM)?;
        Ok(Self { memory, bytes })
    }

    fn start(&self) -> *mut c_void {
        self.memory.as_ptr()
    }

    fn end(&self) -> *mut c_void {
        self.start().wrapping_byte_add(self.bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing uses it any more.
        unsafe { libc::munmap(self.start(), self.bytes) };
    }
}

/// Blocks all signals for this thread, until it is dropped. Uses the system call, because the C library
/// leaves out the two signals that it uses.
struct BlockedSignals {
    previous: u64,
}

impl BlockedSignals {
    fn new() -> io::Result<Self> {
        let mut previous = 0;
        set_blocked(u64::MAX, &mut previous)?;
        Ok(Self { previous })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Cannot fail: the same call has succeeded.
        let _ = set_blocked(self.previous, &mut 0);
    }
}

fn set_blocked(signals: u64, previous: &mut u64) -> io::Result<()> {
    // SAFETY: both sets have the size that the kernel reads and writes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const signals,
            &raw mut *previous,
            SIGNAL_SET_BYTES,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

#[cfg(test)]
mod tests;
