//! One session's life: the only owner of its sequence numbers and its window.
//!
//! * I1. The actor does not wait for a network that is gone: a frame that the connection
//!   does not take is sent again later, so silence and aborts are always noticed.
//! * I2. Only what has not arrived is sent again; a slow consumer costs pings, not data.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use async_nats::connection::State;
use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, Kind};
use super::window::{Change, Window};
use super::{
    ACCEPT_AFTER, Delivered, HAND_OVER, Outgoing, PEER_SILENCE, PING_INTERVAL, RETRANSMIT_AFTER,
    WINDOW, lost,
};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(25);
/// The same for a session that has been running for a while.
const SLOW_TICK: Duration = Duration::from_millis(250);

pub(super) enum FromNetwork {
    Frame {
        frame: Frame,
        from: Option<Subject>,
    },
    /// Nobody serves the subject that was opened.
    NoResponders,
}

pub(super) enum Role {
    /// Learns its peer from the peer's first frame, which must come within the deadline.
    Opener {
        deadline: Duration,
    },
    Server {
        peer: String,
    },
}

pub(super) struct Channels {
    pub frames: mpsc::Receiver<FromNetwork>,
    pub to_send: mpsc::Receiver<Outgoing>,
    pub deliver: mpsc::Sender<Result<Delivered, Error>>,
    pub aborts: mpsc::Receiver<Error>,
    pub takes: mpsc::Receiver<()>,
}

pub(super) struct Actor {
    client: Client,
    own: String,
    peer: Option<String>,
    is_server: bool,
    channels: Channels,
    begun: Instant,
    /// When an opener stops waiting for the first word.
    first_word_by: Option<Instant>,
    heard: Instant,
    spoke: Option<Instant>,
    progress: Instant,
    window: Window,
    received: u64,
    received_fin: bool,
    consumed: u64,
    /// What the peer was last told of `consumed` and of `received`.
    acknowledged: u64,
    reported: u64,
    /// The peer repeats itself: it has missed an acknowledgement.
    repeats: bool,
}

/// What a step decides.
enum Next {
    Go,
    /// Over, in order.
    Done,
    /// Over; the consumer is told, and the peer unless it said so itself.
    Failed {
        error: Error,
        tell_peer: bool,
    },
}

impl Actor {
    pub(super) fn new(client: Client, own: String, role: Role, channels: Channels) -> Self {
        let now = Instant::now();
        let (peer, is_server, first_word_by) = match role {
            Role::Opener { deadline } => (None, false, Some(now + deadline)),
            Role::Server { peer } => (Some(peer), true, None),
        };
        Self {
            client,
            own,
            peer,
            is_server,
            channels,
            begun: now,
            first_word_by,
            heard: now,
            spoke: None,
            progress: now,
            window: Window::new(),
            received: 0,
            received_fin: false,
            consumed: 0,
            acknowledged: 0,
            reported: 0,
            repeats: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let may_send = self.peer.is_some() && self.window.has_room();
            let next = tokio::select! {
                biased;
                Some(error) = self.channels.aborts.recv() => self.aborted(error).await,
                Some(from_network) = self.channels.frames.recv() => self.receive(from_network).await,
                Some(()) = self.channels.takes.recv() => self.taken().await,
                Some(outgoing) = self.channels.to_send.recv(), if may_send => self.send(outgoing).await,
                () = tokio::time::sleep_until(next_tick) => {
                    let now = Instant::now();
                    next_tick = now + if self.begun.elapsed() < ACCEPT_AFTER * 4 { TICK } else { SLOW_TICK };
                    self.tick(now).await
                }
                () = stop.cancelled() => Next::Failed {
                    error: Error::new(ErrorCode::BoxLost, "the service is stopping"),
                    tell_peer: true,
                },
            };
            match next {
                Next::Go => {}
                Next::Done => return,
                Next::Failed { error, tell_peer } => {
                    if tell_peer {
                        self.publish(0, Kind::Reset(error.clone())).await;
                    }
                    // First, so that who has seen the error cannot send any more.
                    self.channels.to_send.close();
                    // The consumer finds the error behind what it has not yet taken; a
                    // full queue is closed instead, which is an error too.
                    let _ = self.channels.deliver.try_send(Err(error));
                    return;
                }
            }
        }
    }

    async fn aborted(&mut self, error: Error) -> Next {
        if self.received_fin {
            // The peer has ended the session itself and waits to hear that all came.
            self.consumed = self.received;
            self.publish(0, Kind::Ack).await;
            return Next::Done;
        }
        // What was sent before goes before, where there is room for it.
        while self.peer.is_some()
            && self.window.has_room()
            && let Ok(outgoing) = self.channels.to_send.try_recv()
        {
            self.send(outgoing).await;
        }
        Next::Failed {
            error,
            tell_peer: true,
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
            self.told();
        }
    }

    fn told(&mut self) {
        self.acknowledged = self.consumed;
        self.reported = self.received;
        self.repeats = false;
    }

