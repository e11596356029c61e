//! The termination file: the exit of the main command as JSON. It outlives boxd. A box that ended
//! without it was lost, or failed to start: boxd's own exit code is not the command's.
//!
//! In a claimed box it has the claim, from before the main command is started: `{"claim": "…"}`, to which
//! the exit adds its fields. So a claim that is repeated after boxd's end is known to have been made.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::regular_file;

/// The size limit of the file, in bytes: that of Kubernetes' termination message.
const MAX_BYTES: u64 = 4096;
const MAX_MESSAGE_CHARS: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// 0..=255; 128+N when signal N ended it, 127 or 126 when it could not be started.
    pub exit_code: i32,
    /// The kernel's OOM killer killed it.
    pub oom_killed: bool,
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    /// A message for users; may be empty.
    pub message: String,
    /// The claim of the box ([`crate::claim`]); `None`: it was not created warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

/// What the file of a claimed box has before and after the exit.
#[derive(Serialize, Deserialize)]
struct Claimed {
    claim: String,
}

#[derive(Debug, thiserror::Error)]
pub enum TerminationError {
    #[error("accessing the termination file failed")]
    Io(#[from] io::Error),
    #[error("the termination file is malformed")]
    Malformed(#[source] serde_json::Error),
}

impl Termination {
    /// Creates the file without an exit, so that [`Self::write`] succeeds also when the box has
    /// filled the file system meanwhile.
    ///
    /// # Errors
    /// [`TerminationError::Io`].
    pub fn reserve(path: &Path) -> Result<(), TerminationError> {
        let mut file = regular_file::open_or_create(path)?;
        file.set_len(0)?;
        // A file system allocates a whole page or block for the first byte.
        Ok(file.write_all(b"\n")?)
    }

    /// Writes the claim of a box into the reserved file, before the main command is started. The file stays
    /// the same one, with its mode.
    ///
    /// # Errors
    /// [`TerminationError::Io`].
    pub fn record_claim(path: &Path, claim: &str) -> Result<(), TerminationError> {
        let claimed = Claimed {
            claim: claim.to_owned(),
        };
        let json = serde_json::to_vec(&claimed).map_err(TerminationError::Malformed)?;
        Ok(write_in_place(path, &json)?)
    }

    /// The claim that the content of the file has, with or without an exit.
    #[must_use]
    pub fn claim_in(content: &[u8]) -> Option<String> {
        let claimed: Option<Claimed> = serde_json::from_slice(content).ok();
        claimed.map(|claimed| claimed.claim)
    }

    /// Writes the file through a temporary file and a rename; in place when there is no space
    /// for another file, and when the path is a mount itself (Kubernetes' termination log). Links, FIFOs
    /// and devices that the box has put into the place of either file are not written to.
    ///
    /// # Errors
    /// [`TerminationError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), TerminationError> {
        let mut bounded = self.clone();
        bounded.message = self.message.chars().take(MAX_MESSAGE_CHARS).collect();
        let json = serde_json::to_vec(&bounded).map_err(TerminationError::Malformed)?;
        let temporary = path.with_extension("new");
        let replaced = write_new(&temporary, &json).and_then(|()| fs::rename(&temporary, path));
        if replaced.is_err() {
            // Removes the temporary file; best effort.
            let _ = fs::remove_file(&temporary);
            write_in_place(path, &json)?;
        }
        Ok(())
    }

    /// Reads the file. `None` when it does not exist or holds no exit: the main command has not
    /// ended, or boxd was killed first. Links, FIFOs and devices are errors.
    ///
    /// # Errors
    /// [`TerminationError`]; only the box's end is known then.
    pub fn read(path: &Path) -> Result<Option<Self>, TerminationError> {
        let json = content(path)?;
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        match serde_json::from_slice(&json) {
            Ok(termination) => Ok(Some(termination)),
            Err(_) if Self::claim_in(&json).is_some() => Ok(None),
            Err(error) => Err(TerminationError::Malformed(error)),
        }
    }

    /// Reads the claim from the file. `None` when it has none.
    ///
    /// # Errors
    /// [`TerminationError::Io`].
    pub fn read_claim(path: &Path) -> Result<Option<String>, TerminationError> {
        Ok(Self::claim_in(&content(path)?))
    }
}

/// The content of the file; empty when it does not exist.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = match regular_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Replaces the content of the file. Does not truncate it first, which would release its space.
fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = regular_file::open_or_create(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)
}

/// Writes a new file; an existing one of the same name is removed.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Termination {
        Termination {
            exit_code: 137,
            oom_killed: true,
            started_at: DateTime::from_timestamp_nanos(1_700_000_000_000_000_001),
            finished_at: DateTime::from_timestamp_nanos(1_700_000_001_000_000_000),
            message: String::new(),
            claim: Some("0a".repeat(32)),
        }
    }

    #[test]
    fn termination_round_trips_and_replaces_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination");
        assert_eq!(Termination::read(&path).unwrap(), None);
        fs::write(&path, "").unwrap();
        assert_eq!(Termination::read(&path).unwrap(), None);
        Termination::reserve(&path).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), None);
        sample().write(&path).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), Some(sample()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn claim_is_in_the_file_before_and_after_the_exit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination");
        assert_eq!(Termination::read_claim(&path).unwrap(), None);
        Termination::reserve(&path).unwrap();
        assert_eq!(Termination::read_claim(&path).unwrap(), None);
        let claim = sample().claim.unwrap();
        Termination::record_claim(&path, &claim).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), None);
        assert_eq!(Termination::read_claim(&path).unwrap(), Some(claim.clone()));
        sample().write(&path).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), Some(sample()));
        assert_eq!(Termination::read_claim(&path).unwrap(), Some(claim));
        let cold = Termination {
            claim: None,
            ..sample()
        };
        cold.write(&path).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), Some(cold));
        assert_eq!(Termination::read_claim(&path).unwrap(), None);
    }

    #[test]
    fn fifos_and_links_in_place_of_the_files_are_replaced_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let termination = path("termination");
        fs::write(path("victim"), "precious").unwrap();
        std::os::unix::fs::symlink("victim", path("termination.new")).unwrap();
        nix::unistd::mkfifo(&termination, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Termination::reserve(&termination).is_err());
        sample().write(&termination).unwrap();
        assert_eq!(Termination::read(&termination).unwrap(), Some(sample()));
        assert_eq!(fs::read(path("victim")).unwrap(), b"precious");
        // Nothing can replace it.
        fs::remove_file(&termination).unwrap();
        fs::create_dir(path("termination.new")).unwrap();
        std::os::unix::fs::symlink("victim", &termination).unwrap();
        assert!(sample().write(&termination).is_err());
        assert_eq!(fs::read(path("victim")).unwrap(), b"precious");
    }

    #[test]
    fn termination_is_written_in_place_when_no_other_file_can_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination");
        // The name of the temporary file is taken by a directory.
        fs::create_dir(dir.path().join("termination.new")).unwrap();
        fs::write(&path, "x".repeat(1000)).unwrap();
        sample().write(&path).unwrap();
        assert_eq!(Termination::read(&path).unwrap(), Some(sample()));
    }

    #[test]
    fn long_message_fits_termination_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination");
        Termination {
            message: "\u{1}".repeat(5000),
            ..sample()
        }
        .write(&path)
        .unwrap();
        assert!(Termination::read(&path).unwrap().is_some());
    }

    #[test]
    fn link_fifo_and_garbage_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(Termination::read(&path).is_err());
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Termination::read(&path).is_err());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            Termination::read(&path),
            Err(TerminationError::Malformed(_))
        ));
    }
}
