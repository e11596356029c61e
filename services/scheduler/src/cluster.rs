//! The places where boxes run.
//!
//! * [`config`]: the scheduler's part of the clusters file.
//! * [`registry`]: a cluster by its name, and its driver once that is connected.
//! * [`capacity`]: what a cluster has, read ahead so that no request waits for it.
//! * [`placement`]: which cluster takes a request. Pure.

pub mod capacity;
pub mod config;
pub mod placement;
pub mod registry;
