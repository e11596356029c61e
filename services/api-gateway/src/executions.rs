//! `/environments/{id}/executions`: commands that outlive the request that started them, every
//! connection to them, and every gateway and exec-proxy that served them.
//!
//! * I1. The gateway keeps nothing of an execution: boxd has its record and its output, and the archive
//!   has them after the box has ended.
//! * I2. A start may be repeated: boxd answers an id that it knows with its execution. So a start whose
//!   session broke is repeated with the same id, and an idempotency key is an id ([`idempotency`]).
//! * I3. A reader continues at the offsets that it has, on any replica: no byte is repeated, and none is
//!   left out without a `gap` ([`reader`]).

pub(crate) mod control;
mod idempotency;
pub(crate) mod list;
pub(crate) mod output;
mod position;
mod reader;
mod request;
mod retry;
pub(crate) mod session;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stdin;

pub(crate) use position::parse as parse_position;
