//! Environments: their requests, their rows, and reconciling the one with the clusters.
//!
//! * [`request`], [`creation`], [`quota`], [`state`], [`plan`], [`spec`], [`warm_claim`]: decisions, pure.
//! * [`entity`], [`record`], [`store`]: the database, and every SQL statement.
//! * [`handlers`]: the RPCs of other services.
//! * [`reconcile`], [`queue`]: bringing one environment to its requested state.
//! * [`sweeper`], [`orphans`], [`metering`], [`execution_events`]: periodic work.
//! * [`outbox`]: publishing changes on the bus.

pub mod creation;
mod entity;
pub mod execution_events;
pub mod handlers;
pub mod metering;
pub mod orphans;
pub mod outbox;
pub mod plan;
pub mod queue;
pub mod quota;
pub mod reconcile;
pub mod record;
pub mod request;
pub mod spec;
pub mod state;
pub mod store;
pub mod sweeper;
pub mod warm_claim;
