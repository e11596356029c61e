//! The actor of one session: the only owner of its sequence numbers and its window.
//!
//! * I1. The actor does not wait for a lost connection: a frame that the connection does not
//!   accept is sent again later, so timeouts and aborts are always handled.
//! * I2. Only messages that have not arrived are sent again. A slow consumer costs pings, not
//!   data.

use std::collections::VecDeque;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, Kind};
use super::window::{AckOutcome, Window};
use super::{
    ACCEPT_AFTER, Delivered, Outgoing, PEER_TIMEOUT, PING_INTERVAL, PUBLISH_TIMEOUT,
    RETRANSMIT_AFTER, WINDOW, lost,
};
use crate::client::Client;
use crate::metrics;

/// How often deadlines are checked.
const TICK: Duration = Duration::from_millis(25);
/// How often they are checked later: only the accept frame of a new session needs the shorter tick.
const SLOW_TICK: Duration = Duration::from_millis(250);

pub(super) enum Inbound {
    Frame {
        frame: Frame,
        from: Option<Subject>,
    },
    /// No server subscribes to the subject.
    NoResponders,
}

pub(super) enum Role {
    /// Its peer is the sender of the first frame, which must arrive within the deadline.
    Opener {
        deadline: Duration,
        /// The parts of the opening request that follow the opening message.
        request: VecDeque<Bytes>,
    },
    Server {
        peer: String,
        /// Whether the accept frame is the first thing that it does.
        accepts_at_once: bool,
    },
}

pub(super) struct Channels {
    pub frames: mpsc::Receiver<Inbound>,
    pub to_send: mpsc::Receiver<Outgoing>,
    pub deliver: mpsc::Sender<Result<Delivered, Error>>,
    pub aborts: mpsc::Receiver<Error>,
    pub takes: mpsc::Receiver<()>,
}

pub(super) struct Actor {
    client: Client,
    /// The subject of this end.
    own: String,
    /// The subject of the other end. An opener learns it from the first frame.
    peer: Option<String>,
    is_server: bool,
    accepts_at_once: bool,
    channels: Channels,
    /// The parts of the opening request that are not sent yet. They are sent before all messages.
    request: VecDeque<Bytes>,
    started_at: Instant,
    /// When an opener stops waiting for the first frame.
    first_frame_by: Option<Instant>,
    received_at: Instant,
    sent_at: Option<Instant>,
    progress_at: Instant,
    window: Window,
    /// Since when the window is full.
    full_since: Option<Instant>,
    /// The sequence of the last message that has arrived.
    received: u64,
    received_fin: bool,
    /// The sequence of the last message that the consumer has taken.
    consumed: u64,
    /// `consumed` as it was last sent to the peer.
    acknowledged: u64,
    /// `received` as it was last sent to the peer.
    reported: u64,
    /// The peer has sent a message again: an acknowledgement was lost.
    must_acknowledge: bool,
}

/// How the session continues after a step.
enum Next {
    Continue,
    /// Both sides have finished.
    Done,
    /// The consumer gets the error, and so does the peer unless the error came from there.
    Failed {
        error: Error,
        reset_peer: bool,
    },
}

