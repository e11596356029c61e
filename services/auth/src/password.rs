//! Passwords: what may be one, and the work of hashing it.

mod hasher;
pub mod rules;

pub use hasher::Hasher;
