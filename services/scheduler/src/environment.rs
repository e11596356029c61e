//! Environments: what is wanted of them, what is seen of them, and getting from one to
//! the other.
//!
//! * [`request`], [`selector`], [`quota`], [`state`], [`plan`]: decisions, pure.
//! * [`store`]: every SQL statement about an environment.
//! * [`handlers`]: what other services ask for.
//! * [`reconcile`], [`due`]: one environment's way to where it shall be.
//! * [`expire`], [`retention`], [`orphans`]: what nobody asks for but time.
//! * [`outbox`]: tells the bus what the database says.

pub mod due;
pub mod expire;
pub mod handlers;
pub mod orphans;
pub mod outbox;
pub mod plan;
pub mod quota;
pub mod reconcile;
pub mod record;
pub mod request;
pub mod retention;
pub mod selector;
pub mod spec;
pub mod state;
pub mod store;
