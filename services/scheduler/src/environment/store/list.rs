//! Lists. A page is found in an index by its keys alone, then its rows are read.
//!
//! Lists leave out `env`, and a `command` longer than 1 KiB: a page must fit a message.

use agentbox_contracts::environment::{Status, Visibility};
use sea_orm::{ConnectionTrait, Value};

use super::{COLUMNS, Record, Store, StoreError, record, sql};
use crate::environment::selector::Selector;

/// The condition of a list, and what it binds.
fn condition(
    visibility: &Visibility,
    status: Option<Status>,
    selector: &Selector,
) -> Result<(String, Vec<Value>), StoreError> {
    let mut values: Vec<Value> = Vec::new();
    let mut bind = |value: Value| {
        values.push(value);
        format!("${}", values.len())
    };
    let mut conditions = Vec::new();
    match visibility {
        Visibility::All => {}
        Visibility::Owner(owner) => {
            conditions.push(format!("owner = {}", bind(owner.as_str().into())));
        }
        Visibility::Listed { owner, only } => {
            conditions.push(format!("owner = {}", bind(owner.as_str().into())));
            let ids = bind(serde_json::to_value(only)?.into());
            conditions.push(format!("id IN (SELECT jsonb_array_elements_text({ids}))"));
        }
    }
    if let Some(status) = status {
        conditions.push(format!("status = {}", bind(status.as_str().into())));
    }
    conditions.extend(selector.to_sql(&mut values));
    let text = if conditions.is_empty() {
        "true".to_owned()
    } else {
        conditions.join(" AND ")
    };
    Ok((text, values))
}

impl Store {
    /// A page, newest first.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres list", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn list(
        &self,
        visibility: &Visibility,
        status: Option<Status>,
        selector: &Selector,
        limit: u32,
        offset: u64,
    ) -> Result<Vec<Record>, StoreError> {
        let (condition, mut values) = condition(visibility, status, selector)?;
        let (first, second) = (values.len() + 1, values.len() + 2);
        values.push(i64::from(limit).into());
        values.push(i64::try_from(offset).unwrap_or(i64::MAX).into());
        let lean = COLUMNS.replace(
            "request,",
            "CASE WHEN octet_length((request -> 'command')::text) > 1024
                THEN request - 'env' - 'command' ELSE request - 'env' END AS request,",
        );
        let statement = sql(
            format!(
                "SELECT {lean} FROM environments WHERE id IN (
                    SELECT id FROM environments WHERE {condition}
                    ORDER BY created_at DESC, id DESC LIMIT ${first} OFFSET ${second}
                 )
                 ORDER BY created_at DESC, id DESC"
            ),
            values,
        );
        self.database
            .query_all_raw(statement)
            .await?
            .into_iter()
            .map(record)
            .collect()
    }

    /// How many there are on all pages together.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres count", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn count(
        &self,
        visibility: &Visibility,
        status: Option<Status>,
        selector: &Selector,
    ) -> Result<u64, StoreError> {
        let (condition, values) = condition(visibility, status, selector)?;
        let statement = sql(
            format!("SELECT count(*) AS total FROM environments WHERE {condition}"),
            values,
        );
        let row = self.database.query_one_raw(statement).await?;
        let total = row.map(|row| row.try_get::<i64>("", "total")).transpose()?;
        Ok(total
            .and_then(|total| u64::try_from(total).ok())
            .unwrap_or(0))
    }
}
