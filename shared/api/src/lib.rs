//! The public contract as types: what clients send and what they are answered.
//!
//! Field names and shapes are promises. Requests refuse unknown fields.

pub mod api_key;
pub mod attach;
pub mod environment;
pub mod error;
pub mod event;
pub mod exec;
pub mod health;
pub mod logs;
pub mod schema;
pub mod user;
