//! A small typed client of the public API, for tests and measurements.
//!
//! Speaks plain `http://` only. Never retries: what the server answered is what the
//! caller sees.

mod attach;
mod client;
mod error;
mod follow;

pub use attach::Attached;
pub use client::Client;
pub use error::Error;
pub use follow::{Follow, Followed};
