//! Reporting changes of a file or of a directory, with inotify(7).
//!
//! * I1. Every change since `ready` is reported, or an overflow: the kernel's queue was full, or a new
//!   directory could not be watched.
//! * I2. A new directory is watched and then listed, so that what was created in it before is reported.
//!   Such a change may be reported twice.

mod report;

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{ChangeKind, Watch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::caller::Caller;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{MAX_PATH_BYTES, file_type};
use super::stop;
use report::Report;

/// The most directories of one operation.
const MAX_WATCHES: usize = 65_536;
/// Larger than one event.
const EVENTS_BYTES: usize = 16 * 1024;
/// How long the second event of a move is awaited.
const MOVE_PAIR_MS: u16 = 20;

/// Answers `ready`, then changes, until the caller ends the operation or the path is deleted.
///
/// # Errors
/// As `inotify_add_watch(2)`; `Unavailable` at the environment's limit of watches.
pub fn watch(caller: &mut Caller, path: &[u8], request: &Watch) -> Result<()> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(|errno| limit_reached(path, errno))?;
    let mut watching = Watching {
        inotify,
        recursive: request.recursive,
        watched: HashMap::new(),
        root: path.to_vec(),
        moved_from: None,
        report: Report::default(),
        is_over: false,
    };
    watching.add_root(caller)?;
    caller.send(Output::Ready(()))?;
    if !request.after.is_empty() {
        watching.report.add(ChangeKind::Overflow, Vec::new(), None);
    }
    loop {
        watching.report.send(caller)?;
        if watching.is_over {
            return Ok(());
        }
        if watching.wait(caller, PollTimeout::NONE)? {
            return Ok(());
        }
        watching.read_events(caller)?;
        if watching.moved_from.is_some() {
            if watching.wait(caller, PollTimeout::from(MOVE_PAIR_MS))? {
                return Ok(());
            }
            watching.read_events(caller)?;
            watching.end_move();
        }
    }
}

/// The first event of a move, until its second one.
struct MovedFrom {
    cookie: u32,
    path: Vec<u8>,
}

struct Watching {
    inotify: OwnedFd,
    recursive: bool,
    /// The path of each watch: the directories, or the file that the caller has named.
    watched: HashMap<i32, Vec<u8>>,
    root: Vec<u8>,
    moved_from: Option<MovedFrom>,
    report: Report,
    /// The watched path is gone.
    is_over: bool,
}

/// One event, copied out of the kernel's buffer.
struct Event {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

impl Watching {
    fn add_root(&mut self, caller: &mut Caller) -> Result<()> {
        let root = self.root.clone();
        let stat = statat(CWD, root.as_slice(), AtFlags::empty()).on(&root)?;
        self.add_watch(&root, true)?;
        if self.recursive && file_type(&stat).is_dir() {
            self.add_below(caller, &root, false)?;
        }
        Ok(())
    }

    /// Watches one path. Without `follow` it must be a directory, and not a link to one.
    fn add_watch(&mut self, path: &[u8], follow: bool) -> Result<()> {
        if self.watched.len() >= MAX_WATCHES {
            return Err(limit_reached(path, Errno::NOSPC));
        }
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        if !follow {
            flags |= WatchFlags::DONT_FOLLOW | WatchFlags::ONLYDIR;
        }
        let watch = inotify::add_watch(&self.inotify, path, flags)
            .map_err(|errno| limit_reached(path, errno))?;
        self.watched.insert(watch, path.to_vec());
        Ok(())
    }

