//! The driver for boxes on one machine's containerd, over CRI v1, the interface of the kubelet.
//!
//! A box is a pod sandbox with one container whose entry is the machine's `boxd`, mounted
//! read-only; an output directory that outlives it ([`output`]); other files in memory
//! ([`memory`]); its terminals ([`terminals`]); a control group above it with its pids limit
//! ([`cgroup`]); and its own rules in the network's firewall tables ([`firewall`]). A small file keeps
//! the state that containerd does not ([`box_state`]).
//!
//! Owns every object with its deployment's label, and changes nothing else (I5 of
//! [`agentbox_runtime::Runtime`]). Any number of drivers, in any number of processes on the
//! machine, may serve one deployment. One lock file for each box orders them, and the kernel
//! frees the lock of a killed process.
//!
//! Never carries a box's input or output, except its last output.
//!
//! The modules from the bottom:
//!
//! * [`context`] has the configuration, the connections and the files.
//! * [`phase`] and [`refusal`] decide.
//! * [`sandbox`], [`container`] and [`seccomp`] render.
//! * [`isolation`] decides which boxes have a disk ([`disk`]) and a user namespace ([`user_range`]).
//! * [`image_files`] checks the files of an image that containerd reads, and [`user_files`] ends such
//!   reads if an image could not be checked.
//! * [`image_access`] keeps the images of private repositories from others, and [`image_gc`] removes
//!   images of which [`pulled_images`] has a record.
//! * [`routes`] changes a box's own network, in its [`namespace`].
//! * [`observe`], [`ensure`], [`claim`], [`policy_change`], [`ending`], [`storage`], [`repair`],
//!   [`maintenance`] and [`watch`] act.
//! * [`driver`] implements the traits.
//!
//! Limits: `docs/limits.md`; network: `docs/network.md`.

mod box_state;
mod capacity;
mod cgroup;
mod claim;
mod config;
mod container;
mod context;
mod cri;
mod disk;
mod disk_bandwidth;
mod driver;
mod ending;
mod ensure;
mod error;
mod events;
mod file_system;
mod firewall;
mod image;
mod image_access;
mod image_files;
mod image_gc;
mod isolation;
mod labels;
mod maintenance;
mod memory;
mod metrics;
mod mountinfo;
mod namespace;
mod network;
mod observe;
mod output;
mod phase;
mod policy_change;
mod preflight;
mod pulled_images;
mod refusal;
mod repair;
mod routes;
mod sandbox;
mod seccomp;
mod snapshots;
mod storage;
mod terminals;
mod tmpfs;
mod user_files;
mod user_range;
mod watch;

pub use config::{Config, ConfigError};
pub use driver::{ConnectError, Driver};
