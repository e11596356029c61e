//! How a file operation fails: an error code and a message for users, which names the path.

use std::io;

use agentbox_contracts::error::{ErrorCode, shortened};
use agentbox_contracts::files::FileFailure;
use rustix::io::Errno;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
}

impl Failure {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The failure of an operation on `path`; the message is `` `path` rule ``.
    #[must_use]
    pub fn at(path: &[u8], code: ErrorCode, rule: &str) -> Self {
        Self::new(code, format!("`{}` {rule}", shown(path)))
    }

    /// From the kernel's error for `path`.
    #[must_use]
    pub fn of(path: &[u8], errno: Errno) -> Self {
        match rule_of(errno) {
            Some((code, rule)) => Self::at(path, code, rule),
            None => {
                let cause = io::Error::from(errno);
                Self::at(path, ErrorCode::Internal, &format!("failed: {cause}"))
            }
        }
    }
}

impl From<Failure> for FileFailure {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code.as_str().to_owned(),
            message: failure.message,
        }
    }
}

/// The path in a message: at most 80 characters, unreadable bytes replaced.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    shortened(&String::from_utf8_lossy(path))
}

/// The error code and the rule of a kernel's error. `None`: a fault.
fn rule_of(errno: Errno) -> Option<(ErrorCode, &'static str)> {
    Some(match errno {
        // In `/proc`, of a process that has ended meanwhile.
        Errno::NOENT | Errno::SRCH => (ErrorCode::FileNotFound, "does not exist"),
        Errno::NOTDIR => (
            ErrorCode::NotADirectory,
            "or a part of it is not a directory",
        ),
        Errno::ISDIR => (ErrorCode::IsADirectory, "is a directory"),
        Errno::EXIST => (ErrorCode::AlreadyExists, "already exists"),
        Errno::NOTEMPTY => (ErrorCode::NotEmpty, "is a directory with entries"),
        Errno::BUSY => (ErrorCode::Busy, "is in use, as a mount point is"),
        Errno::TXTBSY => (ErrorCode::Busy, "is a program that runs"),
        Errno::XDEV => (ErrorCode::CrossDevice, "is on another file system"),
        Errno::ACCESS | Errno::PERM => {
            (ErrorCode::PermissionDenied, "is not permitted to this user")
        }
        Errno::ROFS => (
            ErrorCode::ReadOnlyFilesystem,
            "is on a read-only file system",
        ),
        Errno::NOSPC | Errno::DQUOT => (ErrorCode::NoSpace, "has no room: the storage is full"),
        Errno::FBIG => (ErrorCode::NoSpace, "is larger than its file system allows"),
        Errno::NAMETOOLONG => (ErrorCode::NameTooLong, "has a name that is too long"),
        Errno::LOOP => (ErrorCode::TooManyLinks, "has too many symbolic links"),
        Errno::INVAL => (ErrorCode::InvalidPath, "is not valid for this operation"),
        Errno::NXIO | Errno::NODEV => {
            (ErrorCode::NotReplaceable, "is a device, a FIFO or a socket")
        }
        Errno::MLINK => (ErrorCode::Conflict, "has too many hard links"),
        Errno::OPNOTSUPP | Errno::NOSYS => (
            ErrorCode::Conflict,
            "is on a file system that does not support this",
        ),
        Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOBUFS => (
            ErrorCode::Unavailable,
            "failed: the environment has no memory or file descriptors left",
        ),
        _ => return None,
    })
}

/// Names the path of a kernel's error.
pub trait OnPath<T> {
    /// # Errors
    /// [`Failure`] for `path`.
    fn on(self, path: &[u8]) -> Result<T>;
}

impl<T> OnPath<T> for rustix::io::Result<T> {
    fn on(self, path: &[u8]) -> Result<T> {
        self.map_err(|errno| Failure::of(path, errno))
    }
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, path: &[u8]) -> Result<T> {
        self.map_err(|error| Failure::of(path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_errors_have_their_words() {
        for (errno, word) in [
            (Errno::NOENT, "file_not_found"),
            (Errno::SRCH, "file_not_found"),
            (Errno::NOTDIR, "not_a_directory"),
            (Errno::ISDIR, "is_a_directory"),
            (Errno::EXIST, "already_exists"),
            (Errno::NOTEMPTY, "not_empty"),
            (Errno::BUSY, "busy"),
            (Errno::TXTBSY, "busy"),
            (Errno::XDEV, "cross_device"),
            (Errno::ACCESS, "permission_denied"),
            (Errno::PERM, "permission_denied"),
            (Errno::ROFS, "read_only_filesystem"),
            (Errno::NOSPC, "no_space"),
            (Errno::DQUOT, "no_space"),
            (Errno::NAMETOOLONG, "name_too_long"),
            (Errno::LOOP, "too_many_links"),
            (Errno::INVAL, "invalid_path"),
            (Errno::IO, "internal"),
        ] {
            let failure = FileFailure::from(Failure::of(b"/a", errno));
            assert_eq!(failure.code, word);
            assert!(failure.message.starts_with("`/a` "), "{}", failure.message);
        }
    }

    #[test]
    fn message_shows_a_bounded_readable_path() {
        let path = [b"/\xff\n".as_slice(), &[b'a'; 200]].concat();
        let failure = Failure::of(&path, Errno::NOENT);
        assert!(failure.message.starts_with("`/\u{fffd}aaa"));
        assert!(failure.message.chars().count() < 110);
        let from_std = Err::<(), _>(io::Error::from_raw_os_error(28)).on(b"/a");
        assert_eq!(from_std.unwrap_err().code, ErrorCode::NoSpace);
    }
}