    /// Watches the directories below a watched one, without recursion. With `is_new`, what is there is
    /// reported as created. A directory that is gone meanwhile, or that this user may not read, is left
    /// out.
    fn add_below(&mut self, caller: &mut Caller, path: &[u8], is_new: bool) -> Result<()> {
        let mut pending = vec![path.to_vec()];
        while let Some(directory) = pending.pop() {
            stop::check()?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let Ok(opened) = openat(CWD, directory.as_slice(), flags, Mode::empty()) else {
                continue;
            };
            let Ok(entries) = Dir::read_from(&opened) else {
                continue;
            };
            for entry in entries {
                let Ok(entry) = entry else { break };
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let below = joined(&directory, name);
                let found = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW);
                if is_new {
                    self.report.add(ChangeKind::Created, below.clone(), None);
                    self.send_if_full(caller)?;
                }
                if below.len() > MAX_PATH_BYTES
                    || !found.is_ok_and(|stat| file_type(&stat).is_dir())
                {
                    continue;
                }
                match self.add_watch(&below, false) {
                    Ok(()) => pending.push(below),
                    Err(failure) if failure.code == ErrorCode::Unavailable => {
                        return Err(failure);
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Waits for an event; `true` when the caller has ended the operation.
    fn wait(&self, caller: &Caller, limit: PollTimeout) -> Result<bool> {
        stop::check()?;
        // Whatever the caller sends, or that it is gone, ends the operation.
        let is_ended = {
            let mut polled = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(caller.readable(), PollFlags::POLLIN),
            ];
            match poll(&mut polled, limit) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => {
                    let errno = Errno::from_raw_os_error(errno as i32);
                    return Err(Failure::of(&self.root, errno));
                }
            }
            polled[1].any().unwrap_or(true)
        };
        Ok(is_ended)
    }

    fn read_events(&mut self, caller: &mut Caller) -> Result<()> {
        loop {
            let events = match self.next_events() {
                Ok(events) => events,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Failure::of(&self.root, errno)),
            };
            for event in events {
                if let Err(failure) = self.handle_event(caller, event) {
                    // Some directories are not watched: the caller must know before the end.
                    self.report.add(ChangeKind::Overflow, Vec::new(), None);
                    self.report.send(caller)?;
                    return Err(failure);
                }
                self.send_if_full(caller)?;
            }
        }
    }

    fn send_if_full(&mut self, caller: &mut Caller) -> Result<()> {
        if self.report.is_full() {
            return self.report.send(caller);
        }
        Ok(())
    }

    /// The events of one read.
    fn next_events(&self) -> rustix::io::Result<Vec<Event>> {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            let event = reader.next()?;
            events.push(Event {
                watch: event.wd(),
                flags: event.events(),
                cookie: event.cookie(),
                name: event.file_name().map(|name| name.to_bytes().to_vec()),
            });
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }

    /// Adds the change of an event to the report, and watches what it brings.
    fn handle_event(&mut self, caller: &mut Caller, event: Event) -> Result<()> {
        let flags = event.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.handle_overflow(caller);
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.watched.remove(&event.watch);
            return Ok(());
        }
        let Some(directory) = self.watched.get(&event.watch) else {
            return Ok(());
        };
        let is_root = *directory == self.root;
        let path = match &event.name {
            Some(name) => joined(directory, name),
            None => directory.clone(),
        };
        let is_pair = flags.contains(ReadFlags::MOVED_TO)
            && self
                .moved_from
                .as_ref()
                .is_some_and(|moved| moved.cookie == event.cookie);
        if !is_pair {
            self.end_move();
        }
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.moved_from = Some(MovedFrom {
                cookie: event.cookie,
                path,
            });
        } else if flags.contains(ReadFlags::MOVED_TO) {
            self.complete_move(caller, path, is_directory)?;
        } else if flags.contains(ReadFlags::CREATE) {
            self.report.add(ChangeKind::Created, path.clone(), None);
            if is_directory && self.recursive {
                self.add_new(caller, &path)?;
            }
        } else if flags.contains(ReadFlags::DELETE) {
            self.report.add(ChangeKind::Deleted, path, None);
        } else if flags
            .intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT)
        {
            // The event of the directory above reports the others.
            if is_root && !self.is_over {
                self.report.add(ChangeKind::Deleted, path, None);
                self.is_over = true;
            }
        } else if flags.contains(ReadFlags::MODIFY) {
            self.report.add(ChangeKind::Modified, path, None);
        } else if flags.contains(ReadFlags::ATTRIB) {
            self.report.add(ChangeKind::Attributes, path, None);
        }
        Ok(())
    }

    fn handle_overflow(&mut self, caller: &mut Caller) -> Result<()> {
        self.end_move();
        self.report.add(ChangeKind::Overflow, Vec::new(), None);
        if !self.recursive {
            return Ok(());
        }
        // Directories may have been created meanwhile.
        let root = self.root.clone();
        self.add_below(caller, &root, false)
    }

    /// Reports a move to `path`, from `moved_from` or from outside of what is watched.
    fn complete_move(
        &mut self,
        caller: &mut Caller,
        path: Vec<u8>,
        is_directory: bool,
    ) -> Result<()> {
        let from = self.moved_from.take().map(|moved| moved.path);
        self.report
            .add(ChangeKind::Moved, path.clone(), from.clone());
        if is_directory && self.recursive {
            if let Some(from) = from {
                self.rename_watches(&from, &path);
            } else {
                self.add_new(caller, &path)?;
            }
        }
        Ok(())
    }

    /// Watches a new directory and what is in it already.
    fn add_new(&mut self, caller: &mut Caller, path: &[u8]) -> Result<()> {
        match self.add_watch(path, false) {
            Ok(()) => self.add_below(caller, path, true),
            Err(failure) if failure.code == ErrorCode::Unavailable => Err(failure),
            // It is gone, or this user may not read it.
            Err(_) => Ok(()),
        }
    }

    /// Reports a move without a second event: the file has left the watched directories, and is deleted for
    /// the caller.
    fn end_move(&mut self) {
        if let Some(moved) = self.moved_from.take() {
            let below: Vec<i32> = self
                .watched
                .iter()
                .filter(|(_, path)| is_below(path, &moved.path))
                .map(|(watch, _)| *watch)
                .collect();
            for watch in below {
                self.watched.remove(&watch);
                // The kernel may have removed it.
                let _ = inotify::remove_watch(&self.inotify, watch);
            }
            self.report.add(ChangeKind::Deleted, moved.path, None);
        }
    }

    fn rename_watches(&mut self, from: &[u8], to: &[u8]) {
        for path in self.watched.values_mut() {
            if is_below(path, from) {
                let renamed = [to, &path[from.len()..]].concat();
                *path = renamed;
            }
        }
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    [directory, b"/", name].concat()
}

