//! Archives in the JetStream object store.
//!
//! They are read message by message. The client library reads an object with a consumer, and
//! the exec-proxy may not create one: JetStream would deliver the archive's bytes, which a box has
//! written, to any subject that the consumer names.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::subjects::{OUTPUT_BUCKET, OUTPUT_STREAM};
use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};

use crate::archive::object::{self, MalformedLine};

/// The deadline of each operation on the object store.
const DEADLINE: Duration = Duration::from_secs(5);
/// More than [`super::ARCHIVE_BYTES`] can take as JSON, in bytes.
const MAX_OBJECT_BYTES: usize = 16 * 1024 * 1024;
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
    #[error("the archive has {0} bytes, more than {max}", max = MAX_OBJECT_BYTES)]
    TooLarge(usize),
}

/// The archives of every cluster. Clones share the bus.
#[derive(Clone)]
pub struct Archive {
    bus: Bus,
}

impl Archive {
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// Stores `entries`, oldest first, unless the stored archive ends at the same entry or a
    /// later one. Returns the number of stored entries.
    ///
    /// # Errors
    /// When the object store fails, or misses the deadline.
    pub async fn put(&self, id: &EnvironmentId, entries: &[LogEntry]) -> Result<u64, ArchiveError> {
        let store = self.store().await?;
        let last = entries.last().map_or(0, |entry| entry.sequence);
        let stored = look_up(&store, id).await?.map(|info| info.metadata);
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
        let metadata = ObjectMetadata {
            name: id.to_string(),
            metadata: HashMap::from([
                (LAST_SEQUENCE.to_owned(), last.to_string()),
                (ENTRIES.to_owned(), count.to_string()),
            ]),
            ..ObjectMetadata::default()
        };
        let bytes = object::encode(entries)?;
        bounded(
            "store an object",
            store.put(metadata, &mut bytes.as_slice()),
        )
        .await?;
        Ok(count)
    }

    /// The stored entries, oldest first; `None` when there is no archive, or it has expired.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline, or the object is malformed.
    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Vec<LogEntry>>, ArchiveError> {
        let store = self.store().await?;
        let Some(info) = look_up(&store, id).await? else {
            return Ok(None);
        };
        let bytes = tokio::time::timeout(DEADLINE, self.read(&info))
            .await
            .map_err(|_| ArchiveError::Deadline("read an object"))??;
        Ok(Some(object::decode(&bytes)?))
    }

    /// The chunks of an object, one after the other.
    async fn read(&self, info: &ObjectInfo) -> Result<Vec<u8>, ArchiveError> {
        if info.size > MAX_OBJECT_BYTES {
            return Err(ArchiveError::TooLarge(info.size));
        }
        let stream = bounded(
            "open the bucket",
            self.bus.jetstream().get_stream_no_info(OUTPUT_STREAM),
        )
        .await?;
        let subject = format!("$O.{OUTPUT_BUCKET}.C.{}", info.nuid);
        let mut bytes = Vec::with_capacity(info.size);
        let mut next = 1;
        for _ in 0..info.chunks {
            let chunk = bounded(
                "read an object",
                stream.get_first_raw_message_by_subject(&subject, next),
            )
            .await?;
            next = chunk.sequence + 1;
            bytes.extend_from_slice(&chunk.payload);
            if bytes.len() > info.size {
                break;
            }
        }
        if bytes.len() != info.size {
            return Err(ArchiveError::Incomplete {
                found: bytes.len(),
                expected: info.size,
            });
        }
        Ok(bytes)
    }

    async fn store(&self) -> Result<ObjectStore, ArchiveError> {
        bounded(
            "open the bucket",
            self.bus.jetstream().get_object_store(OUTPUT_BUCKET),
        )
        .await
    }
}

/// The description of an archive; `None` when there is none.
async fn look_up(
    store: &ObjectStore,
    id: &EnvironmentId,
) -> Result<Option<ObjectInfo>, ArchiveError> {
    bounded("look up an object", async {
        match store.info(id.as_str()).await {
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

async fn bounded<T, E>(
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
