//! Removes the file that an operation has left whose process was killed.
//!
//! boxd does not touch the file itself: a new process of the operation's user removes it
//! ([`super::removal`]).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::command_spec;
use super::operation::within;
use super::record::Record;
use crate::command::{NewProcess, StandardStreams};
use crate::reaper::{Child, ExitStatus, Reaper};
use crate::stderr;
use crate::user::User;

/// The limit for the removal, with all attempts.
const DEADLINE: Duration = Duration::from_secs(60);
/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Cleanup {
    pub reaper: Arc<Reaper>,
    pub closing: CancellationToken,
    /// The operation's user; `None`: boxd's own.
    pub user: Option<User>,
    pub record: Record,
}

impl Cleanup {
    /// Removes the file that is noted in the record. The operation's process has ended.
    pub async fn run(self) {
        if self.record.is_set() && !self.remove().await {
            stderr::line("boxd: the temporary file of a killed file operation was not removed");
        }
    }

    /// Starts processes until one of them has removed the file. Returns whether it did.
    async fn remove(&self) -> bool {
        let limit = within(&self.closing, DEADLINE);
        tokio::pin!(limit);
        loop {
            // A process that cannot be started met a limit of the environment, which may pass, and one
            // that was killed may succeed the next time.
            if let Ok(mut child) = self.start().await {
                tokio::select! {
                    ended = &mut child.ended => {
                        if let Ok(ExitStatus::Exited(code)) = ended {
                            return code == 0;
                        }
                    }
                    () = &mut limit => {
                        self.reaper.kill_session(child.pid);
                        return false;
                    }
                }
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = &mut limit => return false,
            }
        }
    }

    async fn start(&self) -> io::Result<Child> {
        let spec = command_spec("remove-unfinished", self.user.clone());
        let streams = StandardStreams::Pipes {
            stdin: self.record.descriptor()?,
            // It writes nothing, except when it panics: behind the record.
            stdout: self.record.descriptor()?,
            stderr: self.record.descriptor()?,
        };
        let process = NewProcess::new(&spec, Path::new("/proc/self/exe"), streams)?;
        self.reaper.start(process).await
    }
}
