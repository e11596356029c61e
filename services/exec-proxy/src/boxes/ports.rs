//! The listening ports of a box.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::ports::PortList;
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};

/// How long boxd may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The limit for the length of the list.
const MAX_PORTS: usize = 16 * 1024;
/// The size limit of the list, in bytes.
const MAX_LIST_BYTES: usize = 512 * 1024;

/// Asks boxd for the listening ports; once more when the kept connection was lost.
///
/// # Errors
/// As the connection's, and boxd's. [`BoxError::Invalid`] for a list that is too long.
pub async fn list(lease: &Lease) -> Result<PortList, BoxError> {
    let asked = async {
        match list_once(lease).await {
            // A kept connection may have died unnoticed; asking again is harmless.
            Err(BoxError::Lost(_)) => list_once(lease).await,
            other => other,
        }
    };
    let list = tokio::time::timeout(DEADLINE, asked)
        .await
        .unwrap_or_else(|_| Err(BoxError::Cluster("boxd did not list its ports".into())))?;
    if list.ports.len() > MAX_PORTS {
        return Err(BoxError::Invalid("too many ports"));
    }
    Ok(list)
}

async fn list_once(lease: &Lease) -> Result<PortList, BoxError> {
    let span = call_span("Ports");
    let connection = lease.connection().instrument(span.clone()).await?;
    let client = connection.client;
    let mut client = client.max_decoding_message_size(MAX_LIST_BYTES);
    let request = traced(&span, proto::PortsRequest {});
    match client.ports(request).instrument(span).await {
        Ok(list) => Ok(list.into_inner()),
        Err(status) => {
            let error = BoxError::from_status(status);
            if matches!(error, BoxError::Lost(_)) {
                lease.mark_lost(connection.number);
            }
            Err(error)
        }
    }
}