impl Actor {
    pub(super) fn new(client: Client, own: String, role: Role, channels: Channels) -> Self {
        let now = Instant::now();
        let (peer, accepts_at_once, first_frame_by, request) = match role {
            Role::Opener { deadline, request } => (None, false, Some(now + deadline), request),
            Role::Server {
                peer,
                accepts_at_once,
            } => (Some(peer), accepts_at_once, None, VecDeque::new()),
        };
        Self {
            client,
            own,
            // Only an opener has to learn its peer.
            is_server: peer.is_some(),
            peer,
            accepts_at_once,
            channels,
            request,
            started_at: now,
            first_frame_by,
            received_at: now,
            sent_at: None,
            progress_at: now,
            window: Window::new(),
            full_since: None,
            received: 0,
            received_fin: false,
            consumed: 0,
            acknowledged: 0,
            reported: 0,
            must_acknowledge: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut next_tick = Instant::now() + TICK;
        if self.accepts_at_once {
            self.publish(0, Kind::Accept).await;
        }
        loop {
            let may_send = self.peer.is_some() && self.window.has_room();
            let sends_request = may_send && !self.request.is_empty();
            let next = tokio::select! {
                biased;
                Some(error) = self.channels.aborts.recv() => self.aborted(error).await,
                Some(inbound) = self.channels.frames.recv() => self.receive(inbound).await,
                Some(()) = self.channels.takes.recv() => self.taken().await,
                () = std::future::ready(()), if sends_request => self.send_request().await,
                Some(outgoing) = self.channels.to_send.recv(), if may_send && !sends_request => {
                    self.send(outgoing).await
                }
                () = tokio::time::sleep_until(next_tick) => {
                    let now = Instant::now();
                    next_tick = now + if self.started_at.elapsed() < ACCEPT_AFTER * 4 { TICK } else { SLOW_TICK };
                    self.tick(now).await
                }
                () = stop.cancelled() => Next::Failed {
                    error: Error::new(ErrorCode::BoxLost, "the service is stopping"),
                    reset_peer: true,
                },
            };
            match next {
                Next::Continue => {}
                Next::Done => return,
                Next::Failed { error, reset_peer } => {
                    if reset_peer {
                        self.publish(0, Kind::Reset(error.clone())).await;
                    }
                    // Closed first, so that a caller that has received the error cannot send.
                    self.channels.to_send.close();
                    // The consumer gets the error after the messages that it has not taken yet.
                    // When the queue is full, it is closed, which the consumer gets as an error.
                    let _ = self.channels.deliver.try_send(Err(error));
                    return;
                }
            }
        }
    }

    async fn aborted(&mut self, error: Error) -> Next {
        if self.received_fin {
            // The peer has ended the session and waits for the last acknowledgement.
            self.consumed = self.received;
            self.publish(0, Kind::Ack).await;
            return Next::Done;
        }
        // Messages that were queued before are sent first, as far as the window has room.
        while self.peer.is_some()
            && self.request.is_empty()
            && self.window.has_room()
            && let Ok(outgoing) = self.channels.to_send.try_recv()
        {
            self.send(outgoing).await;
        }
        Next::Failed {
            error,
            reset_peer: true,
        }
    }

    async fn publish(&mut self, sequence: u64, kind: Kind) {
        let frame = Frame {
            sequence,
            ack: self.consumed,
            received: self.received,
            kind,
        }
        .encode();
        if self.publish_encoded(frame).await {
            self.record_acknowledged();
        }
    }

    fn record_acknowledged(&mut self) {
        self.acknowledged = self.consumed;
        self.reported = self.received;
        self.must_acknowledge = false;
    }

    /// Whether the connection accepted the frame. A frame that it did not accept is sent again,
    /// or the peer's timeout ends the session.
    async fn publish_encoded(&mut self, frame: Bytes) -> bool {
        let Some(peer) = self.peer.clone() else {
            return false;
        };
        if !self.client.is_connected() {
            return false;
        }
        self.sent_at = Some(Instant::now());
        let publish = self
            .client
            .nats()
            .publish_with_reply(peer, self.own.clone(), frame);
        match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(error = %ErrorChain(&error), "frame not sent");
                false
            }
            Err(_) => false,
        }
    }

    /// Sends the next part of the opening request.
    async fn send_request(&mut self) -> Next {
        match self.request.pop_front() {
            Some(body) => self.send(Outgoing { body, fin: None }).await,
            None => Next::Continue,
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> Next {
        metrics::session_sent(outgoing.body.len());
        let frame = Frame {
            sequence: self.window.next_sequence(),
            ack: self.consumed,
            received: self.received,
            kind: Kind::Data {
                body: outgoing.body,
                fin: outgoing.fin.is_some(),
            },
        }
        .encode();
        if self.window.push(frame.clone(), outgoing.fin) {
            // Nothing was in flight: the retransmission timer starts now.
            self.progress_at = Instant::now();
        }
        if !self.window.has_room() {
            self.full_since = Some(Instant::now());
        }
        if self.publish_encoded(frame).await {
            self.record_acknowledged();
        }
        Next::Continue
    }

    async fn receive(&mut self, inbound: Inbound) -> Next {
        let (frame, from) = match inbound {
            Inbound::Frame { frame, from } => (frame, from),
            Inbound::NoResponders if self.peer.is_none() => {
                return Next::Failed {
                    error: Error::new(
                        ErrorCode::Unavailable,
                        "no exec-proxy serves the environment's cluster; try again",
                    ),
                    reset_peer: false,
                };
            }
            // The peer's process has ended. The peer timeout ends the session.
            Inbound::NoResponders => return Next::Continue,
        };
        match (&self.peer, from) {
            (Some(peer), Some(from)) if peer != from.as_str() => {
                metrics::session_foreign_frame();
                return Next::Continue;
            }
            (None, Some(from)) => self.peer = Some(from.to_string()),
            _ => {}
        }
        self.received_at = Instant::now();
        match self.window.acknowledge(frame.ack, frame.received) {
            AckOutcome::Finished => return Next::Done,
            AckOutcome::Progress => self.progress_at = self.received_at,
            AckOutcome::Unchanged => {}
        }
        self.measure_wait();
        match frame.kind {
            Kind::Data { body, fin } => self.deliver(frame.sequence, body, fin).await,
            Kind::Accept | Kind::Ack | Kind::Ping => Next::Continue,
            Kind::Reset(error) => Next::Failed {
                error,
                reset_peer: false,
            },
        }
    }

    /// Records how long the window was full, if a message has waited for it.
    fn measure_wait(&mut self) {
        if !self.window.has_room() {
            return;
        }
        if let Some(since) = self.full_since.take()
            && !(self.channels.to_send.is_empty() && self.request.is_empty())
        {
            metrics::session_waited(since.elapsed());
        }
    }

    async fn deliver(&mut self, sequence: u64, body: Bytes, fin: bool) -> Next {
        if sequence != self.received + 1 {
            // A repeated message: the next tick acknowledges all repeats at once. Or a message
            // after a missing one: the peer sends both again.
            self.must_acknowledge |= sequence <= self.received;
            return Next::Continue;
        }
        metrics::session_received(body.len());
        self.received = sequence;
        self.received_fin = fin;
        match self.channels.deliver.try_send(Ok(Delivered { body, fin })) {
            Ok(()) => Next::Continue,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                // The consumer was dropped, but the peer must be able to finish.
                self.consumed = sequence;
                self.acknowledge_consumed().await
            }
            Err(mpsc::error::TrySendError::Full(_)) => Next::Failed {
                error: Error::internal(),
                reset_peer: true,
            },
        }
    }

    /// The consumer took one message.
    async fn taken(&mut self) -> Next {
        let mut taken = 1;
        while self.channels.takes.try_recv().is_ok() {
            taken += 1;
        }
        // `deliver` has counted the messages that arrived after the consumer was dropped.
        self.consumed = self.received.min(self.consumed + taken);
        self.acknowledge_consumed().await
    }

    /// Acknowledges the last message, and each half window, at once. The others are
    /// acknowledged by the next data frame or tick.
    async fn acknowledge_consumed(&mut self) -> Next {
        let last = self.received_fin && self.consumed == self.received;
        if last || self.consumed - self.acknowledged >= (WINDOW / 2) as u64 {
            self.publish(0, Kind::Ack).await;
        }
        if last { Next::Done } else { Next::Continue }
    }

    async fn tick(&mut self, now: Instant) -> Next {
        if self.peer.is_none() {
            return match self.first_frame_by {
                Some(by) if now >= by => Next::Failed {
                    error: Error::new(
                        ErrorCode::Timeout,
                        "the exec-proxy did not answer in time; try again",
                    ),
                    reset_peer: false,
                },
                _ => Next::Continue,
            };
        }
        if now - self.received_at > PEER_TIMEOUT {
            return Next::Failed {
                error: lost(),
                reset_peer: true,
            };
        }
        if self.is_server && self.sent_at.is_none() && now - self.started_at >= ACCEPT_AFTER {
            self.publish(0, Kind::Accept).await;
        }
        if !self.window.all_arrived() && now - self.progress_at > RETRANSMIT_AFTER {
            self.progress_at = now;
            metrics::session_retransmitted();
            for frame in self.window.missing() {
                if !self.publish_encoded(frame).await {
                    break;
                }
            }
        }
        if self.must_acknowledge
            || self.reported < self.received
            || self.acknowledged < self.consumed
        {
            self.publish(0, Kind::Ack).await;
        }
        // The first frame of a server is never a ping: it accepts the session.
        if self
            .sent_at
            .is_none_or(|sent_at| now - sent_at >= PING_INTERVAL)
            && (self.sent_at.is_some() || !self.is_server)
        {
            self.publish(0, Kind::Ping).await;
        }
        Next::Continue
    }
}
