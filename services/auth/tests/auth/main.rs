//! Auth over the bus, as the gateway calls it: processes on a real Postgres and NATS. Needs
//! `cargo build -p agentbox-local` once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers fail it by panicking"
)]

mod api_keys;
mod audit;
mod deletions;
mod failures;
mod gateway_leases;
mod housekeeping;
mod logins;
mod previews;
mod replicas;
mod support;
mod tickets;
mod users;
