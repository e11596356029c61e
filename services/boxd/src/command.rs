//! A command that shall be started: which file it is, and how a start fails.

mod launch;

pub use launch::{Session, launchable};

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::environment::Variables;

/// Not found, as shells say it.
pub const NOT_FOUND: i32 = 127;
/// Found, and not to be executed.
pub const NOT_EXECUTABLE: i32 = 126;

/// What to start, complete.
pub struct Order {
    /// Never empty.
    pub argv: Vec<OsString>,
    /// `None`: boxd's own, which is the image's.
    pub working_dir: Option<PathBuf>,
    pub variables: Variables,
}

/// The command ended before it began.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CannotStart {
    pub exit_code: i32,
    /// For the caller.
    pub message: String,
}

impl CannotStart {
    fn new(exit_code: i32, what: &OsStr, why: &str) -> Self {
        Self {
            exit_code,
            message: format!("{}: {why}", what.to_string_lossy()),
        }
    }

    /// What the kernel said when `program`, which exists, was executed.
    pub fn from_exec(program: &OsStr, error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Self::new(NOT_FOUND, program, "its interpreter was not found"),
            Some(Errno::EAGAIN) => Self::new(
                NOT_EXECUTABLE,
                program,
                "no process could be created: the box's process limit is reached",
            ),
            Some(errno) => Self::new(NOT_EXECUTABLE, program, errno.desc()),
            None => Self::new(NOT_EXECUTABLE, program, "it could not be executed"),
        }
    }
}

impl Order {
    /// The file to execute: `argv[0]` itself when it has a slash, else the first
    /// executable of that name in the PATH that the command will see.
    ///
    /// # Errors
    /// [`CannotStart`]: 127 when there is none; 126 when it is not executable, or the
    /// working directory cannot be entered.
    pub fn resolve(&self) -> Result<PathBuf, CannotStart> {
        if let Some(directory) = &self.working_dir {
            check_directory(directory)?;
        }
        let program = self
            .argv
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str);
        if program.is_empty() {
            return Err(CannotStart::new(NOT_FOUND, program, "no program was given"));
        }
        if program.as_bytes().contains(&b'/') {
            let path = Path::new(program);
            let seen = self
                .working_dir
                .as_deref()
                .unwrap_or(Path::new(""))
                .join(path);
            return match Candidate::look(&seen) {
                Candidate::Executable => Ok(path.to_owned()),
                other => Err(other.refusal(program)),
            };
        }
        self.search(program)
    }

    fn search(&self, program: &OsStr) -> Result<PathBuf, CannotStart> {
        let path = self.variables.get(OsStr::new("PATH"));
        let mut worst = Candidate::Missing;
        for directory in std::env::split_paths(path.map_or(OsStr::new(""), OsString::as_os_str)) {
            let file = directory.join(program);
            let base = self.working_dir.as_deref().unwrap_or(Path::new(""));
            match Candidate::look(&base.join(&file)) {
                Candidate::Executable => return Ok(file),
                // A directory of the name is passed over, as execvp(3) does.
                Candidate::Forbidden => worst = Candidate::Forbidden,
                Candidate::Missing | Candidate::Directory => {}
            }
        }
        Err(worst.refusal(program))
    }
}

fn check_directory(directory: &Path) -> Result<(), CannotStart> {
    let refused = |why| CannotStart::new(NOT_EXECUTABLE, directory.as_os_str(), why);
    match std::fs::metadata(directory) {
        Ok(found) if !found.is_dir() => Err(refused("the working directory is not a directory")),
        Ok(_) if access(directory, AccessFlags::X_OK).is_err() => {
            Err(refused("the working directory cannot be entered"))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(refused("the working directory does not exist"))
        }
        Err(_) => Err(refused("the working directory cannot be used")),
    }
}

#[derive(Clone, Copy)]
enum Candidate {
    Executable,
    Forbidden,
    Directory,
    Missing,
}

impl Candidate {
    fn look(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Self::Directory,
            Ok(_) if access(path, AccessFlags::X_OK).is_ok() => Self::Executable,
            Ok(_) => Self::Forbidden,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Forbidden,
            Err(_) => Self::Missing,
        }
    }

    fn refusal(self, program: &OsStr) -> CannotStart {
        match self {
            Self::Missing => CannotStart::new(NOT_FOUND, program, "not found"),
            Self::Directory => CannotStart::new(NOT_EXECUTABLE, program, "is a directory"),
            Self::Forbidden | Self::Executable => {
                CannotStart::new(NOT_EXECUTABLE, program, "is not executable")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn order(argv: &str, path: &str, working_dir: Option<&Path>) -> Order {
        Order {
            argv: vec![argv.into()],
            working_dir: working_dir.map(Path::to_owned),
            variables: [("PATH".into(), path.into())].into(),
        }
    }

    #[test]
    fn the_first_executable_in_the_commands_own_path_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("first", 0o644), ("second", 0o755)] {
            let sub = dir.path().join(name);
            fs::create_dir(&sub).unwrap();
            fs::write(sub.join("tool"), "").unwrap();
            fs::set_permissions(sub.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
            fs::create_dir(sub.join("folder")).unwrap();
        }
        let root = dir.path().display();
        let path = format!("{root}/first:{root}/second");
        let code =
            |argv: &str, path: &str| order(argv, path, None).resolve().unwrap_err().exit_code;
        assert_eq!(
            order("tool", &path, None).resolve(),
            Ok(dir.path().join("second/tool"))
        );
        assert_eq!(code("tool", &format!("{root}/first")), NOT_EXECUTABLE);
        assert_eq!(code("folder", &path), NOT_FOUND);
        assert_eq!(code("nothing", &path), NOT_FOUND);
        assert_eq!(code("nothing", ""), NOT_FOUND);
        assert_eq!(code("", &path), NOT_FOUND);
        assert_eq!(code(&format!("{root}/first/tool"), ""), NOT_EXECUTABLE);
        assert_eq!(code(&format!("{root}/first"), ""), NOT_EXECUTABLE);
        let relative = order("./second/tool", "", Some(dir.path()));
        assert_eq!(relative.resolve(), Ok(PathBuf::from("./second/tool")));
    }

    #[test]
    fn a_bad_working_directory_is_said_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for bad in [file, dir.path().join("nowhere")] {
            let refused = order("/bin/sh", "", Some(&bad)).resolve().unwrap_err();
            assert_eq!(refused.exit_code, NOT_EXECUTABLE);
            assert!(refused.message.contains("working directory"), "{refused}");
        }
    }
}
