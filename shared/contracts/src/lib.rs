//! The contract between the services: subjects, headers, messages by noun, identifiers,
//! units and error codes. Pure data; no I/O.

pub mod asyncapi;
pub mod audit;
pub mod cluster;
pub mod command;
pub mod dead_letter;
pub mod environment;
pub mod error;
mod error_chain;
pub mod exec;
pub mod executions;
pub mod files;
pub mod identity;
pub mod ids;
pub mod labels;
pub mod limits;
pub mod logs;
pub mod metering;
pub mod nullable;
pub mod permissions;
pub mod pool;
pub mod ports;
pub mod preview;
pub mod registry;
pub mod rpc;
pub mod selector;
pub mod signal;
pub mod subjects;
pub mod units;
pub mod utf8;
pub mod webhook;
#[cfg(test)]
mod wire;

pub use error_chain::ErrorChain;
