//! Postgres as every owner of a schema uses it: connecting, migrating, statements, leader
//! election, and what its errors mean to a caller. No SQL of any noun lives here.

mod connect;
mod error;
pub mod lease;
mod migrate;
pub mod sql;
mod text;
mod trace;
mod transaction;

pub use connect::connect;
pub use error::{DatabaseError, is_unique_violation, public_error};
pub use lease::Leases;
pub use migrate::migrate;
pub use text::Text;
#[doc(hidden)]
pub use tracing;
pub use transaction::begin;
