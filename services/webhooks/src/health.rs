//! Readiness: Postgres answers.

use std::time::Duration;

use agentbox_service::Component;
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(3);

/// Reports the readiness of this replica until `shutdown`.
///
/// # Errors
/// None: a replica that is not ready reports the reason and continues.
pub async fn watch(
    database: DatabaseConnection,
    component: Component,
    shutdown: CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        match tokio::time::timeout(DEADLINE, database.ping()).await {
            Ok(Ok(())) => component.ready(),
            _ => component.not_ready("Postgres does not answer"),
        }
    }
}
