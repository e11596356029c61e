//! The two objects of an environment's executions, beside that of its main command's output.
//!
//! * `<environment>.executions`: the records, newest first; each is protobuf, after its length. The
//!   metadata has the format and how the environment ends.
//! * `<environment>.execution-output`: [`ExecutionOutput`] messages in the same encoding: for each
//!   execution that has output its id, then its pieces.
//!
//! [`ExecutionOutput`]: agentbox_contracts::executions::ExecutionOutput

use std::collections::HashMap;

use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::OUTPUT_STREAM;
use prost::Message as _;

use crate::archive::chunks::{Chunks, Messages};
use crate::archive::executions::record::{Ending, Records};
use crate::archive::store::{Archive, ArchiveError, within_deadline};

const FORMAT: &str = "format";
const FORMAT_1: &str = "1";
const STATUS_REASON: &str = "status_reason";
const ENDED: &str = "ended_unix_nanos";

/// The archived records of one environment.
#[derive(Debug, Default)]
pub struct StoredExecutions {
    /// Newest first, as boxd has reported them.
    pub records: Vec<Execution>,
    pub ending: Ending,
}

impl Archive {
    /// Stores the records, newest first, instead of those that are stored.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline.
    pub async fn put_executions(
        &self,
        id: &EnvironmentId,
        executions: &StoredExecutions,
    ) -> Result<(), ArchiveError> {
        let ending = &executions.ending;
        let mut metadata = HashMap::from([
            (FORMAT.to_owned(), FORMAT_1.to_owned()),
            (STATUS_REASON.to_owned(), ending.status_reason.clone()),
        ]);
        if let Some(ended) = ending.ended_unix_nanos {
            metadata.insert(ENDED.to_owned(), ended.to_string());
        }
        let records = executions.records.iter();
        let bytes: Vec<u8> = records
            .flat_map(Execution::encode_length_delimited_to_vec)
            .collect();
        self.put_object(records_name(id), metadata, &bytes).await
    }

    /// The stored records; `None` when there are none, or they have expired.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline, or the object is malformed.
    pub async fn executions(
        &self,
        id: &EnvironmentId,
    ) -> Result<Option<StoredExecutions>, ArchiveError> {
        let Some(mut info) = self.look_up(&records_name(id)).await? else {
            return Ok(None);
        };
        let format = info.metadata.remove(FORMAT).unwrap_or_default();
        if format != FORMAT_1 {
            return Err(ArchiveError::UnknownFormat(format));
        }
        let ending = Ending {
            status_reason: info.metadata.remove(STATUS_REASON).unwrap_or_default(),
            ended_unix_nanos: info.metadata.get(ENDED).and_then(|text| text.parse().ok()),
        };
        let mut messages = Messages::new(Chunks::open(&self.bus, &info).await?);
        let mut records = Records::default();
        while let Some(record) = messages.next::<Execution>().await? {
            if !records.push(record) {
                break;
            }
        }
        let records = records.into_vec();
        Ok(Some(StoredExecutions { records, ending }))
    }

    /// Stores the output of executions.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline.
    pub async fn put_execution_output(
        &self,
        id: &EnvironmentId,
        output: &[u8],
    ) -> Result<(), ArchiveError> {
        self.put_object(output_name(id), HashMap::new(), output)
            .await
    }

    /// The stored output of executions, to be read message by message.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline.
    pub async fn execution_output(
        &self,
        id: &EnvironmentId,
    ) -> Result<Option<Messages>, ArchiveError> {
        match self.look_up(&output_name(id)).await? {
            Some(info) => Ok(Some(Messages::new(Chunks::open(&self.bus, &info).await?))),
            None => Ok(None),
        }
    }

    /// Whether less than half of the bucket is used. The other half is for records and for the output
    /// of main commands, without which no environment ends in time.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline.
    pub async fn has_room_for_output(&self) -> Result<bool, ArchiveError> {
        let stream = within_deadline(
            "open the bucket",
            self.bus.jetstream().get_stream(OUTPUT_STREAM),
        )
        .await?;
        let info = stream.cached_info();
        let limit = u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX);
        Ok(info.state.bytes < limit / 2)
    }
}

fn records_name(id: &EnvironmentId) -> String {
    format!("{id}.executions")
}

fn output_name(id: &EnvironmentId) -> String {
    format!("{id}.execution-output")
}