    /// Whether the connection took it. What it did not take is sent again, or the peer's
    /// silence ends the session.
    async fn publish_encoded(&mut self, frame: Bytes) -> bool {
        let Some(peer) = self.peer.clone() else {
            return false;
        };
        if self.client.connection_state() != State::Connected {
            return false;
        }
        self.spoke = Some(Instant::now());
        let publish = self
            .client
            .publish_with_reply(peer, self.own.clone(), frame);
        match tokio::time::timeout(HAND_OVER, publish).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a frame could not be sent");
                false
            }
            Err(_) => false,
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> Next {
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
            // Until now nothing was missing: the clock of a loss starts here.
            self.progress = Instant::now();
        }
        if self.publish_encoded(frame).await {
            self.told();
        }
        Next::Go
    }

    async fn receive(&mut self, from_network: FromNetwork) -> Next {
        let (frame, from) = match from_network {
            FromNetwork::Frame { frame, from } => (frame, from),
            FromNetwork::NoResponders if self.peer.is_none() => {
                return Next::Failed {
                    error: Error::new(
                        ErrorCode::Unavailable,
                        "nobody serves this environment's cluster now; try again",
                    ),
                    tell_peer: false,
                };
            }
            // The peer's process is gone; silence will say so.
            FromNetwork::NoResponders => return Next::Go,
        };
        match (&self.peer, from) {
            (Some(peer), Some(from)) if peer != from.as_str() => {
                metrics::counter!("agentbox_session_foreign_frames_total").increment(1);
                return Next::Go;
            }
            (None, Some(from)) => self.peer = Some(from.to_string()),
            _ => {}
        }
        self.heard = Instant::now();
        match self.window.acknowledge(frame.ack, frame.received) {
            Change::Finished => return Next::Done,
            Change::Progress => self.progress = self.heard,
            Change::Nothing => {}
        }
        match frame.kind {
            Kind::Data { body, fin } => self.deliver(frame.sequence, body, fin).await,
            Kind::Accept | Kind::Ack | Kind::Ping => Next::Go,
            Kind::Reset(error) => Next::Failed {
                error,
                tell_peer: false,
            },
        }
    }

    async fn deliver(&mut self, sequence: u64, body: Bytes, fin: bool) -> Next {
        if sequence != self.received + 1 {
            // Seen before: the next tick says so, once for all repeats. Or one before it is
            // missing: it comes again, with this one.
            self.repeats |= sequence <= self.received;
            return Next::Go;
        }
        self.received = sequence;
        self.received_fin = fin;
        match self.channels.deliver.try_send(Ok(Delivered { body, fin })) {
            Ok(()) => Next::Go,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                // Nobody reads any more, but the peer must reach its end.
                self.consumed = sequence;
                self.acknowledge_consumed().await
            }
            Err(mpsc::error::TrySendError::Full(_)) => Next::Failed {
                error: Error::internal(),
                tell_peer: true,
            },
        }
    }

    /// The consumer took one message.
    async fn taken(&mut self) -> Next {
        let mut taken = 1;
        while self.channels.takes.try_recv().is_ok() {
            taken += 1;
        }
        // A consumer that has left took nothing of what was counted for it since.
        self.consumed = self.received.min(self.consumed + taken);
        self.acknowledge_consumed().await
    }

    /// At once for the last message and for half a window; the rest rides on data or
    /// waits for the tick.
    async fn acknowledge_consumed(&mut self) -> Next {
        let last = self.received_fin && self.consumed == self.received;
        if last || self.consumed - self.acknowledged >= (WINDOW / 2) as u64 {
            self.publish(0, Kind::Ack).await;
        }
        if last { Next::Done } else { Next::Go }
    }

    async fn tick(&mut self, now: Instant) -> Next {
        if self.peer.is_none() {
            return match self.first_word_by {
                Some(by) if now >= by => Next::Failed {
                    error: Error::new(
                        ErrorCode::Timeout,
                        "the part that talks to the box did not answer in time",
                    ),
                    tell_peer: false,
                },
                _ => Next::Go,
            };
        }
        if now - self.heard > PEER_SILENCE {
            return Next::Failed {
                error: lost(),
                tell_peer: true,
            };
        }
        if self.is_server && self.spoke.is_none() && now - self.begun >= ACCEPT_AFTER {
            self.publish(0, Kind::Accept).await;
        }
        if !self.window.is_all_arrived() && now - self.progress > RETRANSMIT_AFTER {
            self.progress = now;
            metrics::counter!("agentbox_session_retransmits_total").increment(1);
            for frame in self.window.missing() {
                if !self.publish_encoded(frame).await {
                    break;
                }
            }
        }
        if self.repeats || self.reported < self.received || self.acknowledged < self.consumed {
            self.publish(0, Kind::Ack).await;
        }
        if self.spoke.is_none_or(|spoke| now - spoke >= PING_INTERVAL)
            && (self.spoke.is_some() || !self.is_server)
        {
            self.publish(0, Kind::Ping).await;
        }
        Next::Go
    }
}
