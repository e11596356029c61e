//! The scheduler on a real Postgres, NATS and containerd; each test has a database, a bus and
//! a deployment of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod changes;
mod clusters;
mod dead_letters;
mod executions;
mod faults;
mod lifecycle;
mod lists;
mod metering;
mod outbox;
mod pools;
mod replicas;
mod store;
mod support;
mod sweeps;
