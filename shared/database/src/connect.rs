//! A pool of a fixed size whose connections work in one schema.
//!
//! All are made before the first request, and kept as long as they work: making one takes
//! several round trips and a process of Postgres', which on a busy machine is longer than a
//! request may wait, and a request that makes one waits for that one alone, whatever becomes
//! free meanwhile.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr};
use tokio::time::Instant;

use crate::DatabaseError;

/// How long a request may wait for a connection: less than its caller waits for an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// No statement of ours takes this long unless something is wrong.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction whose owner was killed keeps its locks no longer than this.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long connections are tried for at the start: Postgres may be starting too.
const START_DEADLINE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(500);

/// Connects to `url`, with `schema` as the search path.
///
/// # Errors
/// When Postgres cannot be reached within half a minute.
pub async fn connect(
    url: &str,
    schema: &'static str,
    connections: u32,
) -> Result<DatabaseConnection, DatabaseError> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy(true)
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

    let failed = |source| DatabaseError::Connect { schema, source };
    let pool = Database::connect(options).await.map_err(failed)?;
    make_all(&pool, connections).await.map_err(failed)?;
    Ok(pool)
}

/// One after the other, so that each has the whole of the pool's timeout. Fewer than asked for
/// are no reason not to serve; none are.
async fn make_all(pool: &DatabaseConnection, connections: u32) -> Result<(), DbErr> {
    let begun = Instant::now();
    let mut made = Vec::new();
    while made.len() < connections as usize {
        match pool.get_postgres_connection_pool().acquire().await {
            Ok(connection) => made.push(connection),
            Err(error) if begun.elapsed() < START_DEADLINE => {
                tracing::info!(error = %ErrorChain(&error), made = made.len(), "Postgres gives no connection yet");
                tokio::time::sleep(START_PAUSE).await;
            }
            Err(error) if made.is_empty() => {
                return Err(DbErr::Conn(RuntimeErr::SqlxError(error.into())));
            }
            Err(error) => {
                let (made, wanted) = (made.len(), connections);
                tracing::warn!(error = %ErrorChain(&error), made, wanted, "Postgres gives fewer connections than wanted");
                break;
            }
        }
    }
    Ok(())
}
