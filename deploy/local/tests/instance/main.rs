//! Real instances: started, used, killed, and looked for afterwards.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "helpers of tests fail the test, and a test's stack is large enough"
)]

mod api;
mod boxes;
mod clusters;
mod examples;
mod existing;
mod host;
mod kills;
mod kubernetes;
mod mistakes;
mod pod;
mod readme;
mod stores;
mod teardown;
mod traces;
mod workflow;
