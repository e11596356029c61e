//! Warm pools: boxes that are started before an environment needs one.
//!
//! A create whose request matches a pool claims one of its ready boxes; the claim itself is part of
//! the life of the environment ([`crate::environment`]).
//!
//! * [`matching`], [`sizing`], [`request`]: decisions, pure.
//! * [`configuration`]: the pools of the deployment's configuration.
//! * [`handlers`]: the RPCs of other services.
//! * [`reconcile`]: decides which boxes each pool starts and removes.
//! * [`boxes`]: starts, observes and removes them.

pub mod boxes;
pub mod configuration;
pub mod handlers;
pub mod matching;
pub mod reconcile;
pub mod request;
pub mod sizing;
