//! Measures a running AgentBox from outside, beside what its runtime costs alone.
//!
//! Owns nothing but the boxes it makes, which it deletes. Never judges: it prints what it
//! saw, with the number of samples and of failures.

mod cases;
mod figures;
mod raw;
mod target;

use std::path::Path;

use anyhow::Context as _;

use crate::figures::Report;
use crate::target::Target;

/// Where the figures go, from the working directory.
const REPORT: &str = "target/bench.json";

/// Measures, prints the table and writes the report.
///
/// # Errors
/// When there is no system to measure or it does not do the simplest thing.
pub async fn run() -> anyhow::Result<()> {
    let target = Target::find().await?;
    println!("measuring {}", target.describe());
    let measured = measure(&target).await;
    let description = target.describe();
    target.stop().await;
    let report = Report::new(description, measured?);
    print!("{report}");
    let path = Path::new(REPORT);
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    tokio::fs::write(path, serde_json::to_vec_pretty(&report)?)
        .await
        .with_context(|| format!("writing {REPORT}"))?;
    println!("also in {REPORT}");
    Ok(())
}

async fn measure(target: &Target) -> anyhow::Result<Vec<figures::Figure>> {
    let mut figures = cases::all(&target.client).await?;
    match &target.containerd {
        Some(socket) => figures.extend(raw::all(socket).await?),
        None => {
            println!("the runtime alone is not measured: AGENTBOX_CONTAINERD_SOCKET is not set")
        }
    }
    Ok(figures)
}
