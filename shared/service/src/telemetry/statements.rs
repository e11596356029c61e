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

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn duration_of_a_statement_is_recorded_and_of_another_span_not() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let layer = StatementDurations.with_filter(only_statements());
        let subscriber = tracing_subscriber::registry().with(layer);
        ::metrics::with_local_recorder(&recorder, || {
            tracing::subscriber::with_default(subscriber, || {
                let statement = tracing::info_span!(
                    "SELECT users",
                    db.operation.name = "SELECT",
                    db.collection.name = "users"
                );
                drop(statement);
                drop(tracing::info_span!("http", http.route = "/"));
            });
        });
        let text = recorder.handle().render();
        let counts: Vec<&str> = text.lines().filter(|l| l.contains("_count")).collect();
        let [count] = counts.as_slice() else {
            panic!("{text}");
        };
        assert!(count.starts_with("agentbox_db_client_operation_duration_seconds_count{"));
        for label in [
            "db_operation_name=\"SELECT\"",
            "db_collection_name=\"users\"",
        ] {
            assert!(count.contains(label), "{count}");
        }
        assert!(count.ends_with(" 1"), "{count}");
    }
}
