//! One session's life: the only owner of its sequence numbers and its window.

use std::collections::VecDeque;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, Kind};
use super::{
    ACCEPT_AFTER, Delivered, Outgoing, PEER_SILENCE, PING_INTERVAL, RETRANSMIT_AFTER, WINDOW, lost,
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

struct Unacknowledged {
    sequence: u64,
    frame: Bytes,
    fin: Option<oneshot::Sender<()>>,
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
    sent: u64,
    window: VecDeque<Unacknowledged>,
    received: u64,
    received_fin: bool,
    consumed: u64,
    acknowledged: u64,
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
            sent: 0,
            window: VecDeque::with_capacity(WINDOW),
            received: 0,
            received_fin: false,
            consumed: 0,
            acknowledged: 0,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let may_send = self.peer.is_some() && self.window.len() < WINDOW;
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
        Next::Failed {
            error,
            tell_peer: true,
        }
    }

    async fn publish(&mut self, sequence: u64, kind: Kind) {
        let frame = Frame {
            sequence,
            ack: self.consumed,
            kind,
        }
        .encode();
        self.publish_encoded(frame).await;
        self.acknowledged = self.consumed;
    }

    async fn publish_encoded(&mut self, frame: Bytes) {
        let Some(peer) = self.peer.clone() else {
            return;
        };
        self.spoke = Some(Instant::now());
        if let Err(error) = self
            .client
            .publish_with_reply(peer, self.own.clone(), frame)
            .await
        {
            // It is sent again, or the peer's silence ends the session.
            tracing::debug!(%error, "a frame could not be sent");
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> Next {
        self.sent += 1;
        let kind = Kind::Data {
            tag: outgoing.tag,
            body: outgoing.body,
            fin: outgoing.fin.is_some(),
        };
        let frame = Frame {
            sequence: self.sent,
            ack: self.consumed,
            kind,
        }
        .encode();
        if self.window.is_empty() {
            self.progress = Instant::now();
        }
        self.window.push_back(Unacknowledged {
            sequence: self.sent,
            frame: frame.clone(),
            fin: outgoing.fin,
        });
        self.publish_encoded(frame).await;
        self.acknowledged = self.consumed;
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
        self.heard = Instant::now();
        if let (None, Some(from)) = (&self.peer, from) {
            self.peer = Some(from.to_string());
        }
        if self.acknowledge(frame.ack) {
            return Next::Done;
        }
        match frame.kind {
            Kind::Data { tag, body, fin } => self.deliver(frame.sequence, tag, body, fin).await,
            Kind::Accept | Kind::Ack | Kind::Ping => Next::Go,
            Kind::Reset(error) => Next::Failed {
                error,
                tell_peer: false,
            },
        }
    }

    /// Forgets what the peer has; true when that was this side's last message.
    fn acknowledge(&mut self, ack: u64) -> bool {
        let mut finished = false;
        while self
            .window
            .front()
            .is_some_and(|first| first.sequence <= ack)
        {
            self.progress = Instant::now();
            if let Some(fin) = self.window.pop_front().and_then(|first| first.fin) {
                let _ = fin.send(());
                finished = true;
            }
        }
        finished
    }

    async fn deliver(&mut self, sequence: u64, tag: u8, body: Bytes, fin: bool) -> Next {
        if sequence != self.received + 1 {
            // Seen before, or one before it is missing: say what has been consumed.
            if sequence <= self.consumed {
                self.publish(0, Kind::Ack).await;
            }
            return Next::Go;
        }
        self.received = sequence;
        self.received_fin = fin;
        match self
            .channels
            .deliver
            .try_send(Ok(Delivered { tag, body, fin }))
        {
            Ok(()) => Next::Go,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.consumed = sequence;
                if fin {
                    self.publish(0, Kind::Ack).await;
                    return Next::Done;
                }
                Next::Go
            }
            Err(mpsc::error::TrySendError::Full(_)) => Next::Failed {
                error: Error::internal(),
                tell_peer: true,
            },
        }
    }

    /// The consumer took one message.
    async fn taken(&mut self) -> Next {
        self.consumed += 1;
        while self.channels.takes.try_recv().is_ok() {
            self.consumed += 1;
        }
        let last = self.received_fin && self.consumed == self.received;
        let half = self.consumed - self.acknowledged >= (WINDOW / 2) as u64;
        let drained = self.consumed == self.received;
        if last || half || drained {
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
        if !self.window.is_empty()
            && now - self.progress > RETRANSMIT_AFTER
            && now - self.heard < PEER_SILENCE
        {
            self.progress = now;
            metrics::counter!("agentbox_session_retransmits_total").increment(1);
            let frames: Vec<Bytes> = self.window.iter().map(|sent| sent.frame.clone()).collect();
            for frame in frames {
                self.publish_encoded(frame).await;
            }
        }
        if self.spoke.is_none_or(|spoke| now - spoke >= PING_INTERVAL)
            && (self.spoke.is_some() || !self.is_server)
        {
            self.publish(0, Kind::Ping).await;
        }
        Next::Go
    }
}
