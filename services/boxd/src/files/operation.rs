//! A running file operation: boxd's end of it.

use std::future::pending;
use std::io;
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
use nix::sys::signal::Signal;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::caller::MAX_FRAME_BYTES;
use super::cleanup::Cleanup;
use super::failure::Failure;
use super::{failed, shuts_down};
use crate::reaper::{Child, Reaper};

/// The limit for operations that transfer nothing. A transfer's own limit is its caller's.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a process that was asked to stop has to remove its temporary files, and a killed one to end.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The same, when the box shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

pub type Outputs = mpsc::Sender<Result<FileOutput, Status>>;

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

/// A running operation.
pub struct Process {
    pub reaper: Arc<Reaper>,
    pub closing: CancellationToken,
    pub child: Child,
    /// `None`: it leaves nothing.
    pub cleanup: Option<Cleanup>,
    pub permit: OwnedSemaphorePermit,
}

impl Process {
    /// Relays messages until the operation is over, then ends the process and removes what it left.
    pub async fn run(
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
        if let Some(cleanup) = self.cleanup
            && end != End::Finished
        {
            cleanup.run().await;
        }
        drop(self.permit);
    }

    /// Waits for the end of the process, which it may have reached; kills it after a grace.
    async fn reap(&mut self) {
        for is_killed in [false, true] {
            if is_killed {
                self.reaper.kill_session(self.child.pid);
            }
            tokio::select! {
                _ = &mut self.child.ended => return,
                // The kernel may hold a killed process longer, for example on a hung disk.
                () = within(&self.closing, STOP_GRACE) => {}
            }
        }
    }
}

/// Waits; while the box shuts down, at most [`SHUTDOWN_GRACE`].
pub async fn within(closing: &CancellationToken, limit: Duration) {
    let shutdown = async {
        closing.cancelled().await;
        sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        () = sleep(limit) => {}
        () = shutdown => {}
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
