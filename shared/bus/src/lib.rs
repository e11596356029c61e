//! The bus: services reach each other over NATS.
//!
//! * [`rpc`]: a request and its reply, with a deadline.
//! * [`session`]: bytes in order, both ways, with backpressure.
//! * [`work`]: commands that are processed at least once, or become dead letters.
//! * [`dead_letter`]: messages that no replica can process.
//! * [`events`], [`routes`], [`counter`]: environment events, the route table, the rate-limit
//!   counters.
//! * [`lag`]: how many messages wait for a consumer.
//! * [`audit`], [`origin`]: entries of the audit trail, and the API request that caused them.
//!
//! [`bus`] is the handle above these parts. [`client`] is the connection below them.
//! Acknowledgements, retries and trace context are handled in this crate only.
//!
//! * I1. Every wait has a deadline; a lost server is an error, never a hang.
//! * I2. A permission violation is fatal: [`Bus::violated`] resolves, and the service stops. The
//!   exception is a reply that the server refuses after a reconnect.
//! * I3. Byte streams have a connection of their own, so that they cannot starve requests.

mod audit;
mod bus;
mod client;
mod counter;
mod dead_letter;
mod error;
mod events;
mod lag;
mod message;
mod metrics;
mod origin;
mod replies;
mod routes;
mod rpc;
mod session;
mod streams;
mod subscription;
mod trace;
mod work;

pub use audit::{AuditQueue, QueuedEntry};
pub use bus::Bus;
pub use client::BusConfig;
pub use error::BusError;
pub use events::{EventStream, StoredEvent};
pub use origin::{current_origin, with_origin};
pub use routes::{RouteMirror, RouteTable, RouteWatch};
pub use rpc::{Listening, Server};
#[cfg(fuzzing)]
pub use session::reencode_frame;
pub use session::{
    Acceptor, Incoming, OpenError, Session, SessionReceiver, SessionSender,
    WINDOW as SESSION_WINDOW,
};
pub use trace::publish_span;
pub use work::{Command, Retry, WorkQueue};
