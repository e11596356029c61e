//! Measures AgentBox from outside, and compares it with the cost of the runtime alone.
//!
//! Owns the objects that it creates, and removes them. Never compares its figures with a limit:
//! it reports them with the numbers of samples and failures.

mod boxes;
mod bus;
mod canary;
mod figures;
mod lists;
mod raw;
mod streams;
mod target;

use std::path::PathBuf;

use agentbox_testing::Runtime;
use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use crate::figures::{Figure, Report};
use crate::raw::Raw;
use crate::streams::Streams;
use crate::target::{Target, runtime_variable};

/// Measures AgentBox. Starts a new system, unless AGENTBOX_URL, AGENTBOX_ADMIN_USERNAME and
/// AGENTBOX_ADMIN_PASSWORD select a running one.
#[derive(Parser)]
#[command(
    name = "agentbox-loadtest",
    version,
    args_conflicts_with_subcommands = true
)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    /// What to measure; by default everything.
    #[arg(value_enum)]
    only: Option<Suite>,

    /// The cluster for the boxes: this machine's containerd, or a Kubernetes.
    #[arg(long, env = "RUNTIME", default_value = "containerd")]
    runtime: Runtime,

    /// The file for the figures as JSON.
    #[arg(long, default_value = "target/bench.json")]
    report: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Use the API as a user does, again and again, and export what it saw as metrics.
    Canary(canary::Options),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Creating boxes and running commands in them.
    Boxes,
    /// Lists of 100,000 environments.
    Lists,
    /// Files and output of a GiB each.
    Streams,
}

/// Measures, prints the table and writes the report; or runs the canary.
///
/// # Errors
/// When there is no system to measure, or a first box does not run; or the canary cannot listen.
pub async fn run(options: Options) -> anyhow::Result<()> {
    if let Some(Command::Canary(canary)) = options.command {
        return canary::run(canary).await;
    }
    let target = Target::find(options.runtime).await?;
    let description = target.describe();
    println!("measuring {description}");
    let measured = measure(&target, options.only).await;
    target.stop().await;
    let (figures, streams) = measured?;
    let report = Report::new(description, options.runtime, figures, streams);
    print!("{report}");
    let path = &options.report;
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    tokio::fs::write(path, serde_json::to_vec_pretty(&report)?)
        .await
        .with_context(|| format!("writing {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

async fn measure(
    target: &Target,
    only: Option<Suite>,
) -> anyhow::Result<(Vec<Figure>, Option<Streams>)> {
    let is_wanted = |suite: Suite| only.is_none_or(|only| only == suite);
    let mut figures = Vec::new();
    let mut streams = None;
    if is_wanted(Suite::Boxes) {
        let raw = connect_raw(target).await?;
        figures.extend(boxes::measure(&target.client, raw.as_deref()).await?);
    }
    if is_wanted(Suite::Lists) {
        match target.new_system() {
            Some(system) => figures.extend(lists::measure(system).await?),
            None => println!("lists are not measured: they need a new system"),
        }
    }
    if is_wanted(Suite::Streams) {
        match target.new_system() {
            Some(system) => streams = Some(streams::measure(&target.client, system).await?),
            None => println!("streams are not measured: they need a new system"),
        }
    }
    Ok((figures, streams))
}

/// The target's runtime alone, if its path is known.
async fn connect_raw(target: &Target) -> anyhow::Result<Option<Box<dyn Raw>>> {
    let Some(path) = &target.runtime_path else {
        let variable = runtime_variable(target.runtime);
        println!("the runtime alone is not measured: {variable} is not set");
        return Ok(None);
    };
    raw::connect(target.runtime, path).await.map(Some)
}
