//! Auth as the gateway sees it: over the bus, on real Postgres and NATS, in processes of
//! its own. Needs `cargo build -p agentbox-local` once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers fail it by panicking"
)]

mod api_keys;
mod deletions;
mod failures;
mod housekeeping;
mod logins;
mod replicas;
mod support;
mod tickets;
mod users;
