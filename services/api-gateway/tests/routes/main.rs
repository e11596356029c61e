//! Tests of the public API over HTTP, against two replicas of every service and real boxes.
//!
//! There is one file for each noun. Each test creates a user with its own client address, and
//! sends its requests to the gateways in turn.

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
mod audit;
mod auth;
mod browser;
mod clusters;
mod command_limit;
mod connections;
mod cors;
mod dead_letters;
mod environments;
mod errors;
mod events;
mod exec;
mod executions;
mod expiry;
mod files;
mod health;
mod isolation;
mod lists;
mod logs;
mod notifications;
mod openapi;
mod outages;
mod pools;
mod ports;
mod rate_limits;
mod registries;
mod revocation;
mod streams;
mod tickets;
mod user_limits;
mod user_usage;
mod users;
mod webhooks;
