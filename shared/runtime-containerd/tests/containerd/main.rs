//! The driver on a real containerd: the suite every driver passes, and what only this
//! one must hold on its machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod conformance;
mod host_network;
mod latency;
mod leftovers;
mod machine;
mod processes;
