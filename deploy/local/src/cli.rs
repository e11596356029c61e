//! The commands of `agentbox-local`. A command that fails prints one line and exits with 1.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agentbox_contracts::permissions::SERVICES;
use agentbox_contracts::units::Bytes;
use agentbox_testing::KubernetesEndpoint;
use agentbox_testing::cluster::Cluster;
use agentbox_testing::paths::Layout;
use clap::{Parser, Subcommand};
use ipnet::IpNet;

use crate::doctor;
use crate::registry_proxy::{self, Exception};

mod dev;
mod down;
mod images;
mod import_accounts;
mod kubernetes;
mod observe;
mod prepare;
mod restart;
mod up;

pub(crate) use prepare::require_packages;

/// Runs AgentBox on this machine.
#[derive(Parser)]
#[command(name = "agentbox-local")]
struct Arguments {
    /// The directory of data, logs and secrets.
    #[arg(long, global = true, env = "AGENTBOX_DIR", default_value = ".agentbox")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install and build the requirements: packages, a NATS server, images.
    Prepare {
        /// Also build the programs of a Kubernetes, which takes minutes once.
        #[arg(long)]
        kubernetes: bool,
        /// Also install Prometheus, and build Jaeger and the trace collector, which takes minutes once.
        #[arg(long)]
        observe: bool,
    },
    /// Start everything and wait until it is ready.
    Up(up::Options),
    /// Start a trace collector, Jaeger, Prometheus and the canary beside the running system, and restart
    /// its services one replica after the other.
    Observe,
    /// Stop everything and keep the data.
    Down,
    /// Check whether this machine can run AgentBox; exits with 1 if it cannot.
    Doctor,
    /// List the processes, and why a process is not ready.
    Status,
    /// Print the end of the logs.
    Logs {
        /// One process (`auth-0`) or all replicas of a service (`auth`).
        service: Option<String>,
        /// Print new lines as they are written.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop everything and remove the data.
    Clean,
    /// Rebuild a service when a source file changes, and restart it in the running system.
    Dev {
        #[arg(value_parser = SERVICES)]
        service: String,
    },
    /// Restart the processes of a service, one replica after the other.
    Restart {
        #[arg(value_parser = SERVICES)]
        service: String,
    },
    /// Build the container images of the services and of boxd, without a container daemon.
    Images {
        /// The directory for the archives, for `docker load`, `crane push` or `ctr images import`.
        directory: PathBuf,
        /// The prefix of the images' names, such as registry.example/team.
        #[arg(long, default_value = "")]
        registry: String,
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
    },
    /// Run a proxy between a containerd and the registries, which keeps pulls out of private networks
    /// and refuses images that are too large. `up` starts it.
    RegistryProxy {
        /// The address on which containerd reaches it.
        #[arg(long, default_value = "127.0.0.1:5100")]
        listen: SocketAddr,
        /// Registries that may have a private address or speak HTTP, such as
        /// http://127.0.0.1:5000, with commas between them.
        #[arg(
            long = "exception",
            env = "AGENTBOX_REGISTRY_EXCEPTIONS",
            value_delimiter = ','
        )]
        exceptions: Vec<Exception>,
        /// Further networks that no pull may reach, with commas between them.
        #[arg(
            long = "deny",
            env = "AGENTBOX_REGISTRY_DENIED_CIDRS",
            value_delimiter = ','
        )]
        denied: Vec<IpNet>,
        /// The largest image, by the compressed sizes in its manifest.
        #[arg(long, env = "AGENTBOX_MAX_IMAGE", default_value = "10Gi")]
        max_image: Bytes,
    },
    /// Run the supervisor of an instance; started by `up` and by tests.
    #[command(hide = true)]
    Supervise {
        /// Stop when standard input ends.
        #[arg(long)]
        until_stdin_ends: bool,
    },
    /// Validate dashboards with Grafana's own types; started by tests.
    #[command(hide = true)]
    ValidateDashboards { files: Vec<PathBuf> },
    /// Import images for tests of accounts into a running cluster; started by tests.
    #[command(hide = true)]
    ImportAccounts {
        /// The cluster's entry in the clusters file, as JSON.
        #[arg(value_parser = parse_cluster)]
        cluster: Cluster,
        /// The images, each `NAME=CONFIG` with the image's `config` object as JSON.
        images: Vec<String>,
    },
    /// Extend a running Kubernetes of an instance; started by tests.
    #[command(hide = true)]
    Kubernetes {
        #[command(subcommand)]
        command: KubernetesCommand,
    },
}

