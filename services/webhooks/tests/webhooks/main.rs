//! Webhooks as a process on a real Postgres and NATS, with a receiver on the loopback. Needs
//! `cargo build -p agentbox-local` once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers fail it by panicking"
)]

mod deliveries;
mod names;
mod owners;
mod support;
mod targets;
