//! All sessions of one process: one subscription, a table, and the way in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::subjects::{self, HEADER_DEADLINE, Subject};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::actor::{Actor, FromNetwork, Role};
use super::frame::{Frame, Kind};
use super::{Acceptor, Control, HAND_OVER, Session, WINDOW};
use crate::error::BusError;
use crate::rpc::{encode, unix_ms_in};
use crate::subscription::{confirm, leave};
use crate::trace;

/// Frames waiting for one session's actor; more are dropped and sent again.
const INBOX: usize = 4 * WINDOW;
/// Sessions of one process; more are refused.
const MAX_SESSIONS: usize = 8192;

type Table = Mutex<HashMap<u64, mpsc::Sender<FromNetwork>>>;

#[derive(Clone)]
pub(crate) struct Hub {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(super) client: Client,
    service: &'static str,
    instance: InstanceId,
    next: AtomicU64,
    table: Table,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<FromNetwork>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subject(&self, number: u64) -> String {
        subjects::session(self.service, &self.instance, number)
    }

    pub(super) fn forget(&self, number: u64) {
        self.table().remove(&number);
    }

    /// Tells the session at `peer` that it is over. Dropped when the connection is busy or
    /// gone: the peer asks again.
    fn publish_now(&self, peer: String, ack: u64, error: Error) {
        let publish = self.client.publish(peer, reset_frame(ack, error));
        if !matches!(
            tokio::task::unconstrained(publish).now_or_never(),
            Some(Ok(()))
        ) {
            tracing::debug!("a reset could not be sent");
        }
    }

    fn dispatch(&self, message: Message) {
        let Some(Subject::Session { n, .. }) = Subject::parse(message.subject.as_str()) else {
            return;
        };
        let from_network = if message.status == Some(StatusCode::NO_RESPONDERS) {
            FromNetwork::NoResponders
        } else if let Some(frame) = Frame::decode(message.payload) {
            FromNetwork::Frame {
                frame,
                from: message.reply.clone(),
            }
        } else {
            metrics::counter!("agentbox_session_malformed_frames_total").increment(1);
            return;
        };
        let inbox = self.table().get(&n).cloned();
        match (inbox, from_network) {
            (Some(inbox), from_network) => {
                if inbox.try_send(from_network).is_err() {
                    metrics::counter!("agentbox_session_dropped_frames_total").increment(1);
                }
            }
            // A session that this end has given up: the other end should too.
            (
                None,
                FromNetwork::Frame {
                    frame,
                    from: Some(from),
                },
            ) if wants_answer(&frame) => {
                // The acknowledgement: a last message whose first acknowledgement was lost
                // has been consumed, which is why nobody knows it here any more.
                self.publish_now(from.to_string(), frame.sequence, super::cancelled());
            }
            (None, _) => {}
        }
    }
}

fn reset_frame(ack: u64, error: Error) -> Bytes {
    Frame {
        sequence: 0,
        ack,
        received: ack,
        kind: Kind::Reset(error),
    }
    .encode()
}

pub(super) fn too_many() -> Error {
    Error::new(ErrorCode::Unavailable, "too many sessions; try again")
}

fn unreachable_bus() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the message bus cannot be reached; try again",
    )
}

fn wants_answer(frame: &Frame) -> bool {
    matches!(frame.kind, Kind::Data { .. } | Kind::Accept | Kind::Ping)
}

