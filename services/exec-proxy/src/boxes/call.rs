//! Calls of boxd with messages both ways: file operations, executions, and connections to ports.
//!
//! * I1. At most [`INPUT_BUFFER`] inputs wait here. Outputs wait in the window of HTTP/2.
//! * I2. Dropping a [`Call`] cancels it in boxd at once, also while boxd does not read its inputs.
//! * I3. An output has at most [`MAX_OUTPUT_BYTES`] bytes. Decoding multiplies what a hostile box sends,
//!   and the message of the session that carries the output must fit one frame.

use std::time::Duration;

use agentbox_box_protocol::client::{self, BoxClient};
use agentbox_contracts::executions::{ExecutionInput, ExecutionOutput};
use agentbox_contracts::files::{FileInput, FileOutput};
use agentbox_contracts::ports::{PortInput, PortOutput};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};

/// The number of buffered inputs to boxd: with chunks of 32 KiB, 128 KiB.
const INPUT_BUFFER: usize = 4;
/// The size limit of an output, in bytes.
const MAX_OUTPUT_BYTES: usize = 512 * 1024;
/// How long boxd may take to answer a call.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(15);

type Inputs<M> = client::Inputs<<M as Method>::Input>;
type Outputs<M> = Response<Streaming<<M as Method>::Output>>;

/// A method of boxd with messages both ways.
pub trait Method: Sized + Send + 'static {
    const NAME: &'static str;
    type Input: Clone + Send + 'static;
    type Output: Send + 'static;

    fn call(
        client: &mut BoxClient,
        inputs: Request<Inputs<Self>>,
    ) -> impl Future<Output = Result<Outputs<Self>, Status>> + Send;
}

/// Defines a [`Method`] by its names in boxd's interface and in the client, and its messages.
macro_rules! method {
    ($name:ident, $function:ident, $input:ty, $output:ty) => {
        pub struct $name;

        impl Method for $name {
            const NAME: &'static str = stringify!($name);
            type Input = $input;
            type Output = $output;

            async fn call(
                client: &mut BoxClient,
                inputs: Request<Inputs<Self>>,
            ) -> Result<Outputs<Self>, Status> {
                client.$function(inputs).await
            }
        }
    };
}

method!(Files, files, FileInput, FileOutput);
method!(Executions, executions, ExecutionInput, ExecutionOutput);
method!(Connect, connect, PortInput, PortOutput);

/// An open call.
pub struct Call<M: Method> {
    /// Dropped first: boxd gets a cancellation, and not the end of the inputs.
    _cancel: DropGuard,
    outputs: Streaming<M::Output>,
    /// Sending waits while boxd does not read.
    pub inputs: mpsc::Sender<M::Input>,
    /// The number of its connection.
    number: u64,
}

impl<M: Method> Call<M> {
    /// Opens a call whose first input is `first`, within `deadline`. A `repeatable` one is opened
    /// once more when the connection was lost: usually a kept connection that had died unnoticed.
    ///
    /// # Errors
    /// As the connection's, and boxd's. [`BoxError::Lost`] when boxd may have begun.
    pub async fn open(
        lease: &Lease,
        first: M::Input,
        repeatable: bool,
        deadline: Duration,
    ) -> Result<Self, BoxError> {
        let span = call_span(M::NAME);
        let opened = async {
            match Self::open_once(lease, first.clone(), &span).await {
                Err(BoxError::Lost(detail)) if repeatable => {
                    tracing::debug!(detail, "connection lost; opening the call on a new one");
                    // Whatever happens now, boxd may have begun.
                    Self::open_once(lease, first, &span)
                        .await
                        .map_err(|error| match error {
                            BoxError::Refused(_) => error,
                            error => BoxError::Lost(format!("{detail}; then: {error}")),
                        })
                }
                other => other,
            }
        };
        tokio::time::timeout(deadline, opened.instrument(span.clone()))
            .await
            .unwrap_or_else(|_| {
                Err(BoxError::Lost(
                    "boxd did not answer the call within the deadline".into(),
                ))
            })
    }

    async fn open_once(lease: &Lease, first: M::Input, span: &Span) -> Result<Self, BoxError> {
        let connection = lease.connection().await?;
        let (inputs, receiver, cancel) = client::Inputs::channel(INPUT_BUFFER);
        // The first input is queued before the call, which saves a round trip.
        inputs
            .try_send(first)
            .map_err(|_| BoxError::Lost("the call's input is closed".into()))?;
        let request = traced(span, receiver);
        let mut client = connection
            .client
            .max_decoding_message_size(MAX_OUTPUT_BYTES);
        match M::call(&mut client, request).await {
            Ok(response) => {
                let (environment, metadata) = (lease.id(), response.metadata());
                lease
                    .spans()
                    .export_accepted(span, environment, M::NAME, metadata);
                Ok(Self {
                    _cancel: cancel,
                    outputs: response.into_inner(),
                    inputs,
                    number: connection.number,
                })
            }
            Err(status) => Err(failed(lease, connection.number, status)),
        }
    }

    /// Ends the inputs, in boxd when the clones of the sender are dropped too.
    pub fn end_inputs(&mut self) {
        // Its receiver is dropped: sending to it fails.
        self.inputs = mpsc::channel(1).0;
    }

    /// The next output. The end of the stream is an error: an operation has a last output.
    ///
    /// # Errors
    /// As boxd's; [`BoxError::Lost`] when the connection was lost.
    pub async fn next(&mut self, lease: &Lease) -> Result<M::Output, BoxError> {
        let next = self.next_or_end(lease).await?;
        next.ok_or_else(ended_early)
    }

    /// The next output; `None` at the end of the stream.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_or_end(&mut self, lease: &Lease) -> Result<Option<M::Output>, BoxError> {
        let next = self.outputs.message().await;
        next.map_err(|status| failed(lease, self.number, status))
    }
}

/// The error of a stream that ended before its last output.
pub fn ended_early() -> BoxError {
    BoxError::Lost("boxd ended the stream".into())
}

fn failed(lease: &Lease, number: u64, status: Status) -> BoxError {
    let error = BoxError::from_status(status);
    if matches!(error, BoxError::Lost(_)) {
        lease.mark_lost(number);
    }
    error
}
