//! Removing what has expired.
//!
//! * I1. Correctness never depends on it: every query tests the time itself.
//! * I2. One replica sweeps at a time, in batches that hold no lock for long.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio_util::sync::CancellationToken;

use crate::error::StoreError;
use crate::metrics;
use crate::sql::{seconds, statement};

/// Rows removed in one transaction.
const BATCH: i64 = 1_000;
/// How long an expired login or ticket stays, for whoever looks into what happened.
const GRACE: Duration = Duration::from_secs(3_600);

/// One table and what has no use in it any more. `$1`: seconds of retention, `$2`: rows.
struct Rule {
    table: &'static str,
    sql: &'static str,
    retention: Duration,
}

pub struct Sweeper {
    database: DatabaseConnection,
    rules: [Rule; 5],
}

impl Sweeper {
    pub fn new(database: DatabaseConnection, keys: Duration, audit: Duration) -> Self {
        let rules = [
            Rule {
                table: "tickets",
                sql: "DELETE FROM tickets WHERE hash IN (SELECT hash FROM tickets
                      WHERE expires_at < now() - make_interval(secs => $1) LIMIT $2)",
                retention: GRACE,
            },
            Rule {
                table: "logins",
                sql: "DELETE FROM logins WHERE id IN (SELECT id FROM logins
                      WHERE expires_at < now() - make_interval(secs => $1) LIMIT $2)",
                retention: GRACE,
            },
            Rule {
                table: "api_keys",
                sql: "DELETE FROM api_keys WHERE id IN (SELECT id FROM api_keys
                      WHERE revoked_at < now() - make_interval(secs => $1)
                         OR expires_at < now() - make_interval(secs => $1) LIMIT $2)",
                retention: keys,
            },
            Rule {
                table: "signing_keys",
                sql: "DELETE FROM signing_keys WHERE kid IN (SELECT kid FROM signing_keys
                      WHERE not_after < now() - make_interval(secs => $1) LIMIT $2)",
                retention: GRACE,
            },
            Rule {
                table: "audit",
                sql: "DELETE FROM audit WHERE id IN (SELECT id FROM audit
                      WHERE at < now() - make_interval(secs => $1) LIMIT $2)",
                retention: audit,
            },
        ];
        Self { database, rules }
    }

    /// Sweeps every `interval` until `shutdown`.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(
        self,
        interval: Duration,
        shutdown: CancellationToken,
    ) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            for rule in &self.rules {
                let swept = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    swept = self.sweep(rule) => swept,
                };
                if let Err(error) = swept {
                    tracing::warn!(%error, table = rule.table, "expired rows could not be removed");
                }
            }
        }
    }

    async fn sweep(&self, rule: &Rule) -> Result<(), StoreError> {
        while let Some(rows) = self.batch(rule).await? {
            metrics::swept(rule.table, rows);
            if rows < BATCH.unsigned_abs() {
                break;
            }
        }
        Ok(())
    }

    /// Rows removed; `None` while another replica sweeps.
    #[tracing::instrument(name = "sweep", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "sweep", table = rule.table))]
    async fn batch(&self, rule: &Rule) -> Result<Option<u64>, StoreError> {
        let transaction = agentbox_database::begin(&self.database).await?;
        let row = transaction
            .query_one_raw(statement(
                "SELECT pg_try_advisory_xact_lock(hashtext('agentbox.auth.sweep')) AS mine",
                [],
            ))
            .await?;
        let mine = row.map(|row| row.try_get::<bool>("", "mine")).transpose()?;
        if mine != Some(true) {
            return Ok(None);
        }
        let result = transaction
            .execute_raw(statement(rule.sql, [seconds(rule.retention), BATCH.into()]))
            .await?;
        transaction.commit().await?;
        Ok(Some(result.rows_affected()))
    }
}
