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
//! for each operation.
//!
//! * I1. At most [`MAX_OPERATIONS`] operations run at once. Each buffers at most two messages in each
//!   direction, so a slow peer slows only its own operation.
//! * I2. The process belongs to the box's user: a message that is malformed or larger than
//!   [`MAX_FRAME_BYTES`] ends the operation.
//! * I3. When the caller goes away, at the deadline and at the box's shutdown the process is asked to
//!   stop, so that it removes its temporary files. Then its session is killed.

mod caller;
mod change;
mod compression;
mod copy;
mod delete;
mod digest;
mod failure;
mod list;
mod location;
mod metadata;
mod pack;
pub mod process;
mod read;
mod relocate;
mod stop;
mod tar;
mod temporary;
mod unpack;
mod watch;
mod write;

use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{FileInput, FileOutput, FileRequest};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::command::{CommandSpec, NewProcess, StandardStreams};
use crate::environment::Variables;
use crate::reaper::{Child, Reaper};
use crate::user::User;
use caller::MAX_FRAME_BYTES;
use failure::Failure;

/// Together with the descriptors of runs and background output, below the usual soft limit of 1024.
pub const MAX_OPERATIONS: usize = 64;
/// The limit for operations that transfer nothing. A transfer's own limit is its caller's.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a process that was asked to stop has to remove its temporary files.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The same, when the box shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// The kernel's buffer in each direction.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024;

/// Performs file operations.
pub struct Files {
    reaper: Arc<Reaper>,
    tasks: TaskTracker,
    closing: CancellationToken,
    free: Arc<Semaphore>,
}

/// Why an operation is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its last output was sent.
    Finished,
    CallerGone,
    /// The caller sent a message that is larger than [`MAX_FRAME_BYTES`].
    InputTooLarge,
    TimedOut,
    Shutdown,
    /// The process sent something that is no output.
    Malformed,
    /// The process ended without a last output.
    Died,
}

