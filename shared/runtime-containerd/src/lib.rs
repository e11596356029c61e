//! Boxes on one machine's containerd, over CRI v1: the interface a kubelet uses.
//!
//! A box is a pod sandbox with one container, whose entry is the machine's `boxd`
//! (mounted read-only); an output directory that outlives it ([`output`]); a control
//! group above it with its pids limit ([`cgroup`]); and rules of its own in the network's
//! firewall tables ([`firewall`]). What containerd cannot remember is in a small file
//! beside ([`facts`]).
//!
//! Owns everything labelled with its deployment, and touches nothing else (I5 of
//! [`agentbox_runtime::Runtime`]). Any number of drivers, in any number of processes on
//! the machine, may serve one deployment: a lock file a box orders them, and the kernel
//! frees the lock of one that was killed.
//!
//! Never carries a byte of a box's input or output but its last output.
//!
//! Making a box: [`ensure`]. Ending it: [`ending`]. Looking: [`observe`], [`phase`]
//! (which decides), [`watch`]. Limits: `docs/limits.md`; network: `docs/network.md`.

mod capacity;
mod cgroup;
mod config;
mod container;
mod cri;
mod driver;
mod ending;
mod ensure;
mod events;
mod facts;
mod firewall;
mod image;
mod labels;
mod network;
mod observe;
mod output;
mod phase;
mod preflight;
mod repair;
mod sandbox;
mod seccomp;
mod storage;
mod watch;

pub use config::{Config, ConfigError};
pub use driver::{ConnectError, Driver};
