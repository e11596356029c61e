//! The durations of statements to Postgres, from their spans: a span with the attribute
//! `db.operation.name` is that of a statement.

use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::metrics;

const OPERATION: &str = "db.operation.name";
const TABLE: &str = "db.collection.name";

/// Records the duration of each statement.
pub(super) struct StatementDurations;

/// Enables the spans of statements alone, so that this layer enables no event and no other span.
pub(super) fn only_statements() -> FilterFn {
    fn is_statement(metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
            && *metadata.level() <= Level::INFO
            && metadata.fields().field(OPERATION).is_some()
    }
    filter_fn(is_statement as fn(&Metadata<'_>) -> bool).with_max_level_hint(LevelFilter::INFO)
}

struct Statement {
    begun: Instant,
    operation: String,
    table: String,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            OPERATION => value.clone_into(&mut self.operation),
            TABLE => value.clone_into(&mut self.table),
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

impl<S> Layer<S> for StatementDurations
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let mut statement = Statement {
            begun: Instant::now(),
            operation: String::new(),
            table: String::new(),
        };
        attributes.record(&mut statement);
        span.extensions_mut().insert(statement);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let statement = span.extensions_mut().remove::<Statement>();
        if let Some(Statement {
            begun,
            operation,
            table,
        }) = statement
        {
            metrics::statement_ended(operation, table, begun.elapsed());
        }
    }
}
