//! Tests of the real boxd over gRPC, as a plain process or as PID 1 of a namespace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the whole target is a test; clippy.toml's allowance covers #[test] functions only"
)]

mod executions;
mod files;
mod files_archive;
mod files_change;
mod files_killed;
mod files_process;
mod files_support;
mod files_watch;
mod files_write;
mod flow;
mod logs;
mod pid_one;
mod ports;
mod replaced_files;
mod run;
mod serving;
mod support;
mod terminal;
mod termination;
mod tls;
mod trace;
