//! The tables of schema `auth` as sea-orm entities, one file for each table.
//!
//! The lowest layer of the service: an entity imports no other module of it.

pub mod api_key_permissions;
pub mod api_keys;
pub mod logins;
pub mod previews;
pub mod signing_keys;
pub mod tickets;
pub mod user_deletions;
pub mod users;
