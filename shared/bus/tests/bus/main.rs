//! The guarantees of the bus, on a real NATS server with the services' own permissions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails must fail its test"
)]

mod audit;
mod connection;
mod counter;
mod dead_letters;
mod events;
mod permissions;
mod requests;
mod routes;
mod session;
mod support;
mod work_queue;
