//! The public API as its clients meet it: real HTTP against two replicas of every service,
//! real boxes, requests that go to the gateways in turn. One file a noun; each test is a
//! user of its own at an address of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_futures,
    reason = "a test fails by panicking, and its stack is large enough"
)]

mod support;

mod api_keys;
mod attach;
mod auth;
mod environments;
mod errors;
mod events;
mod exec;
mod expiry;
mod health;
mod isolation;
mod lists;
mod logs;
mod notifications;
mod openapi;
mod outages;
mod rate_limits;
mod revocation;
mod tickets;
mod users;
