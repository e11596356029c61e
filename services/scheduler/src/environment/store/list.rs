//! Lists and their totals, from indexes alone; then a page's rows are read.
//!
//! Lists leave out `env`, and a `command` longer than 1 KiB: a page must fit a message.
//!
//! * I1. User text reaches SQL as bound values only.

use agentbox_contracts::environment::{Status, Visibility};
use agentbox_database::sql::statement as sql;
use sea_orm::{ConnectionTrait, Value};

use super::{COLUMNS, Record, Store, StoreError, record};
use crate::environment::selector::{Selector, Terms};

/// What a list is of.
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
        // The first group is where rows come from: best a single term, whose entries the
        // index already has in the list's order.
        terms.any_of_each.sort_by_key(Vec::len);
        Self {
            visibility,
            status,
            terms,
        }
    }

    /// The rows of which it is so, `FROM … WHERE …`: of `environments`, or of
    /// `environment_terms` when terms are asked for. Both are called `e` and have `number`,
    /// `owner`, `status` and `created_at`. `groups` come in addition to `any_of_each`.
    fn rows(&self, groups: &[&[String]], bound: &mut Bound) -> Result<Rows, StoreError> {
        let own = self.terms.any_of_each.iter().map(Vec::as_slice);
        let mut groups = own.chain(groups.iter().copied());
        let first = groups.next();
        let table = match first {
            None => "environments",
            Some(_) => "environment_terms",
        };
        let mut conditions = Vec::new();
        if let Some(terms) = first {
            conditions.push(format!("e.term IN ({})", bound.list(terms)));
        }
        for terms in groups {
            conditions.push(format!("EXISTS ({})", having(&bound.list(terms))));
        }
        match &self.visibility {
            Visibility::All => {}
            Visibility::Owner(owner) => {
                conditions.push(format!("e.owner = {}", bound.one(owner.as_str())));
            }
            Visibility::Listed { owner, only } => {
                conditions.push(format!("e.owner = {}", bound.one(owner.as_str())));
                let ids = bound.one(serde_json::to_value(only)?);
                conditions.push(format!(
                    "e.number IN (SELECT number FROM environments
                        WHERE id IN (SELECT jsonb_array_elements_text({ids})))"
                ));
            }
        }
        if let Some(status) = self.status {
            conditions.push(format!("e.status = {}", bound.one(status.as_str())));
        }
        Ok(Rows { table, conditions })
    }
}

/// Where rows come from, and what must be true of them.
struct Rows {
    table: &'static str,
    conditions: Vec<String>,
}

impl Rows {
    fn select(&self, what: &str) -> String {
        let conditions = if self.conditions.is_empty() {
            "true".to_owned()
        } else {
            self.conditions.join(" AND ")
        };
        format!("SELECT {what} FROM {} AS e WHERE {conditions}", self.table)
    }
}

/// In the order of the index, so that two long lists are merged instead of hashed.
fn having(terms: &str) -> String {
    format!(
        "SELECT FROM environment_terms AS t
         WHERE t.created_at = e.created_at AND t.number = e.number AND t.term IN ({terms})"
    )
}

/// The values of a statement's placeholders.
#[derive(Default)]
struct Bound(Vec<Value>);

impl Bound {
    fn one(&mut self, value: impl Into<Value>) -> String {
        self.0.push(value.into());
        format!("${}", self.0.len())
    }

    fn list(&mut self, terms: &[String]) -> String {
        let each: Vec<_> = terms.iter().map(|term| self.one(term.as_str())).collect();
        each.join(", ")
    }
}

impl Store {
    /// A page, newest first.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres list", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn list(
        &self,
        listing: &Listing,
        limit: u32,
        offset: u64,
    ) -> Result<Vec<Record>, StoreError> {
        let mut bound = Bound::default();
        let mut rows = listing.rows(&[], &mut bound)?;
        if !listing.terms.none_of.is_empty() {
            let unwanted = having(&bound.list(&listing.terms.none_of));
            rows.conditions.push(format!("NOT EXISTS ({unwanted})"));
        }
        let numbers = rows.select("e.number");
        let limit = bound.one(i64::from(limit));
        let offset = bound.one(i64::try_from(offset).unwrap_or(i64::MAX));
        let lean = COLUMNS.replace(
            "request,",
            "CASE WHEN octet_length((request -> 'command')::text) > 1024
                THEN request - 'env' - 'command' ELSE request - 'env' END AS request,",
        );
        let statement = sql(
            format!(
                "SELECT {lean} FROM environments WHERE number IN (
                    {numbers} ORDER BY e.created_at DESC, e.number DESC LIMIT {limit} OFFSET {offset}
                 )
                 ORDER BY created_at DESC, number DESC"
            ),
            bound.0,
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
    pub async fn count(&self, listing: &Listing) -> Result<u64, StoreError> {
        let mut bound = Bound::default();
        let with = listing.rows(&[], &mut bound)?.select("count(*)");
        let mut total = format!("({with})");
        // An index knows who has a term, not who lacks it.
        if !listing.terms.none_of.is_empty() {
            let rows = listing.rows(&[&listing.terms.none_of], &mut bound)?;
            // Terms of several keys may be one row's.
            let repeats = listing.terms.any_of_each.is_empty() && listing.terms.none_of.len() > 1;
            let unwanted = if repeats {
                let each = rows.select("DISTINCT e.number");
                format!("SELECT count(*) FROM ({each}) AS once")
            } else {
                rows.select("count(*)")
            };
            total = format!("{total} - ({unwanted})");
        }
        let row = self
            .database
            .query_one_raw(sql(format!("SELECT {total} AS total"), bound.0))
            .await?;
        let total = row.map(|row| row.try_get::<i64>("", "total")).transpose()?;
        Ok(total
            .and_then(|total| u64::try_from(total).ok())
            .unwrap_or(0))
    }
}
