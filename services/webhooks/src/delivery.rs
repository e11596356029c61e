//! Deliveries: when they are attempted ([`retry`]), how ([`send`], [`signature`]), and by whom
//! ([`worker`]).

pub mod retry;
pub mod send;
pub mod signature;
pub mod worker;
