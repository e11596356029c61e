//! A small typed client of the public API, for tests and measurements.
//!
//! Speaks plain `http://` only. Never retries: what the server answered is what the
//! caller sees.
//!
//! * I1. Every wait has a deadline: an answer's, a command's own timeout and a grace, or
//!   the longest silence of a stream.

mod attach;
mod client;
mod error;
mod follow;
mod sse;

pub use attach::Attached;
pub use client::Client;
pub use error::Error;
pub use follow::{Events, Follow, Followed};
