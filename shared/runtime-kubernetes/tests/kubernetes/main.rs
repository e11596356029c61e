//! The driver on a real Kubernetes: the conformance suite, and the tests of this driver alone.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod claims;
mod cluster;
mod conformance;
mod damage;
mod delivery;
mod gvisor;
mod images;
mod network;
mod objects;
mod reach;
mod usage;
mod user_namespace;
