//! Connections to boxes: one per box, shared by all calls into it.
//!
//! Owns the connections. Never starts a command.
//!
//! * I1. Callers that need a new connection to the same box share one attempt. No lock is
//!   held during the attempt.
//! * I2. The number of kept boxes, and of sessions into one box, is limited.
//! * I3. A connection that failed is never used again: [`Lease::mark_lost`] replaces it, and
//!   the next call opens another.
//! * I4. A box that was not used for the idle time is removed, unless it is leased. A periodic request
//!   is no use: it keeps no connection, whose pings would wake an idle box every few seconds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::client::{self, BoxClient};
use agentbox_box_protocol::secret::BoxSecret;
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::BoxConnector;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boxes::in_use::OpenUse;
use crate::boxes::{BoxError, BoxSpans, InUse};
use crate::config::Limits;
use crate::metrics;

/// The size limit of a message from a box, in bytes.
const MAX_REPLY_BYTES: usize = 4 * 1024 * 1024;
/// The deadline of a connection attempt.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The boxes of one cluster. Clones share the connections.
#[derive(Clone)]
pub struct Boxes {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Arc<dyn BoxConnector>,
    secret: BoxSecret,
    limits: Limits,
    spans: BoxSpans,
    entries: Mutex<HashMap<EnvironmentId, Arc<Entry>>>,
    in_use: InUse,
}

/// A kept box.
struct Entry {
    address: SocketAddr,
    sessions: Arc<Semaphore>,
    newest: Mutex<Arc<Attempt>>,
    used_at: Mutex<Instant>,
}

/// One connection attempt, and its client when it has succeeded.
struct Attempt {
    /// From 1; rises with each connection to the box.
    number: u64,
    client: OnceCell<BoxClient>,
}

/// A connection for one call.
#[derive(Clone)]
pub struct Connection {
    pub client: BoxClient,
    /// The connection's number, for [`Lease::mark_lost`].
    pub number: u64,
}

/// A lease of one box. While it is held, the box is not evicted.
pub struct Lease {
    id: EnvironmentId,
    boxes: Boxes,
    entry: Arc<Entry>,
    purpose: Purpose,
    _session: Option<(OwnedSemaphorePermit, OpenUse)>,
}

/// What a lease means for the time after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The box is used: its connection is kept for the idle time.
    Use,
    /// One request, which is repeated after a long pause whether the box is used or not. `opened`: no
    /// other lease had made the entry of the box.
    Periodic { opened: bool },
}

impl Boxes {
    /// `spans` exports the spans that boxes return.
    #[must_use]
    pub fn new(
        connector: Arc<dyn BoxConnector>,
        secret: BoxSecret,
        limits: Limits,
        spans: BoxSpans,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                connector,
                secret,
                limits,
                spans,
                entries: Mutex::default(),
                in_use: InUse::default(),
            }),
        }
    }

    #[must_use]
    pub fn connector(&self) -> &dyn BoxConnector {
        &*self.shared.connector
    }

    /// The environments with sessions.
    #[must_use]
    pub fn in_use(&self) -> &InUse {
        &self.shared.in_use
    }

    /// Leases the box for a session, which counts towards the box's session limit. Does not
    /// connect yet.
    ///
    /// # Errors
    /// [`BoxError::Busy`] when the box, or this process, is at its limit.
    pub fn lease_session(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Lease, BoxError> {
        let mut lease = self.lease_request(id, address)?;
        let session = Arc::clone(&lease.entry.sessions)
            .try_acquire_owned()
            .map_err(|_| BoxError::Busy(self.shared.limits.sessions_per_box))?;
        lease._session = Some((session, self.shared.in_use.begin(id)));
        Ok(lease)
    }

    /// Leases the box for one short request, which does not count as a session.
    ///
    /// # Errors
    /// [`BoxError::Busy`] when this process is at its limit of boxes.
    pub fn lease_request(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Lease, BoxError> {
        self.lease(id, address, |_| Purpose::Use)
    }

    /// Leases the box for one short request that is repeated periodically. Its connection is kept only
    /// if others use it.
    ///
    /// # Errors
    /// As [`Self::lease_request`].
    pub fn lease_periodic(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Lease, BoxError> {
        self.lease(id, address, |opened| Purpose::Periodic { opened })
    }

    /// `purpose`: whether the entry of the box is new decides it.
    fn lease(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
        purpose: impl FnOnce(bool) -> Purpose,
    ) -> Result<Lease, BoxError> {
        let limits = &self.shared.limits;
        let mut entries = self.shared.entries.lock();
        let known = entries.get(id).filter(|entry| entry.address == address);
        let purpose = purpose(known.is_none());
        let entry = if let Some(entry) = known {
            Arc::clone(entry)
        } else {
            if entries.len() >= limits.box_connections {
                evict_oldest(&mut entries)
                    .then_some(())
                    .ok_or(BoxError::Busy(limits.box_connections))?;
            }
            let entry = Arc::new(Entry {
                address,
                sessions: Arc::new(Semaphore::new(limits.sessions_per_box)),
                newest: Mutex::new(Attempt::new(1)),
                used_at: Mutex::new(Instant::now()),
            });
            // Another address means that the box was created again. Leases of the old entry
            // keep it alive as long as they are held.
            entries.insert(id.clone(), Arc::clone(&entry));
            entry
        };
        Ok(Lease {
            id: id.clone(),
            boxes: self.clone(),
            entry,
            purpose,
            _session: None,
        })
    }

    /// Removes idle boxes, until shutdown.
    pub async fn evict_idle(&self, cluster: &str, shutdown: CancellationToken) {
        let period = (self.shared.limits.box_idle / 4).max(Duration::from_millis(100));
        let mut tick = tokio::time::interval(period);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let idle = self.shared.limits.box_idle;
            let mut entries = self.shared.entries.lock();
            entries.retain(|_, entry| is_leased(entry) || entry.last_used().elapsed() < idle);
            metrics::connections(cluster, entries.len());
        }
    }

    /// The number of kept boxes, leased and idle.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.entries.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn dial(&self, id: &EnvironmentId, address: SocketAddr) -> Result<BoxClient, BoxError> {
        let token = BoxToken::derive(self.shared.secret.bytes(), id)
            .map_err(|error| BoxError::Credential(error.to_string()))?;
        let dialled = async {
            let stream = self.shared.connector.connect(id, address).await?;
            let client = client::connect(stream, &token).await?;
            Ok(client.max_decoding_message_size(MAX_REPLY_BYTES))
        };
        tokio::time::timeout(CONNECT_DEADLINE, dialled)
            .await
            .unwrap_or_else(|_| Err(BoxError::Cluster("no answer within the deadline".into())))
    }
}

