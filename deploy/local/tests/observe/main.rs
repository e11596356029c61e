//! Observed instances: dashboards, rules and alerts on a real Prometheus, and traces in a real Jaeger.
//!
//! `make test-observe` prepares the programs and runs these tests one after the other.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "helpers of tests fail the test, and a test's stack is large enough"
)]

mod alerts;
mod client;
mod dashboards;
mod expressions;
mod jaeger;
mod processes;
mod prometheus;
mod traces;