impl Hub {
    pub(crate) async fn start(
        client: Client,
        service: &'static str,
        instance: InstanceId,
    ) -> Result<Self, BusError> {
        let mut frames = client
            .subscribe(subjects::process_sessions(service, &instance))
            .await
            .map_err(BusError::nats("subscribing to sessions"))?;
        let hub = Self {
            inner: Arc::new(Inner {
                client,
                service,
                instance,
                next: AtomicU64::new(1),
                table: Mutex::default(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        };
        let inner = hub.inner.clone();
        hub.inner.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = inner.stop.cancelled() => break,
                    message = frames.next() => match message {
                        Some(message) => inner.dispatch(message),
                        None => break,
                    },
                }
            }
        });
        Ok(hub)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == State::Connected
    }

    pub(crate) async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        // The resets must be on the wire before the connection goes.
        let _ = self.inner.client.flush().await;
        let _ = self.inner.client.drain().await;
    }

    /// A new session in the table and its actor running.
    pub(super) fn begin<Out: SessionMessage, In: SessionMessage>(
        &self,
        role: Role,
    ) -> (u64, Session<Out, In>) {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (inbox, frames) = mpsc::channel(INBOX);
        // Capacity 1: what waits here is beyond the window.
        let (outgoing, to_send) = mpsc::channel(1);
        let (deliver, delivered) = mpsc::channel(WINDOW + 1);
        let (abort, aborts) = mpsc::channel(1);
        let (taken, takes) = mpsc::channel(WINDOW + 1);
        let ended = CancellationToken::new();
        let control = Control {
            abort,
            ended: ended.clone(),
            taken,
        };
        self.inner.table().insert(number, inbox);
        metrics::gauge!("agentbox_sessions_open").increment(1.0);
        let actor = Actor::new(
            self.inner.client.clone(),
            self.inner.subject(number),
            role,
            super::actor::Channels {
                frames,
                to_send,
                deliver,
                aborts,
                takes,
            },
        );
        let inner = self.inner.clone();
        let stop = inner.stop.clone();
        self.inner.tasks.spawn(
            async move {
                actor.run(stop).await;
                inner.forget(number);
                ended.cancel();
                metrics::gauge!("agentbox_sessions_open").decrement(1.0);
            }
            .instrument(Span::none()),
        );
        (number, Session::new(outgoing, delivered, control))
    }

    pub(crate) async fn open<Out: SessionMessage, In: SessionMessage>(
        &self,
        subject: String,
        open: &impl Serialize,
        deadline: Duration,
    ) -> Result<Session<Out, In>, Error> {
        if !self.is_connected() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the message bus is not connected",
            ));
        }
        let body = encode(open)?;
        if self.is_full() {
            return Err(too_many());
        }
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_DEADLINE, unix_ms_in(deadline).to_string());
        trace::inject(&Span::current(), &mut headers);
        let (number, session) = self.begin(Role::Opener { deadline });
        let publish = self.inner.client.publish_with_reply_and_headers(
            subject,
            self.inner.subject(number),
            headers,
            body,
        );
        match tokio::time::timeout(deadline, publish).await {
            Ok(Ok(())) => Ok(session),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a session could not be opened");
                Err(unreachable_bus())
            }
            Err(_) => Err(unreachable_bus()),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.inner.table().len() >= MAX_SESSIONS
    }

    /// Ends the session at `peer` before it has begun here.
    pub(super) async fn reset(&self, peer: String, error: Error) {
        let publish = self.inner.client.publish(peer, reset_frame(0, error));
        if !matches!(tokio::time::timeout(HAND_OVER, publish).await, Ok(Ok(()))) {
            tracing::warn!("a refusal could not be sent");
        }
    }

    /// The same where nothing can be awaited.
    pub(super) fn reset_now(&self, peer: String, error: Error) {
        self.inner.publish_now(peer, 0, error);
    }

    /// See [`leave`].
    pub(super) async fn leave(&self, requests: &mut Subscriber) {
        leave(&self.inner.client, [requests]).await;
    }

    pub(crate) async fn accept(&self, subject: String, queue: &str) -> Result<Acceptor, BusError> {
        let requests = self
            .inner
            .client
            .queue_subscribe(subject, queue.to_owned())
            .await
            .map_err(BusError::nats("subscribing to session requests"))?;
        // The caller may then say that it is ready.
        confirm(&self.inner.client).await?;
        Ok(Acceptor::new(self.clone(), requests))
    }
}
