//! The archive: the last output of ended boxes and their [`executions`], in JetStream objects, kept
//! for the bucket's maximum age (7 days).
//!
//! * I1. An archive is replaced only by one that ends at a later entry: repeating the
//!   request loses no entry, also after the box is gone.
//! * I2. An environment without output has an archive too: an archive means that the
//!   environment has ended.
//! * I3. The reply is sent after the objects are stored: the executions first.

mod chunks;
pub mod executions;
pub mod object;
mod store;

use std::time::Duration;

use agentbox_box_protocol::proto::LogsRequest;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ArchiveReply, ArchiveRequest};
use agentbox_contracts::logs::LogEntry;

pub use store::{Archive, ArchiveError};

use crate::clusters::Cluster;
use crate::{boxes, metrics};

/// The size limit of an archive, in bytes: its lines, and [`object::ENTRY_COST`] for each.
pub const ARCHIVE_BYTES: usize = 1024 * 1024;
/// How long a running box may take to send its output.
const LIVE_DEADLINE: Duration = Duration::from_secs(2);

/// Stores an environment's executions and, when its box has ended, its last output.
///
/// # Errors
/// `Unavailable` when the cluster or the object store does not answer; the caller retries.
pub async fn answer(
    cluster: &Cluster,
    archive: &Archive,
    request: ArchiveRequest,
) -> Result<ArchiveReply, Error> {
    store_archive(cluster, archive, &request)
        .await
        .inspect_err(|error| metrics::failed("archive", error.code))
}

async fn store_archive(
    cluster: &Cluster,
    archive: &Archive,
    request: &ArchiveRequest,
) -> Result<ArchiveReply, Error> {
    executions::save(cluster, archive, request).await?;
    if request.before_stop {
        return Ok(ArchiveReply { entries: 0 });
    }
    let entries = last_output(cluster, request).await?;
    let entries = object::newest(entries, ARCHIVE_BYTES);
    let count = archive
        .put(&request.environment, &entries)
        .await
        .map_err(|error| {
            tracing::warn!(
                error = %ErrorChain(&error),
                "writing the archive failed"
            );
            Error::new(
                ErrorCode::Unavailable,
                "the output archive cannot be written",
            )
        })?;
    tracing::info!(environment.id = %request.environment, entries = count, "output archived");
    Ok(ArchiveReply { entries: count })
}

/// The last output, from the driver, which reads the files that outlive the box, or from
/// boxd when the box still runs.
async fn last_output(cluster: &Cluster, request: &ArchiveRequest) -> Result<Vec<LogEntry>, Error> {
    let id = &request.environment;
    let stored = cluster
        .boxes
        .connector()
        .last_output(id, ARCHIVE_BYTES)
        .await
        .map_err(|error| {
            tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "reading the last output failed");
            Error::new(
                ErrorCode::Unavailable,
                "the environment's cluster does not answer",
            )
        })?;
    let Some(address) = request.address.filter(|_| stored.is_empty()) else {
        return Ok(stored);
    };
    let live = async {
        let lease = cluster.boxes.lease_request(id, address)?;
        boxes::logs::read_kept(&lease, LogsRequest::default()).await
    };
    match tokio::time::timeout(LIVE_DEADLINE, live).await {
        Ok(Ok(entries)) => Ok(entries),
        Ok(Err(error)) => {
            tracing::debug!(error = %ErrorChain(&error), "boxd sent no output");
            Ok(stored)
        }
        Err(_) => Ok(stored),
    }
}
