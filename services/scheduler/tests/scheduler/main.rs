//! The scheduler's claims: pure ones by table and property, the others on a real
//! Postgres, NATS and containerd, isolated by database, bus and deployment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod life;
mod lists;
mod misbehaving;
mod outbox;
mod plan;
mod replicas;
mod state;
mod store;
mod support;
mod sweeps;
