//! Where each running component is reached, and the credentials for it.
//!
//! These are the values that `agentbox-local` writes into the state file and into the clusters
//! file, and that tests read from there.

pub mod containerd;
pub mod gateway;
pub mod kubernetes;
pub mod nats;
pub mod observability;
pub mod postgres;
