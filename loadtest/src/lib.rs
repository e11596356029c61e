//! Measures an AgentBox from outside, beside what its runtime costs alone.
//!
//! Owns nothing but what it makes, which it removes. Never judges: it prints what it saw,
//! with the number of samples and of failures.

mod boxes;
mod figures;
mod lists;
mod raw;
mod target;

use std::path::PathBuf;

use agentbox_testing::Runtime;
use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use crate::figures::{Figure, Report};
use crate::target::Target;

/// Measures AgentBox. Starts a system of its own, unless AGENTBOX_URL,
/// AGENTBOX_ADMIN_USERNAME and AGENTBOX_ADMIN_PASSWORD name one.
#[derive(Parser)]
#[command(name = "agentbox-loadtest", version)]
pub struct Options {
    /// What to measure; everything when it is not said.
    #[arg(value_enum)]
    only: Option<Part>,

    /// Where boxes run: this machine's containerd, or a Kubernetes.
    #[arg(long, env = "RUNTIME", default_value = "containerd")]
    runtime: Runtime,

    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    report: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Creating boxes and running commands in them.
    Boxes,
    /// Lists of 100,000 environments.
    Lists,
}

/// Measures, prints the table and writes the report.
///
/// # Errors
/// When there is no system to measure or it does not do the simplest thing.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let target = Target::find(options.runtime).await?;
    let description = target.describe();
    println!("measuring {description}");
    let measured = measure(&target, options.only).await;
    target.stop().await;
    let report = Report::new(description, options.runtime, measured?);
    print!("{report}");
    let path = &options.report;
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    tokio::fs::write(path, serde_json::to_vec_pretty(&report)?)
        .await
        .with_context(|| format!("writing {}", path.display()))?;
    println!("also in {}", path.display());
    Ok(())
}

async fn measure(target: &Target, only: Option<Part>) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if only != Some(Part::Lists) {
        figures.extend(boxes::all(target).await?);
    }
    if only != Some(Part::Boxes) {
        match target.own() {
            Some(system) => figures.extend(lists::all(system).await?),
            None => println!("lists are not measured: they need a system of their own"),
        }
    }
    Ok(figures)
}
