//! Spans of statements.

/// A client span by OpenTelemetry's [conventions for databases][1]: its name is
/// `{operation} {table}`, and it carries neither the statement nor its values.
///
/// ```ignore
/// let user = users::Entity::find_by_id(id).one(on);
/// user.instrument(agentbox_database::span!(SELECT users)).await
/// ```
///
/// `span!(SELECT, table)` takes the table's name at run time.
///
/// A function that runs several statements has one span, named after the most important one.
///
/// [1]: https://opentelemetry.io/docs/specs/semconv/database/database-spans/
#[macro_export]
macro_rules! span {
    ($operation:ident, $table:expr) => {{
        let table: &str = $table;
        $crate::tracing::info_span!(
            stringify!($operation),
            otel.name = format!("{} {table}", stringify!($operation)),
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = stringify!($operation),
            db.collection.name = table,
        )
    }};
    ($operation:ident $table:ident) => {
        $crate::tracing::info_span!(
            concat!(stringify!($operation), " ", stringify!($table)),
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = stringify!($operation),
            db.collection.name = stringify!($table),
        )
    };
}
