//! A command to start: which file is executed, and how a start fails.
//!
//! [`NewProcess`] is its prepared process, and [`Spawner`] creates that.

mod child;
mod launch;
mod spawn;

pub use launch::{NewProcess, StandardStreams};
pub use spawn::Spawner;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agentbox_contracts::error::ErrorCode;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::environment::Variables;
use crate::user::User;

/// The exit code of shells for a program that was not found.
pub const NOT_FOUND: i32 = 127;
/// The exit code of shells for a program that cannot be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// How much of a program's or directory's name a message shows, in bytes.
const MAX_SUBJECT_BYTES: usize = 1024;

/// A command with its directory and its whole environment.
pub struct CommandSpec {
    /// Never empty.
    pub argv: Vec<OsString>,
    /// `None`: boxd's own, which is the image's working directory.
    pub working_dir: Option<PathBuf>,
    pub variables: Variables,
    /// `None`: boxd's own. For another one, [`CommandSpec::resolve`] only considers permission bits:
    /// the kernel decides when the process becomes the user, enters the directory and executes.
    pub user: Option<User>,
}

/// The command could not be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    pub exit_code: i32,
    /// The reason, for the caller.
    pub message: String,
    /// Names the cause when it is the request, not the program.
    pub code: Option<ErrorCode>,
}

impl StartError {
    fn new(exit_code: i32, subject: &OsStr, reason: &str) -> Self {
        let mut subject = subject.to_string_lossy().into_owned();
        subject.truncate(subject.floor_char_boundary(MAX_SUBJECT_BYTES));
        Self {
            exit_code,
            message: format!("{subject}: {reason}"),
            code: None,
        }
    }

    /// From the kernel's error when `program`, which exists, was executed.
    pub fn from_exec(program: &OsStr, error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Self::new(NOT_FOUND, program, "its interpreter was not found"),
            Some(Errno::EAGAIN) => Self::new(
                NOT_EXECUTABLE,
                program,
                "the box's process limit is reached",
            ),
            Some(errno) => Self::new(NOT_EXECUTABLE, program, errno.desc()),
            None => Self::new(NOT_EXECUTABLE, program, "could not be executed"),
        }
    }
}

impl CommandSpec {
    /// The file to execute: `argv[0]` itself when it contains a slash, else the first
    /// executable of that name in the command's own PATH.
    ///
    /// # Errors
    /// [`StartError`] with code 127 when there is no such file, with 126 when it is not
    /// executable or the working directory cannot be entered.
    pub fn resolve(&self) -> Result<PathBuf, StartError> {
        if let Some(directory) = &self.working_dir {
            self.check_directory(directory)
                .map_err(|error| StartError {
                    code: Some(ErrorCode::WorkingDirNotFound),
                    ..error
                })?;
        }
        let program = self
            .argv
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str);
        if program.is_empty() {
            return Err(StartError::new(NOT_FOUND, program, "no program was given"));
        }
        if program.as_bytes().contains(&b'/') {
            let path = Path::new(program);
            let absolute = self
                .working_dir
                .as_deref()
                .unwrap_or(Path::new(""))
                .join(path);
            return match self.inspect(&absolute) {
                Candidate::Executable => Ok(path.to_owned()),
                other => Err(other.error(program)),
            };
        }
        self.search(program)
    }

    fn search(&self, program: &OsStr) -> Result<PathBuf, StartError> {
        let path = self.variables.get(OsStr::new("PATH"));
        let mut worst = Candidate::Missing;
        for directory in std::env::split_paths(path.map_or(OsStr::new(""), OsString::as_os_str)) {
            let file = directory.join(program);
            let base = self.working_dir.as_deref().unwrap_or(Path::new(""));
            match self.inspect(&base.join(&file)) {
                Candidate::Executable => return Ok(file),
                // Directories are skipped, as execvp(3) does.
                Candidate::Forbidden => worst = Candidate::Forbidden,
                Candidate::Missing | Candidate::Directory => {}
            }
        }
        Err(worst.error(program))
    }

    fn check_directory(&self, directory: &Path) -> Result<(), StartError> {
        let error = |reason| StartError::new(NOT_EXECUTABLE, directory.as_os_str(), reason);
        match std::fs::metadata(directory) {
            Ok(found) if !found.is_dir() => Err(error("the working directory is not a directory")),
            Ok(_) if !self.may_execute(directory) => {
                Err(error("the working directory cannot be entered"))
            }
            Ok(_) => Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                Err(error("the working directory does not exist"))
            }
            Err(_) => Err(error("the working directory cannot be used")),
        }
    }

    fn inspect(&self, path: &Path) -> Candidate {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Candidate::Directory,
            Ok(_) if self.may_execute(path) => Candidate::Executable,
            Ok(_) => Candidate::Forbidden,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Candidate::Forbidden,
            Err(_) => Candidate::Missing,
        }
    }

    /// Whether the command's user may execute a program, or enter a directory. access(2) answers
    /// for boxd's own user only. For another one this is the user's permission on each directory of
    /// the path, and on the file.
    fn may_execute(&self, path: &Path) -> bool {
        let Some(user) = &self.user else {
            return access(path, AccessFlags::X_OK).is_ok();
        };
        let permits = |part: &Path| {
            std::fs::metadata(part)
                .is_ok_and(|found| user.may_execute(found.mode(), found.uid(), found.gid()))
        };
        let mut parts = path.ancestors().filter(|part| !part.as_os_str().is_empty());
        parts.all(permits)
    }
}

