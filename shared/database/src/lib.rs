//! Access to Postgres for every service that owns a schema: connections, migrations, helpers for
//! statements, leader election, encryption of values at rest, and public errors. The SQL about a
//! service's own tables is in the stores of that service.

mod connect;
mod error;
pub mod lease;
mod metrics;
mod migrate;
pub mod secret;
pub mod sql;
mod text;
mod trace;
mod transaction;

pub use connect::{connect, connect_within};
pub use error::{DatabaseError, public_error, violated_unique_constraint};
pub use lease::Leases;
pub use metrics::report_connections;
pub use migrate::migrate;
pub use text::Text;
#[doc(hidden)]
pub use tracing;
pub use transaction::{begin, snapshot};
