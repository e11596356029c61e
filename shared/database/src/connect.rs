//! A pool of a fixed size whose connections work in one schema.
//!
//! All connections are opened before the first request, and kept as long as they work. Opening
//! one takes several round trips and a new process of Postgres. On a busy machine that is longer
//! than a request may wait, and a request that opens a connection does not get one that becomes
//! free meanwhile.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr, sqlx};
use tokio::time::Instant;

use crate::DatabaseError;

/// How long a request may wait for a connection: less than its caller waits for an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was idle for longer is tested before a request gets it. Every connection is tested
/// when it returns to the pool, so that one in steady use needs no second round trip for each statement.
const TEST_AFTER_IDLE: Duration = Duration::from_millis(100);
/// A statement that takes longer is cancelled: something is wrong.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transaction whose owner was killed keeps its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the first connections are retried: Postgres may be starting too.
const START_DEADLINE: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Opens a pool of `connections` to `url`, with `schema` as the search path.
///
/// # Errors
/// When Postgres cannot be reached within half a minute, and at once when it cannot be verified.
pub async fn connect(
    url: &str,
    schema: &'static str,
    connections: u32,
) -> Result<DatabaseConnection, DatabaseError> {
    connect_within(url, schema, connections, ACQUIRE_TIMEOUT).await
}

/// As [`connect`], where a request waits at most `acquire_timeout` for a connection. A test waits longer
/// than its machine stalls.
///
/// # Errors
/// As [`connect`].
pub async fn connect_within(
    url: &str,
    schema: &'static str,
    connections: u32,
    acquire_timeout: Duration,
) -> Result<DatabaseConnection, DatabaseError> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(acquire_timeout)
        .test_before_acquire_if_idle_for(TEST_AFTER_IDLE)
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
                // The statements are short, so parallel workers cost more than they save. With
                // workers Postgres also prefers a scan of the whole table to an index.
                ("max_parallel_workers_per_gather", "0".to_owned()),
            ])
        });

    let failed = |source| DatabaseError::Connect { schema, source };
    let pool = Database::connect(options).await.map_err(failed)?;
    open_all(&pool, connections).await.map_err(failed)?;
    Ok(pool)
}

/// Opens the connections one after the other, so that each has the whole acquire timeout. Fails
/// only when none can be opened: a service can work with fewer than configured.
async fn open_all(pool: &DatabaseConnection, connections: u32) -> Result<(), DbErr> {
    let started_at = Instant::now();
    let mut opened = Vec::new();
    while opened.len() < connections as usize {
        match pool.get_postgres_connection_pool().acquire().await {
            Ok(connection) => opened.push(connection),
            Err(error) if started_at.elapsed() < START_DEADLINE && !is_tls_refusal(&error) => {
                tracing::info!(error = %ErrorChain(&error), opened = opened.len(), "Postgres connection not opened; retried");
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(error) if opened.is_empty() => {
                return Err(DbErr::Conn(RuntimeErr::SqlxError(error.into())));
            }
            Err(error) => {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    opened = opened.len(),
                    configured = connections,
                    "fewer Postgres connections opened than configured"
                );
                break;
            }
        }
    }
    Ok(())
}

/// Whether the server has no TLS, or a certificate that is not accepted: a retry does not help.
fn is_tls_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        // The kind of the errors of rustls.
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}
