//! All sessions of one process: one subscription, and a table of the open sessions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions::session_peer;
use agentbox_contracts::rpc::SessionRpc;
use agentbox_contracts::subjects::{self, HEADER_OPEN_LENGTH, Subject};
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::actor::{Actor, Inbound, Role};
use super::frame::{Frame, Kind};
use super::{Control, PUBLISH_TIMEOUT, Session, WINDOW, opening};
use crate::client::Client;
use crate::error::BusError;
use crate::message::set_deadline;
use crate::{metrics, trace};

/// Frames that wait for one session's actor. More are dropped, and the peer retransmits them.
const INBOX: usize = 4 * WINDOW;
/// The most sessions of one process. More are refused.
const MAX_SESSIONS: usize = 8192;

type Table = Mutex<HashMap<u64, mpsc::Sender<Inbound>>>;

#[derive(Clone)]
pub(crate) struct Hub {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(super) client: Client,
    service: &'static str,
    /// The prefix of the subjects to which frames may be sent.
    peers: Option<String>,
    instance: InstanceId,
    next: AtomicU64,
    table: Table,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Inbound>>> {
        self.table.lock()
    }

    fn subject(&self, number: u64) -> String {
        subjects::session(self.service, &self.instance, number)
    }

    /// Whether frames may be sent to `subject`. A permission violation would stop the service, so
    /// it answers no frame with another reply subject.
    fn is_peer(&self, subject: &str) -> bool {
        self.peers
            .as_ref()
            .is_some_and(|prefix| subject.starts_with(prefix))
    }

    /// Whether a process with the reply subject `from` may send `frame`. Of a peer, only a reset has no
    /// reply subject. A service that may not publish to sessions could let JetStream deliver a frame here:
    /// such a frame has a reply subject of JetStream's, or none.
    fn may_send(&self, frame: &Frame, from: Option<&str>) -> bool {
        match from {
            Some(from) => self.is_peer(from),
            None => matches!(frame.kind, Kind::Reset(_)),
        }
    }

    pub(super) fn remove(&self, number: u64) {
        self.table().remove(&number);
    }

    /// Sends a reset to the session at `peer`, without waiting. It is dropped when the
    /// connection is busy or lost: the peer's next frame causes another one.
    fn reset_now(&self, peer: String, ack: u64, error: Error) {
        let publish = self.client.nats().publish(peer, reset_frame(ack, error));
        if !matches!(
            tokio::task::unconstrained(publish).now_or_never(),
            Some(Ok(()))
        ) {
            tracing::debug!("reset not sent");
        }
    }

    fn dispatch(&self, message: Message) {
        let Some(Subject::Session { n, .. }) = Subject::parse(message.subject.as_str()) else {
            return;
        };
        let inbound = if message.status == Some(StatusCode::NO_RESPONDERS) {
            Inbound::NoResponders
        } else if let Some(frame) = Frame::decode(message.payload) {
            let from = message.reply;
            if !self.may_send(&frame, from.as_deref()) {
                metrics::session_foreign_frame();
                return;
            }
            Inbound::Frame { frame, from }
        } else {
            metrics::session_malformed_frame();
            return;
        };
        let inbox = self.table().get(&n).cloned();
        match (inbox, inbound) {
            (Some(inbox), inbound) => {
                if inbox.try_send(inbound).is_err() {
                    metrics::session_dropped_frame();
                }
            }
            // A session that has ended here must end at the peer too.
            (
                None,
                Inbound::Frame {
                    frame,
                    from: Some(from),
                },
            ) if expects_answer(&frame) => {
                // The reset also acknowledges the frame. It may be the last message of a session
                // that has ended because that message was consumed, and whose acknowledgement was
                // lost.
                self.reset_now(from.to_string(), frame.sequence, super::cancelled());
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

/// Whether the sender of `frame` waits for an answer.
fn expects_answer(frame: &Frame) -> bool {
    matches!(frame.kind, Kind::Data { .. } | Kind::Accept | Kind::Ping)
}

impl Hub {
    pub(crate) async fn start(
        client: Client,
        service: &'static str,
        instance: InstanceId,
    ) -> Result<Self, BusError> {
        let mut frames = client
            .nats()
            .subscribe(subjects::process_sessions(service, &instance))
            .await
            .map_err(BusError::nats("subscribing to sessions"))?;
        let hub = Self {
            inner: Arc::new(Inner {
                client,
                service,
                peers: session_peer(service).map(subjects::service_sessions),
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

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(super) fn is_peer(&self, subject: &str) -> bool {
        self.inner.is_peer(subject)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.inner.client.is_connected()
    }

    pub(crate) async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        // The resets must be sent before the connection closes.
        let _ = self.inner.client.nats().flush().await;
        let _ = self.inner.client.nats().drain().await;
    }

    /// Adds a session to the table and starts its actor.
    pub(super) fn begin<Out: SessionMessage, In: SessionMessage>(
        &self,
        role: Role,
    ) -> (u64, Session<Out, In>) {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (inbox, frames) = mpsc::channel(INBOX);
        // Capacity 1: a message that waits here is beyond the window.
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
        metrics::session_opened();
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
                inner.remove(number);
                ended.cancel();
                metrics::session_ended();
            }
            .instrument(Span::none()),
        );
        (number, Session::new(outgoing, delivered, control))
    }

    /// Opens a session with an exec-proxy of `cluster`.
    pub(crate) async fn open<S: SessionRpc>(
        &self,
        cluster: &str,
        open: &S::Open,
        deadline: Duration,
    ) -> Result<Session<S::ToServer, S::ToOpener>, Error> {
        if !self.is_connected() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the message bus is not connected",
            ));
        }
        let request = open.clone().encode();
        let length = request.len();
        let request = opening::split(request)?;
        if self.is_full() {
            return Err(too_many());
        }
        let mut headers = HeaderMap::new();
        set_deadline(&mut headers, deadline);
        if !request.rest.is_empty() {
            headers.insert(HEADER_OPEN_LENGTH, length.to_string());
        }
        trace::inject(&Span::current(), &mut headers);
        let (number, session) = self.begin(Role::Opener {
            deadline,
            request: request.rest,
        });
        let publish = self.inner.client.nats().publish_with_reply_and_headers(
            subjects::exec_rpc(cluster, S::METHOD),
            self.inner.subject(number),
            headers,
            request.first,
        );
        match tokio::time::timeout(deadline, publish).await {
            Ok(Ok(())) => Ok(session),
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "session not opened");
                Err(unreachable_bus())
            }
            Err(_) => Err(unreachable_bus()),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.inner.table().len() >= MAX_SESSIONS
    }

    /// Refuses the session at `peer`.
    pub(super) async fn reset(&self, peer: String, error: Error) {
        let publish = self
            .inner
            .client
            .nats()
            .publish(peer, reset_frame(0, error));
        if !matches!(
            tokio::time::timeout(PUBLISH_TIMEOUT, publish).await,
            Ok(Ok(()))
        ) {
            tracing::warn!("refusal of a session not sent");
        }
    }

    /// Refuses the session at `peer` without waiting, for a `drop`.
    pub(super) fn reset_now(&self, peer: String, error: Error) {
        self.inner.reset_now(peer, 0, error);
    }
}
