//! Archives in the JetStream object store.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::subjects::OUTPUT_BUCKET;
use async_nats::jetstream::object_store::{
    GetErrorKind, InfoErrorKind, ObjectMetadata, ObjectStore,
};
use tokio::io::AsyncReadExt as _;

use crate::archive::object::{self, MalformedLine};

/// The deadline of each operation on the object store.
const DEADLINE: Duration = Duration::from_secs(5);
/// More than [`super::ARCHIVE_BYTES`] can take as JSON, in bytes.
const MAX_OBJECT_BYTES: u64 = 16 * 1024 * 1024;
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
        let stored = bounded("look up an object", async {
            match store.info(id.as_str()).await {
                Ok(info) => Ok(Some(info.metadata)),
                Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
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
        let found = bounded("get an object", async {
            match store.get(id.as_str()).await {
                Ok(found) => Ok(Some(found)),
                Err(error) if error.kind() == GetErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
        let Some(found) = found else { return Ok(None) };
        let mut bytes = Vec::new();
        let mut reader = found.take(MAX_OBJECT_BYTES);
        bounded("read an object", reader.read_to_end(&mut bytes)).await?;
        Ok(Some(object::decode(&bytes)?))
    }

    async fn store(&self) -> Result<ObjectStore, ArchiveError> {
        bounded(
            "open the bucket",
            self.bus.jetstream().get_object_store(OUTPUT_BUCKET),
        )
        .await
    }
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
