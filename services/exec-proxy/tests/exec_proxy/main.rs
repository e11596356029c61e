//! Tests of exec-proxy with a real NATS server and real boxd processes. The exec-proxy runs
//! in its own process, so that it can be killed and its memory measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod activity;
mod archive;
mod containerd;
mod ended_executions;
mod exec;
mod executions;
mod failures;
mod files;
mod latency;
mod logs;
mod ports;
mod start;
mod stdin;
