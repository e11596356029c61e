//! The variables of environments: encrypted in Postgres, and decrypted only for the box and for
//! the reply to a request for one environment.
//!
//! * I1. A new row has no variable in the clear. [`Store::seal_stored_variables`] seals those of
//!   rows that an older version wrote.
//! * I2. The value is bound to the environment's id, so that it is invalid in another row.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{Environment, EnvironmentRequest};
use agentbox_database::secret::{MasterSecret, Purpose, SecretError};
use agentbox_database::span;
use agentbox_database::sql::statement;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;

use super::unreadable::UnreadableRows;
use super::{Store, StoreError};
use crate::environment::entity::{self, Column, Entity};
use crate::environment::record::{CorruptRow, Record};

/// Rows that are read at a time to be sealed.
const SEAL_BATCH: u64 = 100;

/// The plain text of the column `sealed_variables`, as JSON.
#[derive(Default, Serialize, Deserialize)]
struct Variables {
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    secret_env: BTreeMap<String, String>,
}

impl Variables {
    /// The value of the column for the environment `id`; `None` without variables.
    fn seal(&self, secret: &MasterSecret, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        if self.env.is_empty() && self.secret_env.is_empty() {
            return Ok(None);
        }
        let plain = serde_json::to_vec(self)?;
        let sealed = secret
            .seal(Purpose::Variables, id, &plain)
            .map_err(|source| sealing_error(id, source))?;
        Ok(Some(sealed))
    }

    fn open(secret: &MasterSecret, id: &str, sealed: &[u8]) -> Result<Self, StoreError> {
        let plain = secret
            .open(Purpose::Variables, id, sealed)
            .map_err(|source| sealing_error(id, source))?;
        Ok(serde_json::from_slice(&plain)?)
    }
}

fn sealing_error(id: &str, source: SecretError) -> StoreError {
    StoreError::Sealed {
        id: id.to_owned(),
        source,
    }
}

/// The columns `request` and `sealed_variables` of a new row.
pub(super) fn stored_request(
    secret: &MasterSecret,
    environment: &Environment,
) -> Result<(serde_json::Value, Option<Vec<u8>>), StoreError> {
    let mut request: EnvironmentRequest = environment.request.clone();
    let variables = Variables {
        env: std::mem::take(&mut request.env),
        secret_env: std::mem::take(&mut request.secret_env),
    };
    let sealed = variables.seal(secret, environment.id.as_str())?;
    Ok((serde_json::to_value(request)?, sealed))
}

impl Store {
    /// The environment of `record`, with its variables.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] when they were sealed under another secret.
    pub fn open(&self, record: &Record) -> Result<Environment, StoreError> {
        let mut environment = record.environment.clone();
        // Without the column, the variables of an older row are in its request.
        if let Some(sealed) = &record.sealed_variables {
            let variables = Variables::open(&self.secret, environment.id.as_str(), sealed)?;
            environment.request.env = variables.env;
            environment.request.secret_env = variables.secret_env;
        }
        Ok(environment)
    }

    /// Checks the secret, and seals the variables that an older version stored in the clear.
    /// Returns the number of rows that it sealed.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] or [`StoreError::SealedCredential`] when the newest variables or the
    /// newest credential were sealed under another secret; or when the database fails.
    pub async fn seal_stored_variables(&self) -> Result<u64, StoreError> {
        self.check_secret().await?;
        self.check_credential_secret().await?;
        let mut unreadable = UnreadableRows::default();
        let (mut sealed_rows, mut last) = (0, 0_i64);
        loop {
            let rows = Entity::find()
                .filter(Expr::cust(
                    "sealed_variables IS NULL AND request -> 'env' <> '{}'::jsonb",
                ))
                .filter(Column::Number.gt(last))
                .order_by_asc(Column::Number)
                .limit(SEAL_BATCH)
                .all(&self.database)
                .instrument(span!(SELECT environments))
                .await?;
            if rows.is_empty() {
                unreadable.report();
                return Ok(sealed_rows);
            }
            for row in rows {
                last = row.number;
                if let Some(variables) = unreadable.skip(plain_variables(&row)) {
                    sealed_rows += self.seal_row(&row.id, &variables).await?;
                }
            }
        }
    }

    async fn seal_row(&self, id: &str, variables: &Variables) -> Result<u64, StoreError> {
        // The condition is for another replica that seals the same row.
        let seal = statement(
            "UPDATE environments SET sealed_variables = $2, request = request - 'env'
             WHERE id = $1 AND sealed_variables IS NULL",
            [id.into(), variables.seal(&self.secret, id)?.into()],
        );
        let sealed = self.database.execute_raw(seal);
        let sealed = sealed.instrument(span!(UPDATE environments)).await?;
        Ok(sealed.rows_affected())
    }

    /// Opens the newest sealed variables, so that a replica with another secret does not start.
    async fn check_secret(&self) -> Result<(), StoreError> {
        let newest = Entity::find()
            .filter(Column::SealedVariables.is_not_null())
            .order_by_desc(Column::Number)
            .one(&self.database)
            .instrument(span!(SELECT environments))
            .await?;
        if let Some(row) = newest
            && let Some(sealed) = &row.sealed_variables
        {
            Variables::open(&self.secret, &row.id, sealed)?;
        }
        Ok(())
    }
}

/// The variables of a row that an older version wrote.
fn plain_variables(row: &entity::Model) -> Result<Variables, CorruptRow> {
    let env = row.request.get("env").cloned().unwrap_or_default();
    let env = serde_json::from_value(env).map_err(|error| CorruptRow {
        id: row.id.clone(),
        column: "request",
        problem: error.to_string(),
    })?;
    Ok(Variables {
        env,
        ..Variables::default()
    })
}
