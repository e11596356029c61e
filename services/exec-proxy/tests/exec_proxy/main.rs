//! exec-proxy as its neighbours meet it: a real NATS server, real boxd processes, and
//! the exec-proxy in a process of its own, so that it can be killed and its memory read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod archive;
mod attach;
mod containerd;
mod exec;
mod failures;
mod latency;
mod logs;
mod stdin;
