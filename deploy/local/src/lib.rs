//! Starts AgentBox on one machine: for people (`make up`) and for tests, by the same code.
//!
//! Owns Postgres, NATS, a private containerd, a whole Kubernetes or both, with their images
//! and networks, and the product's services as processes, each instance under one supervisor
//! process that restarts what dies and removes everything at the end. It uses the product
//! from outside; no service uses it.
//!
//! # In a test
//!
//! Add `agentbox-local` to `[dev-dependencies]`. The supervisor is a program:
//! `cargo build -p agentbox-local` once (and `--workspace --bins`, `make boxd` for whole
//! systems).
//!
//! ```no_run
//! # async fn example() -> Result<(), agentbox_local::StartError> {
//! use agentbox_local::{Options, System, TestContainerd, TestNats, TestPostgres};
//!
//! let postgres = TestPostgres::start().await?; // .url: an empty database of this test
//! let nats = TestNats::shared().await?; // .url, .passwords["auth"], .all_access()
//! let containerd = TestContainerd::start().await?; // .endpoint.socket, .subnet, …
//!
//! let system = System::start(Options::default().replicas(2)).await?;
//! let _login = (system.url(), &system.admin.username, &system.admin.password);
//! system.kill("scheduler", 0);
//! # drop((postgres, nats, containerd));
//! # Ok(())
//! # }
//! ```
//!
//! Everything of it ends when the value is dropped, when the test panics, and when the
//! test program is killed.

mod abandoned;
mod child;
pub mod cli;
mod cluster;
mod containerd;
mod identity;
mod image;
mod instance;
mod kubernetes;
mod log_file;
mod nats;
mod network;
mod parts;
mod plan;
mod ports;
mod postgres;
mod secrets;
mod services;
mod state;
mod status;
mod supervisor;
mod system;
mod tool;

pub use cluster::Runtime;
pub use containerd::{ContainerdEndpoint, ContainerdError};
pub use identity::ProcessIdentity;
pub use image::programs::{of_program, of_services, of_stores};
pub use image::{Archive, ImageError};
pub use instance::{StartError, bin_dir, boxd};
pub use kubernetes::existing::ExistingKubernetes;
pub use kubernetes::guest::Tools;
pub use kubernetes::{KubernetesEndpoint, KubernetesError, build_kubernetes};
pub use nats::NatsEndpoint;
pub use network::{Subnet, resolvers};
pub use parts::{TestContainerd, TestKubernetes, TestNats, TestPostgres};
pub use plan::Parts;
pub use postgres::{PostgresEndpoint, PostgresError};
pub use secrets::ALL_ACCESS_USER;
pub use services::NotBuilt;
pub use state::GatewayEndpoint;
pub use system::{Admin, Options, System};
