//! The driver on a real containerd: the conformance suite, and the tests of this driver and its
//! machine alone.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod bounds;
mod burst;
mod claims;
mod conformance;
mod filling;
mod first_instruction;
mod gvisor;
mod host_network;
mod images;
mod leftovers;
mod machine;
mod processes;
mod registry;
mod remote_machine;
mod repair;
mod resolver;
mod restart;
mod services;
mod storage;
mod system_calls;
mod user_files;
