//! The last output of boxes that are gone: a JetStream object per environment, kept for
//! the bucket's age (7 days).
//!
//! * I1. An archive is replaced only by one that knows more: repeating the request, also
//!   when the box is already gone, loses nothing.
//! * I2. An environment that printed nothing has an archive too: that it exists says that
//!   the environment has ended.
//! * I3. An answer is given after the object is stored.

pub mod object;
mod store;

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ArchiveReply, ArchiveRequest};
use agentbox_contracts::logs::LogEntry;

pub use store::{Archive, ArchiveError};

use crate::clusters::Cluster;
use crate::{logs, metrics};

/// Of lines, the newest ones; with [`object::ENTRY_COST`] for each.
pub const ARCHIVE_BYTES: usize = 1024 * 1024;
/// How long a box that still runs may take to hand over its output.
const LIVE_DEADLINE: Duration = Duration::from_secs(2);

/// Stores what is left of an environment's output.
///
/// # Errors
/// `Unavailable` when the cluster or the object store does not answer: ask again.
pub async fn answer(
    cluster: &Cluster,
    archive: &Archive,
    request: ArchiveRequest,
) -> Result<ArchiveReply, Error> {
    store_last_output(cluster, archive, &request)
        .await
        .inspect_err(|error| metrics::failed("archive", error.code))
}

async fn store_last_output(
    cluster: &Cluster,
    archive: &Archive,
    request: &ArchiveRequest,
) -> Result<ArchiveReply, Error> {
    let entries = last_output(cluster, request).await?;
    let entries = object::newest(entries, ARCHIVE_BYTES);
    let count = archive
        .put(&request.environment, &entries)
        .await
        .map_err(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the archive was not written"
            );
            Error::new(
                ErrorCode::Unavailable,
                "the output archive cannot be written",
            )
        })?;
    tracing::info!(environment = %request.environment, entries = count, "output archived");
    Ok(ArchiveReply { entries: count })
}

/// From the driver, which reads what outlives the box; from boxd where it still runs.
async fn last_output(cluster: &Cluster, request: &ArchiveRequest) -> Result<Vec<LogEntry>, Error> {
    let id = &request.environment;
    let kept = cluster
        .boxes
        .connector()
        .last_output(id, ARCHIVE_BYTES)
        .await
        .map_err(|error| {
            tracing::warn!(%error, environment = %id, "the last output cannot be read");
            Error::new(
                ErrorCode::Unavailable,
                "the environment's cluster does not answer",
            )
        })?;
    let Some(address) = request.address.filter(|_| kept.is_empty()) else {
        return Ok(kept);
    };
    let live = logs::kept_by_boxd(&cluster.boxes, id, address);
    match tokio::time::timeout(LIVE_DEADLINE, live).await {
        Ok(Ok(entries)) => Ok(entries),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no output from boxd either");
            Ok(kept)
        }
        Err(_) => Ok(kept),
    }
}
