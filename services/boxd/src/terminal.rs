//! A pseudoterminal: boxd's end of it, the controller. The command has the tty.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcgetpgrp, tcsetwinsize};
use tokio::io::unix::AsyncFd;

/// Ctrl-D, the default of a terminal's end-of-file character (VEOF).
const END_OF_FILE: u8 = 4;

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
    controller: AsyncFd<File>,
    /// Whether the input since the last line's end is not empty.
    has_unfinished_line: AtomicBool,
}

impl Terminal {
    /// A new terminal and its tty, for a command's standard streams. Both descriptors are
    /// close-on-exec.
    ///
    /// # Errors
    /// As `posix_openpt(3)`: no /dev/ptmx, or too many terminals.
    pub fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        // Root in the box may have put another file into the place of either device.
        let (controller, name) = open_controller().map_err(|error| named("/dev/ptmx", &error))?;
        let tty = open_tty(&name).map_err(|error| named(&name, &error))?;
        tcsetwinsize(&controller, size.winsize())?;
        fcntl(
            &controller,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
        Ok((
            Self {
                controller: register(File::from(controller))?,
                has_unfinished_line: AtomicBool::new(false),
            },
            tty.into(),
        ))
    }

    /// Sets the size. The kernel sends SIGWINCH to the foreground group.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        tcsetwinsize(self.controller.get_ref(), size.winsize()).map_err(io::Error::from)
    }

    /// Signals the foreground process group; `false` when there is none.
    pub fn signal_foreground(&self, signal: Signal) -> bool {
        tcgetpgrp(self.controller.get_ref())
            .is_ok_and(|group| killpg(Pid::from_raw(group.as_raw_nonzero().get()), signal).is_ok())
    }

    /// # Errors
    /// As `epoll(7)`.
    pub async fn readable(&self) -> io::Result<()> {
        // The readiness is kept until a read would block.
        self.controller
            .readable()
            .await
            .map(|mut guard| guard.retain_ready())
    }

    /// Returns 0 when no process has the tty open any more.
    ///
    /// # Errors
    /// `WouldBlock` when no byte is available.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .controller
            .try_io(tokio::io::Interest::READABLE, |mut file| file.read(buffer));
        match read {
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// Ends the input. A terminal has no end of file; its line discipline makes one of the
    /// end-of-file character.
    ///
    /// # Errors
    /// `EIO` when no process has the tty open any more.
    pub async fn end_input(&self) -> io::Result<()> {
        let (end_of_file, is_canonical) = {
            let settings = tcgetattr(self.controller.get_ref())?;
            let is_canonical = settings.local_modes.contains(LocalModes::ICANON);
            match settings.special_codes[SpecialCodeIndex::VEOF] {
                // The command has disabled it.
                0 => (END_OF_FILE, is_canonical),
                set => (set, is_canonical),
            }
        };
        // After an unfinished line the first character only passes the line to its reader. At the
        // start of a line a second one would end the input of the next reader too.
        let is_unfinished = self.has_unfinished_line.load(Ordering::Relaxed);
        let count = if is_canonical && is_unfinished { 2 } else { 1 };
        self.write_all(&[end_of_file; 2][..count]).await?;
        self.has_unfinished_line.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// # Errors
    /// `EIO` when no process has the tty open any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = self
                .controller
                .async_io(tokio::io::Interest::WRITABLE, |mut file| file.write(bytes));
            let written = write.await?;
            if let Some(last) = bytes.get(..written).and_then(<[u8]>::last) {
                self.has_unfinished_line
                    .store(!ends_line(*last), Ordering::Relaxed);
            }
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A new terminal, and the path of its tty.
fn open_controller() -> io::Result<(OwnedFd, String)> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    let name = ptsname(&controller, Vec::new())?;
    Ok((controller, name.to_string_lossy().into_owned()))
}

/// Opens the tty. Never waits, whatever is in its place.
fn open_tty(name: &str) -> io::Result<File> {
    let tty = File::options()
        .read(true)
        .write(true)
        .custom_flags(O_NOCTTY | O_NOFOLLOW | O_NONBLOCK)
        .open(name)?;
    if !tty.metadata()?.file_type().is_char_device() {
        let rule = "must be a terminal";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
    }
    // The command's streams wait.
    fcntl(&tty, FcntlArg::F_SETFL(OFlag::O_RDWR))?;
    Ok(tty)
}

/// The error with the file's path.
fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Whether a terminal's line is empty after this byte: it ends a line, or discards it, with the
/// terminal's default characters.
fn ends_line(byte: u8) -> bool {
    const INTERRUPT: u8 = 3;
    const KILL_LINE: u8 = 21;
    const SUSPEND: u8 = 26;
    const QUIT: u8 = 28;
    matches!(
        byte,
        b'\n' | b'\r' | END_OF_FILE | INTERRUPT | KILL_LINE | SUSPEND | QUIT
    )
}

#[allow(
    unsafe_code,
    reason = "AsyncFd cannot know by itself that a File keeps its descriptor"
)]
fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File owns its descriptor and never changes it; the AsyncFd owns the File.
    unsafe { AsyncFd::register(file) }.map_err(io::Error::from)
}
