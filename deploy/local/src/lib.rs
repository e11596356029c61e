//! Runs AgentBox on one machine: `make up`, and the systems of tests.
//!
//! Owns the program `agentbox-local`: its commands, and the supervisor of an instance, which
//! starts Postgres, NATS, a private containerd, a Kubernetes of one node, their images and
//! networks, and the product's services, restarts what exits, and removes everything at the
//! end. Tests use it through `agentbox-testing`, which runs the program.
//!
//! Never deploys to another machine: the Helm chart (`deploy/helm`) does.

mod cleanup;
pub mod cli;
mod cluster_paths;
mod containerd;
mod control_groups;
mod doctor;
mod file_lock;
mod gvisor;
mod image;
mod kernel_limits;
mod kubernetes;
mod log_file;
mod nats;
mod network;
mod observability;
mod ports;
mod postgres;
mod process;
mod registry_proxy;
mod secrets;
mod services;
mod slot;
mod stale;
mod status;
mod supervisor;

pub use image::programs::{build_program_image, build_services_image, build_store_images};
pub use image::{Archive, ImageError};
pub use kubernetes::addons;
