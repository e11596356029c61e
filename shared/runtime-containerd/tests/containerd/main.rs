//! The driver on a real containerd: the suite every driver passes, and what only this
//! one must hold on its machine.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod conformance;
mod elsewhere;
mod filling;
mod first_instruction;
mod gvisor;
mod host_network;
mod latency;
mod leftovers;
mod machine;
mod processes;
mod resolver;
mod restart;
mod services;