type Outputs = mpsc::Sender<Result<FileOutput, Status>>;

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
            Ok((child, stream)) => {
                let operation = Process {
                    reaper: Arc::clone(&self.reaper),
                    closing: self.closing.clone(),
                    child,
                    _permit: permit,
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
    async fn start(
        &self,
        request: &FileRequest,
    ) -> Result<Result<(Child, UnixStream), Failure>, Status> {
        let user = match User::resolve(&request.user) {
            Ok(user) => user,
            Err(error) => return Ok(Err(Failure::new(error.code(), error.to_string()))),
        };
        let is_other_user = user.is_some();
        let spec = CommandSpec {
            argv: vec!["boxd".into(), "files".into()],
            working_dir: Some("/".into()),
            variables: Variables::new(),
            user,
        };
        let (own, streams) = match connection() {
            Ok(connection) => connection,
            Err(error) => return not_started(&error).map(Err),
        };
        let process = match NewProcess::new(&spec, Path::new("/proc/self/exe"), streams) {
            Ok(process) => process,
            Err(error) => return not_started(&error).map(Err),
        };
        match self.reaper.start(process).await {
            Ok(child) => Ok(Ok((child, own))),
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

/// boxd's end of a new connection, and the process's.
fn connection() -> io::Result<(UnixStream, StandardStreams)> {
    let (own, process) = StdUnixStream::pair()?;
    for end in [&own, &process] {
        // A larger buffer would do no harm.
        let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
    }
    own.set_nonblocking(true)?;
    let process = OwnedFd::from(process);
    let streams = StandardStreams::Pipes {
        stdin: Some(process.try_clone()?),
        stdout: process,
        stderr: File::options().write(true).open("/dev/null")?.into(),
    };
    Ok((UnixStream::from_std(own)?, streams))
}

/// A running operation.
struct Process {
    reaper: Arc<Reaper>,
    closing: CancellationToken,
    child: Child,
    _permit: OwnedSemaphorePermit,
}

impl Process {
    async fn run(
        mut self,
        request: FileRequest,
        stream: UnixStream,
        inputs: Streaming<FileInput>,
        outputs: Outputs,
    ) {
        let codec = || {
            LengthDelimitedCodec::builder()
                .max_frame_length(MAX_FRAME_BYTES)
                .new_codec()
        };
        let (from_process, to_process) = stream.into_split();
        let mut from_process = FramedRead::new(from_process, codec());
        let mut to_process = FramedWrite::new(to_process, codec());
        let limit = match request.operation {
            Some(Operation::Read(_) | Operation::Write(_) | Operation::Watch(_)) => Duration::MAX,
            _ => DEADLINE,
        };
        let end = tokio::select! {
            biased;
            () = self.closing.cancelled() => End::Shutdown,
            () = outputs.closed() => End::CallerGone,
            end = relay_outputs(&mut from_process, &outputs) => end,
            end = relay_inputs(request, inputs, &mut to_process) => end,
            () = sleep(limit) => End::TimedOut,
        };
        // The process notices that, too.
        drop((from_process, to_process));
        if end != End::Finished {
            self.reaper.signal_group(self.child.pid, Signal::SIGTERM);
        }
        let last = match end {
            End::Finished | End::CallerGone => None,
            End::TimedOut => Some(Ok(failed(Failure::new(
                ErrorCode::Timeout,
                format!(
                    "the file operation took longer than {} s",
                    DEADLINE.as_secs()
                ),
            )))),
            End::Shutdown => Some(Err(shuts_down())),
            End::InputTooLarge => Some(Err(Status::invalid_argument(format!(
                "an input must have at most {MAX_FRAME_BYTES} bytes"
            )))),
            End::Malformed | End::Died => Some(Ok(failed(Failure::new(
                ErrorCode::Unavailable,
                "the file operation's process was killed in the environment, as when its memory is \
                 used up",
            )))),
        };
        if let Some(last) = last {
            // A caller that does not read receives the end of the stream without it.
            let _ = timeout(SHUTDOWN_GRACE, outputs.send(last)).await;
        }
        drop(outputs);
        self.reap().await;
    }

    /// Waits for the end of the process, which it may have reached; kills it after a grace.
    async fn reap(&mut self) {
        let closing = self.closing.clone();
        let grace = async {
            tokio::select! {
                () = sleep(STOP_GRACE) => {}
                () = async {
                    closing.cancelled().await;
                    sleep(SHUTDOWN_GRACE).await;
                } => {}
            }
        };
        let ended = tokio::select! {
            _ = &mut self.child.ended => true,
            () = grace => false,
        };
        if !ended {
            self.reaper.kill_session(self.child.pid);
            // The kernel may hold it longer, for example on a hung disk.
            let _ = timeout(SHUTDOWN_GRACE, &mut self.child.ended).await;
        }
    }
}

/// Relays outputs until the last one.
async fn relay_outputs(
    process: &mut FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    outputs: &Outputs,
) -> End {
    while let Some(frame) = process.next().await {
        let frame = match frame {
            Ok(frame) => frame,
            // A process that is killed may leave a part of a message.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return End::Malformed,
            Err(_) => return End::Died,
        };
        let Ok(message) = FileOutput::decode(frame.freeze()) else {
            return End::Malformed;
        };
        let is_last = match &message.output {
            Some(Output::Done(()) | Output::Failed(_)) => true,
            Some(Output::Data(data)) if data.len() > MAX_CHUNK => return End::Malformed,
            Some(_) => false,
            None => return End::Malformed,
        };
        if outputs.send(Ok(message)).await.is_err() {
            return End::CallerGone;
        }
        if is_last {
            return End::Finished;
        }
    }
    End::Died
}

/// Relays the request and the inputs after it. Returns only when the caller is gone or sends too much
/// at once; the outputs tell everything else.
async fn relay_inputs(
    request: FileRequest,
    mut inputs: Streaming<FileInput>,
    process: &mut FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
) -> End {
    let takes_content = matches!(request.operation, Some(Operation::Write(_)));
    let first = FileInput {
        input: Some(Input::Request(request)),
    };
    let mut next = Some(first);
    while let Some(message) = next {
        if message.encoded_len() > MAX_FRAME_BYTES {
            return End::InputTooLarge;
        }
        let frame = Bytes::from(message.encode_to_vec());
        // The process ends early when the operation fails.
        if process.send(frame).await.is_err() {
            return pending().await;
        }
        next = match inputs.message().await {
            Ok(next) => next,
            Err(_) => return End::CallerGone,
        };
    }
    // The end of the inputs: content without its own end is not complete.
    if takes_content {
        let _ = process.get_mut().shutdown().await;
    }
    pending().await
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
