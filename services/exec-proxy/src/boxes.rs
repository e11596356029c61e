//! The boxes of one cluster as exec-proxy reaches them.
//!
//! * [`pool`]: one HTTP/2 connection a box, shared by its calls, made once.
//! * [`run`]: a command in a box, whose output survives a lost connection.
//! * [`error`]: what can go wrong on the way, and how a caller sees it.
//! * [`trace`]: spans of the calls.
//! * [`spans`]: spans that boxes tell.

pub mod error;
pub mod pool;
pub mod run;
pub mod spans;
pub mod trace;

pub use error::BoxError;
pub use pool::{Boxes, Lease};
pub use spans::BoxSpans;
