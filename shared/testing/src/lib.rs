//! Starts real Postgres, NATS, containerd, Kubernetes and whole systems for tests.
//!
//! Owns the contract between a test and the program `agentbox-local`, which starts everything:
//! the plan that it reads, the state file that it writes, and where an instance keeps its files.
//! The program is run by its path, so this crate depends on no service and on no cluster's API.
//!
//! Never starts a part itself: `deploy/local` does.
//!
//! # In a test
//!
//! Add `agentbox-testing` to `[dev-dependencies]`. Build the program once with
//! `cargo build -p agentbox-local`; tests of whole systems also need `make test-build`.
//!
//! ```no_run
//! # async fn example() -> Result<(), agentbox_testing::StartError> {
//! use agentbox_testing::{Options, System, TestContainerd, TestNats, TestPostgres};
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
//! * I1. Everything that a test started ends when the value is dropped, when the test panics,
//!   and when the test program is killed.
//! * I2. The logs of a failed test are kept, and the test's output names their directory.

pub mod cluster;
pub mod endpoint;
mod fixtures;
mod instance;
pub mod log_tail;
pub mod paths;
pub mod plan;
pub mod private_file;
pub mod process_identity;
mod shared_logs;
pub mod state;
mod system;
pub mod tool;
mod wait;

pub use cluster::Runtime;
pub use endpoint::containerd::ContainerdEndpoint;
pub use endpoint::gateway::GatewayEndpoint;
pub use endpoint::kubernetes::{ExistingKubernetes, KubernetesEndpoint};
pub use endpoint::nats::NatsEndpoint;
pub use endpoint::observability::ObservabilityEndpoint;
pub use endpoint::postgres::PostgresEndpoint;
pub use fixtures::{TestContainerd, TestKubernetes, TestNats, TestPostgres, build_kubernetes};
pub use instance::StartError;
pub use paths::{bin_dir, boxd};
pub use plan::Components;
pub use process_identity::ProcessIdentity;
pub use system::{Admin, Options, System, check_ready};
pub use wait::{assert_fastest_below, eventually, eventually_some, pause, repeat_until_below};
