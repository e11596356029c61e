//! Clients of the boxes of one cluster.
//!
//! * [`pool`]: one HTTP/2 connection per box, shared by its calls.
//! * [`run`]: a command in a box, whose output survives a lost connection.
//! * [`logs`]: log streams.
//! * [`call`]: file operations, executions and connections to ports.
//! * [`ports`]: the listening ports.
//! * [`in_use`]: the environments with sessions, for the scheduler.
//! * [`error`]: the errors, and their public form.
//! * [`trace`]: spans of the calls.
//! * [`spans`]: spans that boxes return.

pub mod call;
pub mod error;
pub mod in_use;
pub mod logs;
pub mod pool;
pub mod ports;
pub mod run;
pub mod spans;
pub mod trace;

pub use error::BoxError;
pub use in_use::InUse;
pub use pool::{Boxes, Lease};
pub use spans::BoxSpans;
