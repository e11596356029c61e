//! The bus: how services reach each other over NATS.
//!
//! * [`rpc`]: a request and its reply, with a deadline.
//! * [`session`]: user bytes in order, both ways, with backpressure.
//! * [`work`]: commands that are carried out at least once, or end as dead letters.
//! * [`events`], [`routes`], [`counter`]: the feed, the route table, the rate-limit sums.
//!
//! Acknowledgements, retries and trace context live here and nowhere else.
//!
//! * I1. Every wait has a deadline; a server that is gone is an error, not a hang.
//! * I2. A permission violation is fatal: [`Bus::violated`] tells, the service stops.
//! * I3. Byte streams have a connection of their own, so that they cannot starve requests.

mod connection;
mod counter;
mod error;
mod events;
mod replies;
mod routes;
mod rpc;
mod session;
mod streams;
mod subscription;
mod trace;
mod work;

pub use connection::{Bus, BusConfig};
pub use error::BusError;
pub use events::{EventStream, StoredEvent};
pub use routes::RouteMirror;
pub use rpc::{Listening, Server};
pub use session::{Acceptor, Incoming, Session, SessionReceiver, SessionSender};
pub use work::{Command, Retry, WorkQueue};
