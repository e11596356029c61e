//! A bounded pool whose connections work in one schema.

use std::time::Duration;

use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use crate::DatabaseError;

/// How long a request may wait for a connection: less than its caller waits for an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Made before a request needs them, and kept: making one takes several round trips.
const READY_CONNECTIONS: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of ours takes this long unless something is wrong.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction whose owner was killed keeps its locks no longer than this.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the first connection is tried for: Postgres may be starting too.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Connects to `url`, with `schema` as the search path.
///
/// # Errors
/// When Postgres cannot be reached within half a minute.
pub async fn connect(
    url: &str,
    schema: &'static str,
    max_connections: u32,
) -> Result<DatabaseConnection, DatabaseError> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(max_connections)
        .min_connections(READY_CONNECTIONS.min(max_connections))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .set_schema_search_path(schema)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |options| {
            options.application_name("agentbox").options([
                (
                    "statement_timeout",
                    STATEMENT_TIMEOUT.as_millis().to_string(),
                ),
                (
                    "idle_in_transaction_session_timeout",
                    IDLE_IN_TRANSACTION_TIMEOUT.as_millis().to_string(),
                ),
                // Our statements are short: workers would cost more than they bring, and
                // with them Postgres prefers reading a whole table to walking an index.
                ("max_parallel_workers_per_gather", "0".to_owned()),
            ])
        });

    let begun = tokio::time::Instant::now();
    loop {
        match Database::connect(options.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(source) if begun.elapsed() > START_DEADLINE => {
                return Err(DatabaseError::Connect { schema, source });
            }
            Err(error) => {
                tracing::info!(%error, schema, "Postgres is not there yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
