//! Lists and their totals, answered from indexes alone; then the rows of a page are read.
//!
//! Lists leave out variables, and a `command` longer than 1 KiB: a page must fit a message.
//!
//! * I1. Users' text reaches SQL as bound values only.

use agentbox_contracts::environment::{Status, Visibility};
use agentbox_contracts::selector::{Selector, Terms};
use agentbox_database::span;
use agentbox_database::sql::statement;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ConnectionTrait, EntityTrait as _, Iterable as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use tracing::Instrument as _;

use super::{Params, Record, Store, StoreError, records};
use crate::environment::entity::{Column, Entity};

/// The column `request` without the parts that a list leaves out.
const SHORT_REQUEST: &str = "CASE WHEN octet_length((request -> 'command')::text) > 1024
    THEN request - 'env' - 'command' ELSE request - 'env' END";

/// The filter of a list.
#[derive(Clone, Debug)]
pub struct Listing {
    visibility: Visibility,
    status: Option<Status>,
    terms: Terms,
}

impl Listing {
    #[must_use]
    pub fn new(visibility: Visibility, status: Option<Status>, selector: &Selector) -> Self {
        let mut terms = selector.terms();
        // The rows of the first group are read. A group of one term comes first, because the index
        // has the rows of one term in the order of the list.
        terms.any_of_each.sort_by_key(Vec::len);
        Self {
            visibility,
            status,
            terms,
        }
    }

    /// The table and the conditions of the matching rows. The table is `environment_terms` when
    /// the filter has terms, else `environments`. Its alias is `e`. Its columns are `number`,
    /// `owner`, `status` and `created_at`. `groups` are required in addition to `any_of_each`.
    fn rows(&self, groups: &[&[String]], params: &mut Params) -> Result<Rows, StoreError> {
        let required = self.terms.any_of_each.iter().map(Vec::as_slice);
        let mut groups = required.chain(groups.iter().copied());
        let first = groups.next();
        let table = match first {
            None => "environments",
            Some(_) => "environment_terms",
        };
        let mut conditions = Vec::new();
        if let Some(terms) = first {
            conditions.push(format!("e.term IN ({})", params.push_all(terms)));
        }
        for terms in groups {
            conditions.push(format!("EXISTS ({})", has_term(&params.push_all(terms))));
        }
        match &self.visibility {
            Visibility::All => {}
            Visibility::Owner(owner) => {
                conditions.push(format!("e.owner = {}", params.push(owner.as_str())));
            }
            Visibility::Listed { owner, only } => {
                conditions.push(format!("e.owner = {}", params.push(owner.as_str())));
                let ids = params.push(serde_json::to_value(only)?);
                conditions.push(format!(
                    "e.number IN (SELECT number FROM environments
                        WHERE id IN (SELECT jsonb_array_elements_text({ids})))"
                ));
            }
        }
        if let Some(status) = self.status {
            conditions.push(format!("e.status = {}", params.push(status.as_str())));
        }
        Ok(Rows { table, conditions })
    }
}

/// A table and the conditions on its rows.
struct Rows {
    table: &'static str,
    conditions: Vec<String>,
}

impl Rows {
    fn select(&self, columns: &str) -> String {
        let conditions = if self.conditions.is_empty() {
            "true".to_owned()
        } else {
            self.conditions.join(" AND ")
        };
        format!(
            "SELECT {columns} FROM {} AS e WHERE {conditions}",
            self.table
        )
    }
}

/// A subquery that is true when the row `e` has one of the terms. It joins by the columns of the
/// index, so that Postgres merges two long lists instead of hashing them.
fn has_term(terms: &str) -> String {
    format!(
        "SELECT FROM environment_terms AS t
         WHERE t.created_at = e.created_at AND t.number = e.number AND t.term IN ({terms})"
    )
}

impl Store {
    /// A page, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(
        &self,
        listing: &Listing,
        limit: u32,
        offset: u64,
    ) -> Result<Vec<Record>, StoreError> {
        let mut params = Params::default();
        let mut rows = listing.rows(&[], &mut params)?;
        if !listing.terms.none_of.is_empty() {
            let unwanted = has_term(&params.push_all(&listing.terms.none_of));
            rows.conditions.push(format!("NOT EXISTS ({unwanted})"));
        }
        let numbers = rows.select("e.number");
        let limit = params.push(i64::from(limit));
        let offset = params.push(i64::try_from(offset).unwrap_or(i64::MAX));
        let page = format!(
            "number IN (
                {numbers} ORDER BY e.created_at DESC, e.number DESC LIMIT {limit} OFFSET {offset}
             )"
        );
        let others = Column::iter()
            .filter(|column| !matches!(column, Column::Request | Column::SealedVariables));
        let rows = Entity::find()
            .select_only()
            .columns(others)
            .column_as(Expr::cust(SHORT_REQUEST), "request")
            .column_as(Expr::cust("NULL::bytea"), "sealed_variables")
            .filter(Expr::cust_with_values(page, params.0))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Number);
        let page = rows.all(&self.database);
        records(page.instrument(span!(SELECT environments)).await?)
    }

    /// The number of rows on all pages together.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count(&self, listing: &Listing) -> Result<u64, StoreError> {
        let mut params = Params::default();
        let required = listing.rows(&[], &mut params)?.select("count(*)");
        let mut total = format!("({required})");
        // The index has the rows with a term. Those without it are the difference.
        if !listing.terms.none_of.is_empty() {
            let rows = listing.rows(&[&listing.terms.none_of], &mut params)?;
            // One row may have several of the terms.
            let has_duplicates =
                listing.terms.any_of_each.is_empty() && listing.terms.none_of.len() > 1;
            let unwanted = if has_duplicates {
                let each = rows.select("DISTINCT e.number");
                format!("SELECT count(*) FROM ({each}) AS once")
            } else {
                rows.select("count(*)")
            };
            total = format!("{total} - ({unwanted})");
        }
        let count = statement(format!("SELECT {total} AS total"), params.0);
        let count = self.database.query_one_raw(count);
        let row = count.instrument(span!(SELECT environments)).await?;
        let total = row.map(|row| row.try_get::<i64>("", "total")).transpose()?;
        Ok(total
            .and_then(|total| u64::try_from(total).ok())
            .unwrap_or(0))
    }
}
