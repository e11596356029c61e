//! The driver on a real Kubernetes: the suite every driver passes, and what only this one
//! must hold.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

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
