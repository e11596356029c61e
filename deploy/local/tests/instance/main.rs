//! Real instances: starts, use, kills, and a search for what they leave on the machine.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "helpers of tests fail the test, and a test's stack is large enough"
)]

mod api;
mod audit;
mod boxes;
mod claims;
mod clusters;
mod doctor;
mod encryption;
mod events;
mod examples;
mod existing;
mod guide;
mod host;
mod howto;
mod images;
mod kills;
mod kubernetes;
mod metrics;
mod mistakes;
mod pod;
mod pools;
mod readme;
mod remote_machine;
mod restart;
mod stores;
mod teardown;
mod traces;
mod workflow;
