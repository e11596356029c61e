//! What is said between a box's boxd and those outside it.
//!
//! * [`proto`]: boxd's gRPC, stubs for both ends (`proto/box.proto` is the contract).
//! * [`token`]: the credential that opens one box.
//! * [`secret`]: what a cluster's tokens are made under.
//! * [`client`]: a gRPC client over any byte stream.
//! * [`output`]: the files in which the main command's output outlives boxd.
//! * [`termination`]: the file that says how the main command ended.
//! * [`variables`]: the environment variables that configure boxd.
//!
//! Never starts a process and never listens: that is boxd.

pub mod client;
pub mod logs;
pub mod output;
mod regular_file;
pub mod secret;
pub mod termination;
pub mod token;
pub mod variables;

/// Generated from `proto/box.proto`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("agentbox.boxd.v1");
}
