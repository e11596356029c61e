//! The commands of `agentbox-local`. What fails says one line and exits with 1.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::plan::Layout;

mod down;
mod images;
mod prepare;
mod up;

/// AgentBox on this machine.
#[derive(Parser)]
#[command(name = "agentbox-local")]
struct Arguments {
    /// Where data, logs and secrets are kept.
    #[arg(long, global = true, env = "AGENTBOX_DIR", default_value = ".agentbox")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install and build what is needed: packages, a NATS server, images.
    Prepare {
        /// Also the programs of a Kubernetes: minutes of compiling, once.
        #[arg(long)]
        kubernetes: bool,
    },
    /// Start everything and wait until it is ready.
    Up(up::Options),
    /// Stop everything; data stay.
    Down,
    /// What runs, and what is not ready.
    Status,
    /// The programs' output.
    Logs {
        /// One program (`auth-0`) or all replicas of a service (`auth`).
        service: Option<String>,
        /// Go on with what comes.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop everything and remove its data.
    Clean,
    /// Build the container images of the services and of boxd, without a container daemon.
    Images {
        /// Where the archives go, each for `docker load`, `crane push` or `ctr images import`.
        directory: PathBuf,
        /// Put before the images' names: registry.example/team
        #[arg(long, default_value = "")]
        registry: String,
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
    },
    /// Owns a running instance; started by `up` and by tests.
    #[command(hide = true)]
    Supervise {
        /// End when standard input ends.
        #[arg(long)]
        until_stdin_ends: bool,
    },
}

#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: see `supervisor`.
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
        Command::Prepare { kubernetes } => prepare::run(kubernetes).await?,
        Command::Up(options) => up::run(&layout, options).await?,
        Command::Down => down::run(&layout).await?,
        Command::Clean => down::clean(&layout).await?,
        Command::Images {
            directory,
            registry,
            tag,
        } => images::run(&std::path::absolute(&directory)?, &registry, &tag).await?,
        Command::Supervise { until_stdin_ends } => {
            crate::supervisor::run(layout, until_stdin_ends).await?;
        }
        Command::Logs { service, follow } => logs(&layout, service.as_deref(), follow)?,
        Command::Status => {
            let (report, well) = crate::status::report(&layout).await;
            print!("{report}");
            return Ok(if well {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes `tail`, which knows rotated files and terminals.
fn logs(layout: &Layout, service: Option<&str>, follow: bool) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    let wanted = |path: &Path| {
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
        .filter(|path| wanted(path))
        .collect();
    files.sort();
    if files.is_empty() {
        let what = service.unwrap_or("anything");
        anyhow::bail!("no log of {what} in {}", layout.logs().display());
    }
    let mut tail = std::process::Command::new("tail");
    tail.args(["-n", "100"]);
    if follow {
        tail.arg("-F");
    }
    Err(tail.args(files).exec().into())
}
