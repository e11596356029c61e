//! The public contract as types: what clients send and what they are answered.
//!
//! Field names and shapes are promises. Requests refuse unknown fields. The doc comments
//! are the descriptions of the OpenAPI document, so they are written for its readers: each
//! field says its unit, range and default, and carries an example.

pub mod api_key;
pub mod attach;
pub mod audit;
pub mod cluster;
pub mod dead_letter;
pub mod environment;
pub mod error;
pub mod event;
pub mod exec;
pub mod execution;
pub mod file;
pub mod health;
pub mod kubernetes;
pub mod limits;
pub mod logs;
pub mod metering;
pub mod pool;
pub mod port;
pub mod registry;
pub mod seconds;
pub mod user;
pub mod webhook;
