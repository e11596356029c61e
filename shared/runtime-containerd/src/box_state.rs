//! The state of a box that containerd does not keep: one small JSON file for each box, shared by
//! every replica on this machine.
//!
//! * I1. A file is replaced by a rename: a reader sees the old one or the new one.
//! * I2. Only the holder of the box's lock writes; readers need no lock. The kernel frees
//!   the lock of a killed process. A holder whose call is cancelled keeps it until its write has ended.
//! * I3. It contains no secret: neither the boxd token nor the user's environment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{FailureReason, NetworkPolicy, RuntimeError};
use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::network::BoxNetwork;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot use the driver's files at {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a state file of this driver")]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("another replica held the lock of the box for {0:?}")]
    Locked(Duration),
}

impl From<StateError> for RuntimeError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Locked(after) => Self::Deadline(after),
            StateError::Io { ref source, .. } => Self::Cluster {
                operation: "state file",
                message: format!("{error}: {source}"),
            },
            StateError::Malformed { ref source, .. } => Self::Cluster {
                operation: "state file",
                message: format!("{error}: {source}"),
            },
        }
    }
}

/// The step that [`crate::ensure`] has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    PullingImage,
    Starting,
}

/// The reason that a box will never run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    #[serde(with = "failure_reason")]
    pub reason: FailureReason,
    pub message: String,
}

/// The reason that the driver ended a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Stopped,
    Evicted { message: String },
}

/// A box that was created warm, and its claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// The main command that its image names, for a claim with `use_entrypoint`; empty: none that can
    /// be run.
    pub entrypoint: Vec<String>,
    /// Identifies the claim; `None`: nobody has claimed the box.
    pub claim: Option<String>,
    /// boxd has what the claim gives the box.
    pub is_configured: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxState {
    /// The highest generation that `ensure` was given.
    pub generation: i64,
    pub created_at: DateTime<Utc>,
    pub step: Step,
    /// When boxd first answered, or when its container was found to have ended before that.
    #[serde(default)]
    pub ready_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub failure: Option<Failure>,
    /// When containerd first refused to create or to start the container.
    #[serde(default)]
    pub refused_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub ending: Option<Ending>,
    #[serde(default)]
    pub network: Option<BoxNetwork>,
    /// The network policy in force while it runs.
    #[serde(default)]
    pub policy: Option<NetworkPolicy>,
    #[serde(default)]
    pub warm: Option<Warm>,
}

impl BoxState {
    pub fn new(generation: i64, now: DateTime<Utc>) -> Self {
        Self {
            generation,
            created_at: now,
            step: Step::Starting,
            ready_at: None,
            failure: None,
            refused_at: None,
            ending: None,
            network: None,
            policy: None,
            warm: None,
        }
    }

    /// Whether it waits for a claim, or for the end of one.
    pub fn awaits_claim(&self) -> bool {
        self.warm.as_ref().is_some_and(|warm| !warm.is_configured)
    }
}

/// The state files of all boxes of one deployment.
#[derive(Clone, Debug)]
pub struct StateStore {
    root: PathBuf,
}

/// The exclusive lock of one box, held until dropped and until what it has begun to write is written.
#[derive(Debug)]
pub struct BoxLock {
    file: Arc<Flock<std::fs::File>>,
    path: PathBuf,
}

impl BoxLock {
    /// Does `work` at `path` in a thread that may block. The thread continues when the caller is cancelled,
    /// and holds the lock until its end: a late write would replace that of the next holder.
    async fn write(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), StateError> {
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(file);
            outcome
        });
        let outcome = written.await.map_err(io::Error::other);
        outcome.map_err(io_error(path))?
    }

    /// Deletes the lock file. The next holder creates a new one. A waiter that has opened the old
    /// file notices that it was deleted, and opens the new one.
    pub fn discard(self) {
        // Best effort: an empty file that remains is harmless.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io {
        path: path.to_owned(),
        source,
    }
}

