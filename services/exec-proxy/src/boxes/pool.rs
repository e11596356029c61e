//! Connections to boxes: one a box, shared by all calls into it.
//!
//! Owns the connections. Never starts a command.
//!
//! * I1. Callers that need the same new box at once share one connection attempt.
//! * I2. The number of kept boxes and of sessions into one box is bounded.
//! * I3. A connection that failed is never used again: whoever noticed calls
//!   [`Lease::lost`], and the next call makes another.
//! * I4. What nobody has used for the idle time is closed; what is leased is not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentbox_box_protocol::client::{self, BoxClient};
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::BoxConnector;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boxes::{BoxError, BoxSpans};
use crate::config::Limits;
use crate::metrics;
use agentbox_box_protocol::secret::BoxSecret;

/// No attempt to connect takes longer, whatever the driver does.
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
}

/// One box that is known.
struct Entry {
    address: SocketAddr,
    sessions: Arc<Semaphore>,
    connection: tokio::sync::Mutex<Kept>,
    used_at: Mutex<Instant>,
}

#[derive(Default)]
struct Kept {
    /// Of the newest connection; rises with each.
    number: u64,
    client: Option<BoxClient>,
}

/// A connection as one call uses it.
#[derive(Clone)]
pub struct Connection {
    pub client: BoxClient,
    /// Tells it apart from the box's earlier connections; for [`Lease::lost`].
    pub number: u64,
}

/// The right to use one box, held as long as its calls go on.
pub struct Lease {
    id: EnvironmentId,
    boxes: Boxes,
    entry: Arc<Entry>,
    _session: Option<OwnedSemaphorePermit>,
}

impl Boxes {
    /// `spans`: where what boxes tell of their part in a trace goes.
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
            }),
        }
    }

    #[must_use]
    pub fn connector(&self) -> &dyn BoxConnector {
        &*self.shared.connector
    }

    /// For a session into the box: counts towards the box's bound. Connects nothing yet.
    ///
    /// # Errors
    /// [`BoxError::Busy`] when the box, or this process, has no room.
    pub fn lease(&self, id: &EnvironmentId, address: SocketAddr) -> Result<Lease, BoxError> {
        let mut lease = self.borrow(id, address)?;
        let session = Arc::clone(&lease.entry.sessions)
            .try_acquire_owned()
            .map_err(|_| BoxError::Busy(self.shared.limits.sessions_per_box))?;
        lease._session = Some(session);
        Ok(lease)
    }

    /// For one short request, which a box with all its sessions taken still answers.
    ///
    /// # Errors
    /// [`BoxError::Busy`] when this process has no room for another box.
    pub fn borrow(&self, id: &EnvironmentId, address: SocketAddr) -> Result<Lease, BoxError> {
        let limits = &self.shared.limits;
        let mut entries = self.entries();
        let known = entries.get(id).filter(|entry| entry.address == address);
        let entry = if let Some(entry) = known {
            Arc::clone(entry)
        } else {
            if entries.len() >= limits.box_connections {
                make_room(&mut entries)
                    .then_some(())
                    .ok_or(BoxError::Busy(limits.box_connections))?;
            }
            let entry = Arc::new(Entry {
                address,
                sessions: Arc::new(Semaphore::new(limits.sessions_per_box)),
                connection: tokio::sync::Mutex::default(),
                used_at: Mutex::new(Instant::now()),
            });
            // A box that is known under another address is another life of it: those
            // who still use the old one keep it alive for as long as they do.
            entries.insert(id.clone(), Arc::clone(&entry));
            entry
        };
        Ok(Lease {
            id: id.clone(),
            boxes: self.clone(),
            entry,
            _session: None,
        })
    }

    /// Closes what is idle, until shutdown.
    pub async fn keep_tidy(&self, cluster: &str, shutdown: CancellationToken) {
        let period = (self.shared.limits.box_idle / 4).max(Duration::from_millis(100));
        let mut tick = tokio::time::interval(period);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let idle = self.shared.limits.box_idle;
            let mut entries = self.entries();
            entries.retain(|_, entry| is_leased(entry) || entry.last_used().elapsed() < idle);
            metrics::connections(cluster, entries.len());
        }
    }

    /// Boxes that are kept, leased and idle.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<EnvironmentId, Arc<Entry>>> {
        // Each change of the map is one call: whole whatever panicked.
        self.shared
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self, id: &EnvironmentId, address: SocketAddr) -> Result<BoxClient, BoxError> {
        let token = BoxToken::derive(self.shared.secret.bytes(), id)
            .map_err(|error| BoxError::Credential(error.to_string()))?;
        let dialled = async {
            let stream = self.shared.connector.connect(id, address).await?;
            Ok(client::connect(stream, &token).await?)
        };
        tokio::time::timeout(CONNECT_DEADLINE, dialled)
            .await
            .unwrap_or_else(|_| Err(BoxError::Cluster("no answer in time".into())))
    }
}

impl Entry {
    fn last_used(&self) -> Instant {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leases are taken under the map's lock: one holder is the map itself.
fn is_leased(entry: &Arc<Entry>) -> bool {
    Arc::strong_count(entry) > 1
}

/// Forgets the box that has been idle longest; `false` when every one is in use.
fn make_room(entries: &mut HashMap<EnvironmentId, Arc<Entry>>) -> bool {
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

    /// The box's connection; made now if there is none.
    ///
    /// # Errors
    /// [`BoxError::Unreachable`] when nothing listens there, [`BoxError::Cluster`] when
    /// the driver cannot tell, or not in time.
    pub async fn connection(&self) -> Result<Connection, BoxError> {
        let mut kept = self.entry.connection.lock().await;
        let client = match &kept.client {
            Some(client) => client.clone(),
            None => {
                let client = self.boxes.dial(&self.id, self.entry.address).await?;
                kept.number += 1;
                kept.client = Some(client.clone());
                client
            }
        };
        Ok(Connection {
            client,
            number: kept.number,
        })
    }

    /// Connection `number` failed: no call uses it again.
    pub async fn lost(&self, number: u64) {
        let mut kept = self.entry.connection.lock().await;
        if kept.number == number {
            kept.client = None;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self
            .entry
            .used_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}
