//! The clusters in which boxes run.
//!
//! * [`config`]: the scheduler's part of the clusters file.
//! * [`registry`]: a cluster by its name, and its driver once that is connected.
//! * [`capacity`]: a cluster's capacity, cached so that no request waits for it.
//! * [`registries`]: the registries of its users' images. Pure.
//! * [`placement`]: the choice of a cluster for a request. Pure.
//! * [`scheduling`]: whether a cluster takes new environments. Pure.

pub mod capacity;
pub mod config;
pub mod placement;
pub mod registries;
pub mod registry;
pub mod scheduling;
