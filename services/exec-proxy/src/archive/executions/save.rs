//! Stores the executions of an environment: once from its boxd, before the box is stopped, and once
//! from the files that outlive the box.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::executions::OutputReader;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::StatusReason;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::ArchiveRequest;
use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;

use crate::archive::executions::collect::collect;
use crate::archive::executions::objects::StoredExecutions;
use crate::archive::executions::record::{self, Ending};
use crate::archive::executions::saved;
use crate::archive::{Archive, ArchiveError};
use crate::clusters::Cluster;
use crate::executions::counted;
use crate::metrics;

/// The deadline of a request before the stop: shorter than the caller waits. A later one could replace
/// what is stored after the end.
const BEFORE_STOP_DEADLINE: Duration = Duration::from_secs(4);

/// Stores the executions that the box has now, together with those that are stored already.
///
/// # Errors
/// `Unavailable` when the cluster or the object store does not answer; the caller retries.
pub async fn save(
    cluster: &Cluster,
    archive: &Archive,
    request: &ArchiveRequest,
) -> Result<(), Error> {
    let id = &request.environment;
    if !request.before_stop {
        let newer = from_files(cluster, archive, id).await?;
        return add(archive, request, newer).await;
    }
    let Some(address) = request.address else {
        return Ok(());
    };
    let saved = async {
        let newer = from_boxd(cluster, archive, id, address).await;
        add(archive, request, newer).await
    };
    tokio::time::timeout(BEFORE_STOP_DEADLINE, saved)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(
                ErrorCode::Unavailable,
                "the executions were not archived within the deadline",
            ))
        })
}

/// Adds records to those that are stored.
async fn add(
    archive: &Archive,
    request: &ArchiveRequest,
    newer: Vec<Execution>,
) -> Result<(), Error> {
    let id = &request.environment;
    if request.before_stop && newer.is_empty() {
        return Ok(());
    }
    let stored = archive.executions(id).await.map_err(not_stored)?;
    let stored = stored.unwrap_or_default().records;
    let records = record::merge(stored, newer);
    if records.is_empty() {
        return Ok(());
    }
    let executions = StoredExecutions {
        records,
        ending: ending(request),
    };
    archive
        .put_executions(id, &executions)
        .await
        .map_err(not_stored)?;
    if !request.before_stop {
        for execution in &executions.records {
            counted::environment_ended(id, &execution.id, execution.status());
        }
    }
    tracing::info!(environment.id = %id, executions = executions.records.len(), "executions archived");
    Ok(())
}

fn ending(request: &ArchiveRequest) -> Ending {
    Ending {
        status_reason: request
            .status_reason
            .map_or("", StatusReason::as_str)
            .to_owned(),
        ended_unix_nanos: request.ended_at.and_then(|at| at.timestamp_nanos_opt()),
    }
}

/// The records, from boxd. Stores their output. Empty when boxd does not answer: the journal has them.
async fn from_boxd(
    cluster: &Cluster,
    archive: &Archive,
    id: &EnvironmentId,
    address: SocketAddr,
) -> Vec<Execution> {
    // Held until the output is stored. Never closed.
    let _copy = archive.copies.acquire().await;
    let collected = match cluster.boxes.lease_request(id, address) {
        Ok(lease) => collect(&lease, archive.output_bytes).await,
        Err(error) => Err(error),
    };
    match collected {
        Ok(collected) => {
            if !collected.output.is_empty() {
                store_output(archive, id, &collected.output).await;
            }
            collected.records
        }
        Err(error) => {
            tracing::info!(error = %ErrorChain(&error), environment.id = %id, "boxd sent no executions");
            Vec::new()
        }
    }
}

/// Stores output if there is room. The records are stored without it too.
async fn store_output(archive: &Archive, id: &EnvironmentId, output: &[u8]) {
    let stored = match archive.has_room_for_output().await {
        Ok(true) => archive.put_execution_output(id, output).await,
        Ok(false) => {
            metrics::failed("archive_output", ErrorCode::Unavailable);
            tracing::warn!(environment.id = %id, "the output of executions is not archived: the bucket is half full");
            return;
        }
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        metrics::failed("archive_output", ErrorCode::Unavailable);
        tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "the output of executions is not archived");
    }
}

/// The records, from the files that outlive the box. Stores their output unless that of boxd is stored.
async fn from_files(
    cluster: &Cluster,
    archive: &Archive,
    id: &EnvironmentId,
) -> Result<Vec<Execution>, Error> {
    let connector = cluster.boxes.connector();
    let journal = connector.last_executions(id).await.map_err(not_read)?;
    let mut records: Vec<Execution> = journal.into_iter().filter_map(record::bounded).collect();
    if records.is_empty() {
        return Ok(records);
    }
    let stored = archive.execution_output(id).await.map_err(not_stored)?;
    if stored.is_none() {
        // Held until the output is stored. Never closed.
        let _copy = archive.copies.acquire().await;
        let saved = connector.last_execution_output(id).await;
        let saved = OutputReader::new(saved.map_err(not_read)?);
        let output = saved::select(&mut records, saved, archive.output_bytes);
        if !output.is_empty() {
            store_output(archive, id, &output).await;
        }
    }
    Ok(records)
}

fn not_read(error: RuntimeError) -> Error {
    tracing::warn!(error = %ErrorChain(&error), "reading the last executions failed");
    Error::new(
        ErrorCode::Unavailable,
        "the environment's cluster does not answer",
    )
}

fn not_stored(error: ArchiveError) -> Error {
    tracing::warn!(error = %ErrorChain(&error), "archiving executions failed");
    Error::new(ErrorCode::Unavailable, "the executions cannot be archived")
}
