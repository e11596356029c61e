//! The Helm chart, installed by Helm into a real Kubernetes, with images built from this
//! workspace.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "helpers of tests fail the test, and a test's stack is large enough"
)]

mod admission;
mod cluster;
mod external;
mod follow;
#[path = "../instance/guide.rs"]
mod guide;
mod helm;
mod install;
mod load;
mod manifests;
mod network;
mod rbac;
