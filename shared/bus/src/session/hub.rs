//! All sessions of one process: one subscription, a table, and the way in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::subjects::{self, Subject};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::actor::{Actor, FromNetwork, Role};
use super::frame::{Frame, Kind};
use super::{Control, Session, WINDOW};
use crate::error::BusError;
use crate::rpc::encode;
use crate::trace;

/// Frames waiting for one session's actor; more are dropped and sent again.
const INBOX: usize = 4 * WINDOW;

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
                let client = self.client.clone();
                let reset = Frame {
                    sequence: 0,
                    ack: frame.sequence,
                    kind: Kind::Reset(super::cancelled()),
                };
                self.tasks.spawn(async move {
                    let _ = client.publish(from, reset.encode()).await;
                });
            }
            (None, _) => {}
        }
    }
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
            .subscribe(subjects::sessions_of(service, &instance))
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
        let _ = self.inner.client.drain().await;
    }

    /// A new session in the table and its actor running.
    fn begin<Out: SessionMessage, In: SessionMessage>(
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
        let mut headers = HeaderMap::new();
        trace::inject(&Span::current(), &mut headers);
        let (number, session) = self.begin(Role::Opener { deadline });
        self.inner
            .client
            .publish_with_reply_and_headers(subject, self.inner.subject(number), headers, body)
            .await
            .map_err(|error| {
                tracing::warn!(%error, "a session could not be opened");
                Error::new(
                    ErrorCode::Unavailable,
                    "the message bus cannot be reached; try again",
                )
            })?;
        Ok(session)
    }

    pub(crate) async fn accept(&self, subject: String, queue: &str) -> Result<Acceptor, BusError> {
        let requests = self
            .inner
            .client
            .queue_subscribe(subject, queue.to_owned())
            .await
            .map_err(BusError::nats("subscribing to session requests"))?;
        Ok(Acceptor {
            hub: self.clone(),
            requests,
        })
    }
}

/// Session requests, as they come.
pub struct Acceptor {
    hub: Hub,
    requests: Subscriber,
}

impl Acceptor {
    /// The next request; `None` when the bus has been closed.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let message = self.requests.next().await?;
            let Some(peer) = message.reply.clone() else {
                continue;
            };
            let span = tracing::info_span!(
                "session",
                otel.name = "serve exec.open",
                otel.kind = "server",
                otel.status_code = tracing::field::Empty,
                messaging.system = "nats",
                messaging.destination.template = "exec.open",
            );
            trace::continue_trace(&span, message.headers.as_ref());
            return Some(Incoming {
                hub: self.hub.clone(),
                peer: peer.to_string(),
                open: message.payload,
                span,
            });
        }
    }

    /// No more requests; others of the queue group get them.
    pub async fn stop(&mut self) {
        let _ = self.requests.unsubscribe().await;
    }
}

/// A request to open a session, not yet answered.
pub struct Incoming {
    hub: Hub,
    peer: String,
    /// What the opener sent.
    pub open: Bytes,
    /// Continues the opener's trace.
    pub span: Span,
}

impl Incoming {
    #[must_use]
    pub fn accept<Out: SessionMessage, In: SessionMessage>(self) -> Session<Out, In> {
        self.hub.begin(Role::Server { peer: self.peer }).1
    }

    /// The opener's first `recv` gets `error`.
    pub async fn refuse(self, error: Error) {
        let reset = Frame {
            sequence: 0,
            ack: 0,
            kind: Kind::Reset(error),
        };
        if let Err(error) = self
            .hub
            .inner
            .client
            .publish(self.peer, reset.encode())
            .await
        {
            tracing::warn!(%error, "a refusal could not be sent");
        }
    }
}
