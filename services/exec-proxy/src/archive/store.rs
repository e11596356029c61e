//! Archives in the JetStream object store.
//!
//! They are read message by message ([`Chunks`]). The client library reads an object with a consumer,
//! and the exec-proxy may not create one: JetStream would deliver the archive's bytes, which a box has
//! written, to any subject that the consumer names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::subjects::OUTPUT_BUCKET;
use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use tokio::sync::Semaphore;

use crate::archive::chunks::Chunks;
use crate::archive::object::{self, MalformedLine};

/// The deadline of each operation on the object store.
const DEADLINE: Duration = Duration::from_secs(5);
/// The limit for boxes whose executions are copied at the same time. Each copy is in memory.
const COPIES_AT_ONCE: usize = 8;
/// The metadata key of the last entry's sequence.
const LAST_SEQUENCE: &str = "last_sequence";
const ENTRIES: &str = "entries";

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the object store failed to {operation}")]
    Store {
        operation: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the object store did not {0} within the deadline")]
    Deadline(&'static str),
    #[error("the archive cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("the archive is malformed")]
    Malformed(#[from] MalformedLine),
    /// For example because it was replaced while it was read.
    #[error("the archive has {found} bytes instead of {expected}")]
    Incomplete { found: usize, expected: usize },
    #[error("the archive has {size} bytes, more than {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("the archive contains a message that cannot be decoded")]
    Protobuf(#[from] prost::DecodeError),
    #[error("the archive is not a sequence of messages")]
    MalformedMessage,
    #[error("the archive has the format `{0}`, which this version cannot read")]
    UnknownFormat(String),
}

/// The archives of every cluster. Clones share the bus and the limits.
#[derive(Clone)]
pub struct Archive {
    pub(super) bus: Bus,
    pub(super) copies: Arc<Semaphore>,
    /// The bytes of output of executions that are stored of one environment.
    pub(super) output_bytes: u64,
}

impl Archive {
    #[must_use]
    pub fn new(bus: Bus, output_bytes: u64) -> Self {
        Self {
            bus,
            copies: Arc::new(Semaphore::new(COPIES_AT_ONCE)),
            output_bytes,
        }
    }

    /// Stores `entries`, oldest first, unless the stored archive ends at the same entry or a
    /// later one. Returns the number of stored entries.
    ///
    /// # Errors
    /// When the object store fails, or misses the deadline.
    pub async fn put(&self, id: &EnvironmentId, entries: &[LogEntry]) -> Result<u64, ArchiveError> {
        let last = entries.last().map_or(0, |entry| entry.sequence);
        let stored = self.look_up(id.as_str()).await?.map(|info| info.metadata);
        let number = |metadata: &HashMap<String, String>, key: &str| {
            metadata
                .get(key)
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0)
        };
        if let Some(stored) = &stored
            && !object::replaces(last, Some(number(stored, LAST_SEQUENCE)))
        {
            return Ok(number(stored, ENTRIES));
        }
        let count = entries.len() as u64;
        let metadata = HashMap::from([
            (LAST_SEQUENCE.to_owned(), last.to_string()),
            (ENTRIES.to_owned(), count.to_string()),
        ]);
        let bytes = object::encode(entries)?;
        self.put_object(id.to_string(), metadata, &bytes).await?;
        Ok(count)
    }

    /// The stored entries, oldest first; `None` when there is no archive, or it has expired.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline, or the object is malformed.
    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Vec<LogEntry>>, ArchiveError> {
        let Some(info) = self.look_up(id.as_str()).await? else {
            return Ok(None);
        };
        let bytes = tokio::time::timeout(DEADLINE, self.read(&info))
            .await
            .map_err(|_| ArchiveError::Deadline("read an object"))??;
        Ok(Some(object::decode(&bytes)?))
    }

    /// Whether there is an archive: then the environment has ended.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline.
    pub async fn exists(&self, id: &EnvironmentId) -> Result<bool, ArchiveError> {
        Ok(self.look_up(id.as_str()).await?.is_some())
    }

    async fn read(&self, info: &ObjectInfo) -> Result<Vec<u8>, ArchiveError> {
        let mut chunks = Chunks::open(&self.bus, info).await?;
        let mut bytes = Vec::with_capacity(info.size);
        while let Some(chunk) = chunks.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Stores an object, or replaces it.
    pub(super) async fn put_object(
        &self,
        name: String,
        metadata: HashMap<String, String>,
        mut bytes: &[u8],
    ) -> Result<(), ArchiveError> {
        let metadata = ObjectMetadata {
            name,
            metadata,
            ..ObjectMetadata::default()
        };
        let store = self.store().await?;
        within_deadline("store an object", store.put(metadata, &mut bytes)).await?;
        Ok(())
    }

    /// The description of an object; `None` when there is none.
    pub(super) async fn look_up(&self, name: &str) -> Result<Option<ObjectInfo>, ArchiveError> {
        let store = self.store().await?;
        within_deadline("look up an object", async {
            match store.info(name).await {
                Ok(info) if info.deleted => Ok(None),
                Ok(info) => Ok(Some(info)),
                Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn store(&self) -> Result<ObjectStore, ArchiveError> {
        within_deadline(
            "open the bucket",
            self.bus.jetstream().get_object_store(OUTPUT_BUCKET),
        )
        .await
    }
}

/// Performs one operation on the object store, within its deadline.
pub(super) async fn within_deadline<T, E>(
    operation: &'static str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, ArchiveError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    tokio::time::timeout(DEADLINE, step)
        .await
        .map_err(|_| ArchiveError::Deadline(operation))?
        .map_err(|source| ArchiveError::Store {
            operation,
            source: Box::new(source),
        })
}
