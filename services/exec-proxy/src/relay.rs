//! Relays one call of boxd as one session: inputs from the gateway, outputs from the box.
//!
//! * I1. No byte is buffered here. When the gateway stalls, outputs fill the session's window, then
//!   HTTP/2's, and then boxd waits. Inputs fill the same windows in the other direction.
//! * I2. An output is checked before it enters the session: a box belongs to a user.
//! * I3. When the gateway closes the session, the call is cancelled at once.
//! * I4. A lost box is an error; the last message of the session is boxd's last output.

use agentbox_bus::{Session, SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, MAX_CHUNK, ToBox};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::boxes::call::{Call, Method, OPEN_DEADLINE};
use crate::boxes::{BoxError, Lease};
use crate::metrics;
use crate::outcome::{Outcome, stopping_error};

/// The conversion and the checks of one kind of call.
pub trait Relayed: Send {
    type Method: Method;

    /// The kind of the session, a label of the metrics.
    const KIND: &'static str;

    /// The input for a message from the gateway; `None` when it has no meaning in this call.
    fn input(message: ToBox) -> Option<<Self::Method as Method>::Input>;

    /// The message for an output.
    ///
    /// # Errors
    /// [`BoxError::Invalid`] when boxd does not send such an output, [`BoxError::Lost`] when bytes
    /// are missing.
    fn output(&mut self, output: <Self::Method as Method>::Output) -> Result<Message, BoxError>;
}

/// What becomes of an output.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Send(FromBox),
    /// The gateway has it already.
    Skip,
    /// Ends the session.
    Last(FromBox),
}

/// How a relay ended.
pub enum End {
    Last(Box<FromBox>),
    /// The call has failed or was lost.
    Failed(BoxError),
    PeerGone,
    /// This process is shutting down.
    Stopping,
}

/// The ends of one session, and the box that it leads to.
pub struct Relay {
    pub lease: Lease,
    pub sender: SessionSender<FromBox>,
    pub receiver: SessionReceiver<ToBox>,
    pub stopping: CancellationToken,
}

/// Serves a session whose call is made once: `first` is its first input. A `repeatable` call may be
/// opened twice.
pub async fn serve<K: Relayed>(
    mut kind: K,
    session: Session<FromBox, ToBox>,
    lease: Lease,
    first: <K::Method as Method>::Input,
    repeatable: bool,
    stopping: CancellationToken,
) -> Outcome {
    let mut relay = Relay::new(session, lease, stopping);
    let opening = Call::<K::Method>::open(&relay.lease, first, repeatable, OPEN_DEADLINE);
    let opened = relay.until_gone(opening).await;
    let end = match opened {
        Ok(Ok(call)) => relay.run(&mut kind, call).await,
        Ok(Err(error)) => End::Failed(error),
        Err(end) => end,
    };
    relay.finish(end).await
}

impl Relay {
    #[must_use]
    pub fn new(
        session: Session<FromBox, ToBox>,
        lease: Lease,
        stopping: CancellationToken,
    ) -> Self {
        let (sender, receiver) = session.split();
        Self {
            lease,
            sender,
            receiver,
            stopping,
        }
    }

    /// The result of `work`, unless the session has to end before.
    ///
    /// # Errors
    /// [`End::PeerGone`] or [`End::Stopping`].
    pub async fn until_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            done = work => Ok(done),
            () = self.sender.closed() => Err(End::PeerGone),
            () = self.stopping.cancelled() => Err(End::Stopping),
        }
    }

    /// Relays `call` until it ends, and cancels it otherwise.
    pub async fn run<K: Relayed>(&mut self, kind: &mut K, mut call: Call<K::Method>) -> End {
        let inputs = call.inputs.clone();
        let inbound = forward_inputs::<K>(&mut self.receiver, &inputs);
        let outbound = forward_outputs(kind, &mut call, &self.lease, &mut self.sender);
        until_ended(inbound, outbound, &self.stopping).await
    }

    /// Ends the session.
    pub async fn finish(self, end: End) -> Outcome {
        let Self {
            lease,
            sender,
            mut receiver,
            ..
        } = self;
        // Released before the gateway gets the end, so that its next session in the box is not
        // refused.
        drop(lease);
        match end {
            End::Last(last) => {
                // A gateway that still sends must not wait for room in the window.
                let discarded = async {
                    while let Ok(Some(_)) = receiver.recv().await {}
                    std::future::pending::<Outcome>().await
                };
                tokio::select! {
                    outcome = Outcome::finished(sender, *last) => outcome,
                    never = discarded => never,
                }
            }
            End::Failed(error) => Outcome::failed(sender, &error).await,
            End::PeerGone => Outcome::PeerGone,
            End::Stopping => Outcome::refused(sender, stopping_error()).await,
        }
    }
}

