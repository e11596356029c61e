//! Postgres as every owner of a schema uses it: connecting, migrating, and what its
//! errors mean to a caller. No SQL of any noun lives here.

mod connect;
mod error;
mod migrate;
mod transaction;

pub use connect::connect;
pub use error::{DatabaseError, is_unique_violation, public_error};
pub use migrate::migrate;
pub use transaction::begin;
