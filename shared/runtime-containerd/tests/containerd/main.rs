//! The driver on a real containerd: the suite every driver passes, and what only this
//! one must hold on its machine.

mod conformance;
mod host_network;
mod latency;
mod leftovers;
mod machine;
mod processes;