/// Runs both directions of a call until the outputs have ended, the gateway is gone or this process stops.
/// `inbound` may end before.
pub async fn until_ended(
    inbound: impl Future<Output = Result<(), Error>>,
    outbound: impl Future<Output = End>,
    stopping: &CancellationToken,
) -> End {
    tokio::pin!(inbound, outbound);
    let mut input_open = true;
    loop {
        tokio::select! {
            end = &mut outbound => return end,
            ended = &mut inbound, if input_open => match ended {
                Ok(()) => input_open = false,
                Err(_gone) => return End::PeerGone,
            },
            () = stopping.cancelled() => return End::Stopping,
        }
    }
}

/// Forwards messages of the session into the call. Returns `Ok` when boxd accepts no more input.
async fn forward_inputs<K: Relayed>(
    receiver: &mut SessionReceiver<ToBox>,
    inputs: &mpsc::Sender<<K::Method as Method>::Input>,
) -> Result<(), Error> {
    loop {
        // The gateway sends no last message: it closes the session.
        let message = receiver.recv().await?.ok_or_else(closed)?;
        if !forward_message(K::KIND, message, inputs, K::input).await {
            return Ok(());
        }
    }
}

/// The error of a session that the gateway has closed.
pub fn closed() -> Error {
    Error::new(ErrorCode::BoxLost, "closed")
}

/// Forwards one message of a session of this kind, in pieces that boxd takes, as the inputs that
/// `to_input` makes of them. Returns whether boxd accepts more.
pub async fn forward_message<T>(
    kind: &'static str,
    message: ToBox,
    inputs: &mpsc::Sender<T>,
    to_input: impl Fn(ToBox) -> Option<T>,
) -> bool {
    let mut rest = Some(message);
    while let Some(message) = rest {
        let message = match message {
            ToBox::Data(mut bytes) => {
                let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
                metrics::bytes_in(kind, chunk.len());
                rest = (!bytes.is_empty()).then_some(ToBox::Data(bytes));
                ToBox::Data(chunk)
            }
            other => {
                rest = None;
                other
            }
        };
        let Some(input) = to_input(message) else {
            continue;
        };
        if inputs.send(input).await.is_err() {
            return false;
        }
    }
    true
}

/// Forwards outputs of the call into the session.
async fn forward_outputs<K: Relayed>(
    kind: &mut K,
    call: &mut Call<K::Method>,
    lease: &Lease,
    sender: &mut SessionSender<FromBox>,
) -> End {
    loop {
        let next = tokio::select! {
            next = call.next(lease) => next,
            () = sender.closed() => return End::PeerGone,
        };
        match next.and_then(|output| kind.output(output)) {
            Ok(Message::Send(message)) => {
                if sender.send(message).await.is_err() {
                    return End::PeerGone;
                }
            }
            Ok(Message::Skip) => {}
            Ok(Message::Last(last)) => return End::Last(Box::new(last)),
            Err(error) => return End::Failed(error),
        }
    }
}

/// Checks a piece of content or output, and counts it; `kind` is that of the session.
///
/// # Errors
/// [`BoxError::Invalid`] above [`MAX_CHUNK`].
pub fn check_chunk(kind: &'static str, bytes: &[u8]) -> Result<(), BoxError> {
    if bytes.len() > MAX_CHUNK {
        return Err(BoxError::Invalid("a chunk that is too long"));
    }
    metrics::bytes_out(kind, bytes.len());
    Ok(())
}