#[derive(Subcommand)]
enum KubernetesCommand {
    /// Build the programs of a Kubernetes.
    Build,
    /// Install CoreDNS.
    AddDns {
        /// The cluster's object in the clusters file, as JSON.
        #[arg(value_parser = parse_endpoint)]
        endpoint: KubernetesEndpoint,
    },
    /// Push an image with one static program to the cluster's registry; prints its full name.
    PushProgram {
        /// The cluster's object in the clusters file, as JSON.
        #[arg(value_parser = parse_endpoint)]
        endpoint: KubernetesEndpoint,
        program: PathBuf,
        /// The image's name in the registry.
        name: String,
    },
}

fn parse_endpoint(json: &str) -> Result<KubernetesEndpoint, serde_json::Error> {
    serde_json::from_str(json)
}

fn parse_cluster(json: &str) -> Result<Cluster, serde_json::Error> {
    serde_json::from_str(json)
}

#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Single-threaded; the documentation of `crate::supervisor` gives the reason.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("agentbox-local: {error:#}");
    ExitCode::FAILURE
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(&arguments.dir)?;
    let layout = Layout::new(directory);
    match arguments.command {
        Command::Prepare {
            kubernetes,
            observe,
        } => prepare::run(kubernetes, observe).await?,
        Command::Up(options) => up::run(&layout, options).await?,
        Command::Observe => observe::run(&layout).await?,
        Command::ValidateDashboards { files } => observe::validate(&files).await?,
        Command::Down => down::run(&layout).await?,
        Command::Clean => down::clean(&layout).await?,
        Command::Dev { service } => dev::run(&layout, &service).await?,
        Command::Restart { service } => restart::run(&layout, &service).await?,
        Command::Images {
            directory,
            registry,
            tag,
        } => images::run(&std::path::absolute(&directory)?, &registry, &tag).await?,
        Command::RegistryProxy {
            listen,
            exceptions,
            denied,
            max_image,
        } => {
            let settings = registry_proxy::Settings {
                listen,
                exceptions,
                denied,
                max_image_bytes: max_image.0,
            };
            registry_proxy::run(settings).await?;
        }
        Command::Supervise { until_stdin_ends } => {
            crate::supervisor::run(layout, until_stdin_ends).await?;
        }
        Command::ImportAccounts { cluster, images } => {
            import_accounts::run(&cluster, &images).await?;
        }
        Command::Kubernetes { command } => kubernetes::run(command).await?,
        Command::Logs { service, follow } => logs(&layout, service.as_deref(), follow)?,
        Command::Doctor => {
            let findings = doctor::examine(layout.directory()).await;
            let (report, passed) = doctor::report(&findings);
            print!("{report}");
            return Ok(if passed {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Status => {
            let (report, is_ready) = crate::status::report(&layout).await;
            print!("{report}");
            return Ok(if is_ready {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process with `tail`, which handles rotated files and terminals.
fn logs(layout: &Layout, service: Option<&str>, follow: bool) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    let is_selected = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        path.extension().is_some_and(|extension| extension == "log")
            && service.is_none_or(|service| {
                name == service
                    || name
                        .strip_prefix(service)
                        .is_some_and(|r| r.starts_with('-'))
            })
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(layout.logs())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_selected(path))
        .collect();
    files.sort();
    if files.is_empty() {
        let logs = layout.logs();
        match service {
            Some(service) => anyhow::bail!("no log of {service} in {}", logs.display()),
            None => anyhow::bail!("no logs in {}", logs.display()),
        }
    }
    let mut tail = std::process::Command::new("tail");
    tail.args(["-n", "100"]);
    if follow {
        tail.arg("-F");
    }
    Err(tail.args(files).exec().into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn configuration_reference_matches_code() {
        agentbox_service::configuration::check("agentbox-local", &Arguments::command()).unwrap();
    }
}
