//! The protocol between a box's boxd and its clients, and the files that outlive a box.
//!
//! * [`proto`]: boxd's gRPC, stubs for client and server (`proto/box.proto` is the contract).
//! * [`token`]: the credential of one box.
//! * [`secret`]: the secret from which a cluster's tokens are derived.
//! * [`tls`]: encryption, and the proof that a peer is the boxd of this box.
//! * [`call_span`]: boxd's span of a call, in the header of its response.
//! * [`client`]: a gRPC client over any byte stream.
//! * [`output`]: the files with the main command's output.
//! * [`executions`]: the file with the records of executions.
//! * [`claim`]: what identifies the claim of a warm box.
//! * [`termination`]: the file with the main command's exit, and with the claim of the box.
//! * [`variables`]: the environment variables that configure boxd.
//!
//! Never starts a process and never listens: boxd does.

pub mod call_span;
pub mod claim;
pub mod client;
pub mod executions;
pub mod logs;
pub mod output;
mod regular_file;
pub mod secret;
pub mod termination;
pub mod tls;
pub mod token;
pub mod variables;
#[cfg(test)]
mod wire_tests;

/// The metadata of a gRPC status that names an error code of `agentbox_contracts`, for callers.
pub const ERROR_CODE_METADATA: &str = "agentbox-error";

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