impl Attempt {
    fn new(number: u64) -> Arc<Self> {
        let client = OnceCell::new();
        Arc::new(Self { number, client })
    }
}

impl Entry {
    fn last_used(&self) -> Instant {
        *self.used_at.lock()
    }
}

/// Whether the entry has a holder besides the map. Leases are made under the map's lock.
fn is_leased(entry: &Arc<Entry>) -> bool {
    Arc::strong_count(entry) > 1
}

/// Removes the box that has been idle longest; `false` when all are leased.
fn evict_oldest(entries: &mut HashMap<EnvironmentId, Arc<Entry>>) -> bool {
    let oldest = entries
        .iter()
        .filter(|(_, entry)| !is_leased(entry))
        .min_by_key(|(_, entry)| entry.last_used())
        .map(|(id, _)| id.clone());
    oldest.is_some_and(|id| entries.remove(&id).is_some())
}

impl Lease {
    #[must_use]
    pub fn id(&self) -> &EnvironmentId {
        &self.id
    }

    #[must_use]
    pub fn spans(&self) -> &BoxSpans {
        &self.boxes.shared.spans
    }

    /// The box's connection; connects when there is none.
    ///
    /// # Errors
    /// [`BoxError::Unreachable`] when nothing listens at the address,
    /// [`BoxError::Cluster`] when the cluster does not answer within the deadline.
    pub async fn connection(&self) -> Result<Connection, BoxError> {
        let attempt = Arc::clone(&self.entry.newest.lock());
        let dialled = attempt
            .client
            .get_or_try_init(|| self.boxes.dial(&self.id, self.entry.address));
        Ok(Connection {
            client: dialled.await?.clone(),
            number: attempt.number,
        })
    }

    /// Marks the connection of this number as failed: the next call opens another.
    pub fn mark_lost(&self, number: u64) {
        let mut newest = self.entry.newest.lock();
        if newest.number == number {
            *newest = Attempt::new(number + 1);
        }
    }

    /// Removes the box, unless another lease is held.
    fn remove_unleased(&self) {
        let mut entries = self.boxes.shared.entries.lock();
        let is_kept = |kept: &Arc<Entry>| Arc::ptr_eq(kept, &self.entry);
        // The holders of an entry that nobody else leases are the map and this lease.
        if entries.get(&self.id).is_some_and(is_kept) && Arc::strong_count(&self.entry) == 2 {
            entries.remove(&self.id);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.purpose {
            Purpose::Use => *self.entry.used_at.lock() = Instant::now(),
            Purpose::Periodic { opened: true } => self.remove_unleased(),
            Purpose::Periodic { opened: false } => {}
        }
    }
}

#[cfg(test)]
mod tests;
