//! Locks on files, for which several runs wait. The kernel releases the lock of a process that
//! exits.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A file cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot lock {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "cannot lock {}: another run has held the lock for {waited:?}; wait until that run has ended, or end it",
        .path.display()
    )]
    Deadline { path: PathBuf, waited: Duration },
}

/// Locks a file, which is created if it is missing, until the returned lock is dropped. Waits while
/// another run holds the lock, at most `within`. A process that was forked meanwhile, and has not yet
/// executed its program, does not keep it.
///
/// # Errors
/// [`LockError`], with the path of the lock.
pub(crate) async fn lock(path: &Path, within: Duration) -> Result<Flock<File>, LockError> {
    let failed = |source| LockError::File {
        path: path.to_owned(),
        source,
    };
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let deadline = Instant::now() + within;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Err(LockError::Deadline {
                    path: path.to_owned(),
                    waited: within,
                });
            }
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, error)) => return Err(failed(error.into())),
        };
        // The kernel's own wait has no deadline.
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lock_that_another_run_holds_at_the_deadline_fails_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build.lock");
        let held = lock(&path, Duration::ZERO).await.unwrap();
        let error = lock(&path, Duration::from_millis(100)).await.unwrap_err();
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        // As a process between fork and exec has it.
        let _copy = held.try_clone().unwrap();
        drop(held);
        lock(&path, Duration::ZERO).await.unwrap();
    }
}
