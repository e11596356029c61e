//! The turns of a run: each measures every side once, in a new system.
//!
//! With two sides the order alternates, so that a machine that slows down or warms up treats both
//! alike.

use std::path::PathBuf;

use anyhow::Context as _;
use chrono::{SecondsFormat, Utc};

use crate::options::{Options, Scenario};
use crate::raw::{self, Raw};
use crate::report::{About, Measured, ScenarioRun};
use crate::target::{Target, is_new_system, runtime_variable};
use crate::{
    attach, boxes, breakdown, density, environment, exec, fan_out, first_exec, lists, mixed, reads,
    soak, streams,
};

/// The programs of one commit.
#[derive(Clone, Debug)]
pub struct Side {
    pub commit: String,
    /// `None`: this build's.
    programs: Option<PathBuf>,
}

/// This build, and the other one if there is one.
pub fn sides(options: &Options) -> Vec<Side> {
    let mut sides = vec![Side {
        commit: options.commit.clone(),
        programs: None,
    }];
    if let (Some(programs), Some(commit)) = (&options.base_programs, &options.base_commit) {
        sides.push(Side {
            commit: commit.clone(),
            programs: Some(programs.clone()),
        });
    }
    sides
}

/// The indexes of the sides in the order of one turn.
fn order(turn: usize, sides: usize) -> Vec<usize> {
    let order = 0..sides;
    if turn.is_multiple_of(2) {
        order.collect()
    } else {
        order.rev().collect()
    }
}

/// Measures all sides. Gives what was measured of each, in their order.
///
/// # Errors
/// When a system cannot be started, or does not run a first command.
pub async fn measure(
    options: &Options,
    sides: &[Side],
) -> anyhow::Result<Vec<(About, Vec<ScenarioRun>)>> {
    let scenarios = options.selected(is_new_system());
    let empty = |scenario: &Scenario| ScenarioRun {
        scenario: scenario.name(),
        turns: Vec::new(),
    };
    let mut measured: Vec<(About, Vec<ScenarioRun>)> = sides
        .iter()
        .map(|side| (about(options, side), scenarios.iter().map(empty).collect()))
        .collect();
    for turn in 0..options.turns {
        for index in order(turn, sides.len()) {
            let (Some(side), Some((about, runs))) = (sides.get(index), measured.get_mut(index))
            else {
                continue;
            };
            println!(
                "turn {} of {}, commit {}",
                turn + 1,
                options.turns,
                side.commit
            );
            let target = Target::find(&options.setup(side.programs.clone())).await?;
            about.target = target.describe();
            let outcome = measure_turn(&target, options, &scenarios).await;
            target.stop().await;
            for (run, measured) in runs.iter_mut().zip(outcome?) {
                run.turns.push(measured);
            }
        }
    }
    Ok(measured)
}

fn about(options: &Options, side: &Side) -> About {
    About {
        commit: side.commit.clone(),
        measured_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
        target: String::new(),
        runtime: options.runtime.as_str().to_owned(),
        replicas: options.replicas,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
    }
}

/// Measures each scenario once. One that fails has its error; the others follow.
async fn measure_turn(
    target: &Target,
    options: &Options,
    scenarios: &[Scenario],
) -> anyhow::Result<Vec<Measured>> {
    environment::warm_up(&target.api).await?;
    let raw = connect_raw(target).await?;
    let mut all = Vec::new();
    for scenario in scenarios {
        println!("measuring {}", scenario.name());
        let before = breakdown::read(target).await;
        let measured = measure_scenario(target, options, raw.as_deref(), *scenario).await;
        let mut measured = measured.unwrap_or_else(|error| {
            println!("{} ended early: {error:#}", scenario.name());
            Measured {
                error: Some(format!("{error:#}")),
                ..Measured::default()
            }
        });
        if let (Some(before), Some(after)) = (before, breakdown::read(target).await) {
            measured.parts = after.since(&before);
        }
        all.push(measured);
    }
    Ok(all)
}

async fn measure_scenario(
    target: &Target,
    options: &Options,
    raw: Option<&dyn Raw>,
    scenario: Scenario,
) -> anyhow::Result<Measured> {
    let api = &target.api;
    match scenario {
        Scenario::Boxes => Ok(boxes::measure(api, raw).await),
        Scenario::FirstExec => first_exec::measure(api, options.creates).await,
        Scenario::Exec => exec::measure(api, raw).await,
        Scenario::Reads => reads::measure(api, options.rate).await,
        Scenario::Attach => attach::measure(api).await,
        Scenario::FanOut => fan_out::measure(api).await,
        Scenario::Mixed => mixed::measure(api, options.rate).await,
        Scenario::Lists => Ok(Measured {
            figures: lists::measure(target.require_new_system()?).await?,
            ..Measured::default()
        }),
        Scenario::Streams => Ok(Measured {
            streams: Some(streams::measure(api, target.require_new_system()?).await?),
            ..Measured::default()
        }),
        Scenario::Density => density::measure(target, options.most).await,
        Scenario::Soak => soak::measure(target, options.rate, options.soak_length()).await,
    }
}

/// The target's runtime alone, if its path is known.
async fn connect_raw(target: &Target) -> anyhow::Result<Option<Box<dyn Raw>>> {
    let Some(path) = &target.runtime_path else {
        let variable = runtime_variable(target.runtime);
        println!("the runtime alone is not measured: {variable} is not set");
        return Ok(None);
    };
    let raw = raw::connect(target.runtime, path).await;
    raw.map(Some).context("connecting to the runtime alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_two_sides_alternates() {
        let orders: Vec<_> = (0..3).map(|turn| order(turn, 2)).collect();
        assert_eq!(orders, [vec![0, 1], vec![1, 0], vec![0, 1]]);
        assert_eq!(order(1, 1), [0]);
    }
}
