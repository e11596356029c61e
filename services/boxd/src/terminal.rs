//! A pseudo terminal: the end that boxd holds.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{O_CLOEXEC, O_NOCTTY};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use tokio::io::unix::AsyncFd;

/// What ends input on a terminal in its usual mode: Ctrl-D.
pub const END_OF_INPUT: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

impl Size {
    fn winsize(self) -> Winsize {
        Winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

pub struct Terminal {
    outer: AsyncFd<File>,
}

impl Terminal {
    /// A new terminal and its inner end, for a command's standard streams. Neither is
    /// inherited by accident.
    ///
    /// # Errors
    /// As `posix_openpt(3)`: no /dev/ptmx, or too many terminals.
    pub fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&outer)?;
        unlockpt(&outer)?;
        let name = ptsname(&outer, Vec::new())?;
        let inner = File::options()
            .read(true)
            .write(true)
            .custom_flags(O_NOCTTY | O_CLOEXEC)
            .open(name.to_string_lossy().as_ref())?;
        tcsetwinsize(&outer, size.winsize())?;
        fcntl(&outer, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok((
            Self {
                outer: registered(File::from(outer))?,
            },
            inner.into(),
        ))
    }

    /// The kernel tells the foreground group by SIGWINCH.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        tcsetwinsize(self.outer.get_ref(), size.winsize()).map_err(io::Error::from)
    }

    /// Signals whom Ctrl-C would reach; `false` when there is nobody.
    pub fn signal_foreground(&self, signal: Signal) -> bool {
        tcgetpgrp(self.outer.get_ref())
            .is_ok_and(|group| killpg(Pid::from_raw(group.as_raw_nonzero().get()), signal).is_ok())
    }

    /// # Errors
    /// As `epoll(7)`.
    pub async fn readable(&self) -> io::Result<()> {
        // The readiness stays until a read finds nothing.
        self.outer
            .readable()
            .await
            .map(|mut guard| guard.retain_ready())
    }

    /// 0 when no process has the inner end open any more.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing to read.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .outer
            .try_io(tokio::io::Interest::READABLE, |mut file| file.read(buffer));
        match read {
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// # Errors
    /// `EIO` when no process has the inner end open any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = self
                .outer
                .async_io(tokio::io::Interest::WRITABLE, |mut file| file.write(bytes));
            let written = write.await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

#[allow(
    unsafe_code,
    reason = "AsyncFd cannot know by itself that a File keeps its descriptor"
)]
fn registered(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File owns its descriptor, never changes it, and is only lent out by the
    // AsyncFd for as long as that lives.
    unsafe { AsyncFd::register(file) }.map_err(io::Error::from)
}
