//! The metrics of the pool. The durations of statements are those of their spans, which
//! `shared/service` records.

use std::time::Duration;

use agentbox_metrics::{Counter, Gauge, Label, NO_LABELS, Unit};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(5);

agentbox_metrics::metrics! {
    static CONNECTIONS: Gauge<1> = Gauge::new(
        "agentbox_db_client_connection_count",
        Unit::Count,
        [Label::one_of("db_client_connection_state", &["idle", "used"])],
        "Connections to Postgres, by state",
    );
    static CONNECTIONS_MAX: Gauge = Gauge::new(
        "agentbox_db_client_connection_max",
        Unit::Count,
        [],
        "The most connections to Postgres that this process may have",
    );
    static ERRORS: Counter<1> = Counter::new(
        "agentbox_db_client_errors_total",
        Unit::Count,
        [Label::one_of("error_type", &["unavailable", "internal"])],
        "Requests that failed because of Postgres: it could not be reached or was overloaded, or a \
         statement is wrong",
    );
}

/// Reports the connections of `pool` until `shutdown`.
pub async fn report_connections(pool: DatabaseConnection, shutdown: CancellationToken) {
    agentbox_metrics::describe(METRICS);
    while !shutdown.is_cancelled() {
        let connections = pool.get_postgres_connection_pool();
        let idle = u32::try_from(connections.num_idle()).unwrap_or(u32::MAX);
        let used = connections.size().saturating_sub(idle);
        CONNECTIONS.set(f64::from(idle), ["idle"]);
        CONNECTIONS.set(f64::from(used), ["used"]);
        let max = connections.options().get_max_connections();
        CONNECTIONS_MAX.set(f64::from(max), NO_LABELS);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// `kind`: `unavailable` or `internal`.
pub(crate) fn failed(kind: &'static str) {
    ERRORS.add(1, [kind]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("database", METRICS).unwrap();
    }
}
