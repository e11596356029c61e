//! The `Files` call: one file operation of a caller.
//!
//! boxd performs each operation in a process of its own: it executes itself again as `boxd files`
//! ([`process`]), as the user of the operation. So the kernel decides on every permission, a program of
//! the image is never needed, and an operation that hangs or runs out of memory ends alone. This module
//! starts that process, relays messages and ends it; the others are what the process does.
//!
//! The executable is `/proc/self/exe`: before the execution it leads to boxd's own file, wherever the driver
//! put it, and a process may always follow its own link, also when it is not dumpable and has another
//! user already. Both drivers install boxd executable for everybody. After the execution nothing of
//! boxd's memory is left in the process, and its environment is empty.
//!
//! The connection is one socket, which is the process's stdin and stdout: it costs boxd one descriptor
//! for each operation. The [`record`] of a file that is not complete costs one more for a write or a copy.
//!
//! * I1. At most [`MAX_OPERATIONS`] operations run at once. Each buffers at most two messages in each
//!   direction, so a slow peer slows only its own operation.
//! * I2. The process belongs to the box's user: a message that is malformed or larger than
//!   [`caller::MAX_FRAME_BYTES`] ends the operation.
//! * I3. When the caller goes away, at the deadline and at the box's shutdown the process is asked to
//!   stop, so that it removes its temporary files. Then its session is killed.
//! * I4. What a killed process leaves is removed by another one of the same user ([`cleanup`]).

mod caller;
mod change;
mod cleanup;
mod compression;
mod copy;
mod delete;
mod digest;
mod failure;
mod list;
mod location;
mod metadata;
mod operation;
mod pack;
pub mod process;
mod read;
mod record;
mod relocate;
pub mod removal;
mod stop;
mod tar;
mod temporary;
mod unpack;
mod watch;
mod write;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{FileInput, FileOutput, FileRequest};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::command::{CommandSpec, NewProcess, StandardStreams};
use crate::environment::Variables;
use crate::reaper::{Child, Reaper};
use crate::user::User;
use cleanup::Cleanup;
use failure::Failure;
use operation::Process;
use record::Record;

/// Each takes up to two descriptors. One that finds none free fails as `unavailable`.
pub const MAX_OPERATIONS: usize = 64;
/// The kernel's buffer in each direction.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024;

/// The process of an operation, boxd's end of the connection, and what to do if it is killed.
type Started = (Child, UnixStream, Option<Cleanup>);

/// Performs file operations.
pub struct Files {
    reaper: Arc<Reaper>,
    tasks: TaskTracker,
    closing: CancellationToken,
    free: Arc<Semaphore>,
}

impl Files {
    /// Performs operations in `tasks` until `closing`.
    #[must_use]
    pub fn new(reaper: Arc<Reaper>, tasks: TaskTracker, closing: CancellationToken) -> Self {
        Self {
            reaper,
            tasks,
            closing,
            free: Arc::new(Semaphore::new(MAX_OPERATIONS)),
        }
    }

    /// Starts the operation of `request`, whose further inputs are `inputs`.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED at the limit; UNAVAILABLE while the box shuts down; INTERNAL when the process
    /// cannot be started. A failure of the operation is an output.
    pub async fn perform(
        &self,
        request: FileRequest,
        inputs: Streaming<FileInput>,
    ) -> Result<ReceiverStream<Result<FileOutput, Status>>, Status> {
        if self.closing.is_cancelled() {
            return Err(shuts_down());
        }
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            let message = format!("at most {MAX_OPERATIONS} file operations run at once");
            Status::resource_exhausted(message)
        })?;
        let (sender, receiver) = mpsc::channel(1);
        match self.start(&request).await? {
            Ok((child, stream, cleanup)) => {
                let operation = Process {
                    reaper: Arc::clone(&self.reaper),
                    closing: self.closing.clone(),
                    child,
                    cleanup,
                    permit,
                };
                self.tasks
                    .spawn(operation.run(request, stream, inputs, sender));
            }
            // The channel is empty, so there is room.
            Err(failure) => drop(sender.try_send(Ok(failed(failure)))),
        }
        Ok(ReceiverStream::new(receiver))
    }

    /// Starts the process. A failure is one of the operation.
    async fn start(&self, request: &FileRequest) -> Result<Result<Started, Failure>, Status> {
        let user = match User::resolve(&request.user) {
            Ok(user) => user,
            Err(error) => return Ok(Err(Failure::new(error.code(), error.to_string()))),
        };
        let is_other_user = user.is_some();
        let spec = command_spec("files", user.clone());
        let (own, streams, record) = match connection() {
            Ok(connection) => connection,
            Err(error) => return not_started(&error).map(Err),
        };
        let leaves_files = matches!(
            request.operation,
            Some(Operation::Write(_) | Operation::Copy(_))
        );
        let cleanup = leaves_files.then(|| Cleanup {
            reaper: Arc::clone(&self.reaper),
            closing: self.closing.clone(),
            user,
            record,
        });
        let process = match NewProcess::new(&spec, Path::new("/proc/self/exe"), streams) {
            Ok(process) => process,
            Err(error) => return not_started(&error).map(Err),
        };
        match self.reaper.start(process).await {
            Ok(child) => Ok(Ok((child, own, cleanup))),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EINVAL) if is_other_user => Ok(Err(Failure::new(
                    ErrorCode::UserNotAllowed,
                    "user: the environment does not permit to act as another user",
                ))),
                _ => not_started(&error).map(Err),
            },
        }
    }
}

/// A process of boxd itself, of this user.
fn command_spec(verb: &str, user: Option<User>) -> CommandSpec {
    CommandSpec {
        argv: vec!["boxd".into(), verb.into()],
        working_dir: Some("/".into()),
        variables: Variables::new(),
        user,
    }
}

/// Why no process was started: a limit of the environment, or else a fault.
fn not_started(error: &io::Error) -> Result<Failure, Status> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Ok(Failure::new(
            ErrorCode::Unavailable,
            "the environment's limit of processes, of memory or of file descriptors is reached",
        )),
        _ => Err(Status::internal(format!(
            "starting the file operation failed: {error}"
        ))),
    }
}

/// boxd's end of a new connection, the process's, and the record of the process.
fn connection() -> io::Result<(UnixStream, StandardStreams, Record)> {
    let record = Record::create()?;
    let (own, process) = StdUnixStream::pair()?;
    for end in [&own, &process] {
        // A larger buffer would do no harm.
        let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
    }
    own.set_nonblocking(true)?;
    let process = OwnedFd::from(process);
    let streams = StandardStreams::Pipes {
        stdin: process.try_clone()?,
        stdout: process,
        stderr: record.descriptor()?,
    };
    Ok((UnixStream::from_std(own)?, streams, record))
}

/// The names of an archive's entries, up to the first that is refused or cannot be read.
#[cfg(fuzzing)]
pub fn unpacked_names(archive: agentbox_contracts::files::Archive, content: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = tar::Reader::new(compression::decoder(archive, content));
    let mut accepted = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        let Ok(names) = unpack::names(&entry.path) else {
            break;
        };
        accepted.push(names.join(&b'/'));
    }
    accepted
}

#[cfg(fuzzing)]
pub fn cursor_names(cursor: &[u8]) -> Option<Vec<Vec<u8>>> {
    list::Cursor::parse(cursor)
        .ok()
        .map(list::Cursor::into_names)
}

fn failed(failure: Failure) -> FileOutput {
    FileOutput {
        output: Some(Output::Failed(failure.into())),
    }
}

fn shuts_down() -> Status {
    Status::unavailable("the box shuts down")
}
