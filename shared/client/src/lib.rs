//! A small typed client of the public API, for tests and measurements.
//!
//! Supports plain `http://` only. Never retries: the caller gets the server's response.
//!
//! * I1. Every wait has a deadline: the response timeout, a command's own timeout plus a
//!   grace, or the keepalive timeout of a stream. An upload has a total one.

mod attach;
mod client;
mod error;
mod files;
mod follow;
mod sse;

pub use attach::AttachSession;
pub use client::Client;
pub use error::Error;
pub use files::Download;
pub use follow::{EventStream, ExecutionOutput, LogItem, LogStream, OutputItem};