impl StateStore {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.to_owned(),
        }
    }

    /// The directory of a box's files, except its lock.
    pub fn directory(&self, id: &EnvironmentId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn file(&self, id: &EnvironmentId) -> PathBuf {
        // The name is part of the format on disk.
        self.directory(id).join("facts.json")
    }

    pub async fn load(&self, id: &EnvironmentId) -> Result<Option<BoxState>, StateError> {
        let path = self.file(id);
        match tokio::fs::read(&path).await {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|source| StateError::Malformed { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// The caller holds the lock.
    pub async fn save(
        &self,
        held: &BoxLock,
        id: &EnvironmentId,
        state: &BoxState,
    ) -> Result<(), StateError> {
        let (directory, path) = (self.directory(id), self.file(id));
        let json = serde_json::to_vec(state).map_err(|source| StateError::Malformed {
            path: path.clone(),
            source,
        })?;
        let file = path.clone();
        let replace = move || {
            let temporary = file.with_extension("new");
            std::fs::create_dir_all(&directory).map_err(io_error(&directory))?;
            std::fs::write(&temporary, json).map_err(io_error(&temporary))?;
            std::fs::rename(&temporary, &file).map_err(io_error(&file))
        };
        held.write(&path, replace).await
    }

    /// When a box's state file last changed.
    pub async fn changed_at(&self, id: &EnvironmentId) -> Option<SystemTime> {
        tokio::fs::metadata(self.file(id))
            .await
            .ok()?
            .modified()
            .ok()
    }

    /// Every box with a directory here.
    pub async fn ids(&self) -> Result<Vec<EnvironmentId>, StateError> {
        let mut entries = match tokio::fs::read_dir(&self.root).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&self.root)(error)),
        };
        let mut ids = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(io_error(&self.root))? {
            ids.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok()),
            );
        }
        Ok(ids)
    }

    /// The caller holds the lock and has unmounted what is mounted in the box's directory.
    pub async fn remove(&self, held: &BoxLock, id: &EnvironmentId) -> Result<(), StateError> {
        let path = self.directory(id);
        let directory = path.clone();
        let remove = move || match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&directory)(error))
            }
            _ => Ok(()),
        };
        held.write(&path, remove).await
    }

    /// Waits for the box's lock.
    pub async fn lock(&self, id: &EnvironmentId, within: Duration) -> Result<BoxLock, StateError> {
        let path = self.root.join("locks").join(id.as_str());
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if let Some(lock) = try_lock(&path)? {
                return Ok(lock);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(StateError::Locked(within));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The lock of the one replica that does this machine's periodic work ([`crate::maintenance`]);
    /// `None` for the others.
    pub fn try_lead(&self) -> Result<Option<BoxLock>, StateError> {
        try_lock(&self.root.join("locks").join("watch"))
    }
}

fn try_lock(path: &Path) -> Result<Option<BoxLock>, StateError> {
    use std::os::unix::fs::MetadataExt as _;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(io_error(path))?;
    }
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(io_error(path))?;
    let opened_inode = file.metadata().map_err(io_error(path))?.ino();
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // The file may have been deleted between open and lock: then another replica may hold
        // the new one.
        Ok(held) => Ok(std::fs::metadata(path)
            .is_ok_and(|now| now.ino() == opened_inode)
            .then(|| BoxLock {
                file: Arc::new(held),
                path: path.to_owned(),
            })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(io_error(path)(errno.into())),
    }
}

/// The serialized form of a [`FailureReason`].
mod failure_reason {
    use super::{Deserialize, FailureReason};

    const NAMES: [(FailureReason, &str); 5] = [
        (FailureReason::ImagePull, "image_pull"),
        (FailureReason::ImageInvalid, "image_invalid"),
        (FailureReason::Unschedulable, "unschedulable"),
        (FailureReason::Quota, "quota"),
        (FailureReason::RuntimeClass, "runtime_class"),
    ];

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde's `with` passes a reference"
    )]
    pub fn serialize<S: serde::Serializer>(
        reason: &FailureReason,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let name = NAMES
            .iter()
            .find(|(known, _)| known == reason)
            .map_or("image_invalid", |n| n.1);
        serializer.serialize_str(name)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<FailureReason, D::Error> {
        let name = String::deserialize(deserializer)?;
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(reason, _)| *reason)
            .ok_or_else(|| serde::de::Error::custom(format!("`{name}` is not a failure reason")))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn state_is_read_back_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        let id = EnvironmentId::random();
        assert_eq!(store.load(&id).await.unwrap(), None);
        let lock = store.lock(&id, Duration::from_secs(1)).await.unwrap();
        let mut state = BoxState::new(3, Utc::now());
        state.failure = Some(Failure {
            reason: FailureReason::ImagePull,
            message: "no such image".into(),
        });
        state.ending = Some(Ending::Evicted {
            message: "too much".into(),
        });
        store.save(&lock, &id, &state).await.unwrap();
        assert_eq!(store.load(&id).await.unwrap(), Some(state));
        assert_eq!(store.ids().await.unwrap(), std::slice::from_ref(&id));
        store.remove(&lock, &id).await.unwrap();
        assert_eq!(store.ids().await.unwrap(), []);
    }

    #[test]
    fn state_of_an_older_version_awaits_no_claim() {
        let json = r#"{"generation":1,"created_at":"2026-01-02T03:04:05Z","step":"starting"}"#;
        let mut state: BoxState = serde_json::from_str(json).unwrap();
        assert!(!state.awaits_claim());
        state.warm = Some(Warm::default());
        assert!(state.awaits_claim());
        state.warm = Some(Warm {
            is_configured: true,
            ..Warm::default()
        });
        assert!(!state.awaits_claim());
    }

    #[tokio::test]
    async fn lock_is_held_until_the_write_of_a_cancelled_holder_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        let id = EnvironmentId::random();
        let lock = store.lock(&id, Duration::ZERO).await.unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let writing = lock.write(dir.path(), move || {
            let _ = ended.recv();
            Ok(())
        });
        assert!(writing.now_or_never().is_none());
        drop(lock);
        assert!(matches!(
            store.lock(&id, Duration::from_millis(20)).await,
            Err(StateError::Locked(_))
        ));
        drop(end);
        store.lock(&id, Duration::from_secs(20)).await.unwrap();
    }

    #[tokio::test]
    async fn lock_is_exclusive_after_its_file_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        let id = EnvironmentId::random();
        let first = store.lock(&id, Duration::ZERO).await.unwrap();
        assert!(matches!(
            store.lock(&id, Duration::from_millis(20)).await,
            Err(StateError::Locked(_))
        ));
        first.discard();
        let second = store.lock(&id, Duration::ZERO).await.unwrap();
        assert!(store.lock(&id, Duration::ZERO).await.is_err());
        drop(second);
        store.lock(&id, Duration::ZERO).await.unwrap();
    }
}