/// Whether a path is `directory` or something in it.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

fn limit_reached(path: &[u8], errno: Errno) -> Failure {
    match errno {
        Errno::NOSPC | Errno::MFILE => Failure::at(
            path,
            ErrorCode::Unavailable,
            "cannot be watched: the environment's limit of inotify watches or instances is reached",
        ),
        other => Failure::of(path, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A box must not name the code of a caller's quota: exec-proxy makes it a fault.
    #[test]
    fn limit_of_watches_is_no_fault_and_no_quota() {
        for errno in [Errno::NOSPC, Errno::MFILE, Errno::NOMEM] {
            let failure = limit_reached(b"/a", errno);
            assert_eq!(failure.code, ErrorCode::Unavailable, "{errno}");
        }
    }

    #[test]
    fn path_is_below_a_directory_by_whole_names() {
        for (path, directory, expected) in [
            ("/a/b", "/a", true),
            ("/a", "/a", true),
            ("/ab", "/a", false),
            ("/", "/a", false),
        ] {
            let below = is_below(path.as_bytes(), directory.as_bytes());
            assert_eq!(below, expected, "{path} {directory}");
        }
        assert_eq!(joined(b"/", b"a"), b"/a");
        assert_eq!(joined(b"/a", b"b"), b"/a/b");
    }
}
