//! Deliveries: when they are attempted ([`retry`]), how ([`send`], [`signature`]), with
//! what ([`body`]), and by whom ([`worker`]).

pub mod body;
pub mod retry;
pub mod send;
pub mod signature;
pub mod worker;