/// What is at a path that may be the program.
#[derive(Clone, Copy)]
enum Candidate {
    Executable,
    Forbidden,
    Directory,
    Missing,
}

impl Candidate {
    fn error(self, program: &OsStr) -> StartError {
        match self {
            Self::Missing => StartError::new(NOT_FOUND, program, "not found"),
            Self::Directory => StartError::new(NOT_EXECUTABLE, program, "is a directory"),
            Self::Forbidden | Self::Executable => {
                StartError::new(NOT_EXECUTABLE, program, "is not executable")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn command(argv: &str, path: &str, working_dir: Option<&Path>) -> CommandSpec {
        CommandSpec {
            argv: vec![argv.into()],
            working_dir: working_dir.map(Path::to_owned),
            variables: [("PATH".into(), path.into())].into(),
            user: None,
        }
    }

    #[test]
    fn program_resolves_to_first_executable_in_command_path() {
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
            |argv: &str, path: &str| command(argv, path, None).resolve().unwrap_err().exit_code;
        assert_eq!(
            command("tool", &path, None).resolve(),
            Ok(dir.path().join("second/tool"))
        );
        assert_eq!(code("tool", &format!("{root}/first")), NOT_EXECUTABLE);
        assert_eq!(code("folder", &path), NOT_FOUND);
        assert_eq!(code("nothing", &path), NOT_FOUND);
        assert_eq!(code("nothing", ""), NOT_FOUND);
        assert_eq!(code("", &path), NOT_FOUND);
        assert_eq!(code(&format!("{root}/first/tool"), ""), NOT_EXECUTABLE);
        assert_eq!(code(&format!("{root}/first"), ""), NOT_EXECUTABLE);
        let relative = command("./second/tool", "", Some(dir.path()));
        assert_eq!(relative.resolve(), Ok(PathBuf::from("./second/tool")));
    }

    #[test]
    fn message_shows_the_beginning_of_a_long_program() {
        let script = "é".repeat(60_000);
        let error = command(&script, "/bin", None).resolve().unwrap_err();
        assert!(error.message.starts_with("éé"));
        assert!(error.message.ends_with(": not found"));
        assert!(error.message.len() < MAX_SUBJECT_BYTES + 20);
    }

    #[test]
    fn unusable_working_directory_is_named_in_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for bad in [file, dir.path().join("nowhere")] {
            let error = command("/bin/sh", "", Some(&bad)).resolve().unwrap_err();
            assert_eq!(error.exit_code, NOT_EXECUTABLE);
            assert_eq!(error.code, Some(ErrorCode::WorkingDirNotFound));
            assert!(error.message.contains("working directory"), "{error}");
        }
    }

    #[test]
    fn program_of_other_user_is_one_that_the_user_may_execute() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (name, directory_mode, mode) in [
            ("closed", 0o700, 0o755),
            ("private", 0o755, 0o700),
            ("open", 0o755, 0o755),
        ] {
            let sub = dir.path().join(name);
            fs::create_dir(&sub).unwrap();
            fs::write(sub.join("tool"), "").unwrap();
            fs::set_permissions(sub.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&sub, fs::Permissions::from_mode(directory_mode)).unwrap();
        }
        let root = dir.path().display();
        let path = format!("{root}/closed:{root}/private:{root}/open");
        let mut command = command("tool", &path, None);
        command.user = Some(User {
            uid: 4242,
            gid: 4242,
            groups: Vec::new(),
            name: String::new(),
            home: None,
        });
        assert_eq!(command.resolve(), Ok(dir.path().join("open/tool")));
        command.working_dir = Some(dir.path().join("closed"));
        let error = command.resolve().unwrap_err();
        assert!(error.message.contains("cannot be entered"), "{error}");
    }
}
