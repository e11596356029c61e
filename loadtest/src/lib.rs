//! Measures AgentBox from outside, and compares it with the runtime alone, with the last recorded run, or
//! with another commit.
//!
//! Every scenario is measured in turns, each in a new system. Owns the objects that it creates, and removes
//! them. Never compares its figures with a limit: it reports them with the numbers of samples and failures,
//! and says which changes exceed the noise.

mod arrivals;
mod attach;
mod boxes;
mod breakdown;
mod bus;
mod canary;
mod compare;
mod density;
mod environment;
mod exec;
mod fan_out;
mod figures;
mod first_exec;
mod history;
mod html;
mod http;
mod lists;
mod mixed;
mod open_loop;
mod options;
mod pool;
mod raw;
mod reads;
mod report;
mod resources;
mod soak;
mod statistics;
mod streams;
mod svg;
mod target;
mod turns;

use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use crate::history::{History, Recorded};
pub use crate::options::Options;
use crate::report::{About, Baseline, Report, ScenarioRun};

/// Measures AgentBox, or uses it as a user does.
#[derive(Parser)]
#[command(
    name = "agentbox-loadtest",
    version,
    args_conflicts_with_subcommands = true
)]
pub struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Use the API as a user does, again and again, and export what it saw as metrics.
    Canary(canary::Options),
}

impl Program {
    /// Runs the command; without one, measures.
    ///
    /// # Errors
    /// As [`run`], or when the canary cannot listen.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Canary(options)) => canary::run(options).await,
            None => run(self.options).await,
        }
    }
}

/// Measures, prints the tables, and writes the report and its page.
///
/// # Errors
/// When there is no system to measure, a report cannot be written, or a scenario ended early.
pub async fn run(options: Options) -> anyhow::Result<()> {
    ensure!(options.turns > 0, "--turns: must be at least 1, got 0");
    ensure!(
        options.base_programs.is_none() || target::is_new_system(),
        "--base-programs: needs new systems, but AGENTBOX_URL selects a running one"
    );
    let sides = turns::sides(&options);
    let mut measured = turns::measure(&options, &sides).await?.into_iter();
    let (about, scenarios) = measured.next().context("nothing was measured")?;
    let report = match measured.next() {
        Some((about_base, scenarios_base)) => {
            let base = Baseline {
                about: about_base,
                scenarios: scenarios_base,
            };
            Report::new(about, scenarios, vec![base])
        }
        None if options.no_record => Report::new(about, scenarios, Vec::new()),
        None => {
            let history = History::of_user();
            let baselines = last_runs(&history, &about, &scenarios);
            let report = Report::new(about, scenarios, baselines);
            record(&history, &report)?;
            report
        }
    };
    print!("{report}");
    write(&options.report, &report).await?;
    let incomplete: Vec<&str> = report
        .scenarios
        .iter()
        .chain(report.baselines.iter().flat_map(|base| &base.scenarios))
        .filter(|run| !run.is_complete())
        .map(|run| run.scenario.as_str())
        .collect();
    ensure!(
        incomplete.is_empty(),
        "these scenarios ended early: {}",
        incomplete.join(", ")
    );
    Ok(())
}

/// The last recorded run of each scenario, if it is one of the same set-up and machine.
fn last_runs(history: &History, about: &About, scenarios: &[ScenarioRun]) -> Vec<Baseline> {
    let mut baselines: Vec<Baseline> = Vec::new();
    for scenario in scenarios {
        let Some(last) = history.last(&about.runtime, &scenario.scenario) else {
            println!("{}: no earlier run is recorded", scenario.scenario);
            continue;
        };
        if !last.about.is_comparable(about) {
            println!(
                "{}: the recorded run is of another machine or set-up, and not compared",
                scenario.scenario
            );
            continue;
        }
        let same = baselines.iter_mut().find(|base| base.about == last.about);
        match same {
            Some(base) => base.scenarios.push(last.run),
            None => baselines.push(Baseline {
                about: last.about,
                scenarios: vec![last.run],
            }),
        }
    }
    baselines
}

/// Records the complete scenarios.
fn record(history: &History, report: &Report) -> anyhow::Result<()> {
    for run in report.scenarios.iter().filter(|run| run.is_complete()) {
        let recorded = Recorded {
            about: report.about.clone(),
            run: run.clone(),
        };
        let directory = history.directory().display();
        history
            .record(&recorded)
            .with_context(|| format!("recording the run in {directory}"))?;
    }
    Ok(())
}

async fn write(path: &Path, report: &Report) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    let page = path.with_extension("html");
    let json = serde_json::to_vec_pretty(report)?;
    for (path, content) in [
        (path, json),
        (page.as_path(), html::page(report).into_bytes()),
    ] {
        tokio::fs::write(path, content)
            .await
            .with_context(|| format!("writing {}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}
