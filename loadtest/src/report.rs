//! The figures of a run: what was measured, in which turns, and their table.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::breakdown::Part;
use crate::compare::{self, Change};
use crate::figures::Figure;
use crate::statistics::{Better, Spread};
use crate::streams::Streams;

/// The parts of the time that are printed; the page and the JSON have all.
const PRINTED_PARTS: usize = 12;

/// The system and the machine of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The commit of the measured programs, as it was given.
    pub commit: String,
    /// The start of the run (RFC 3339, UTC).
    pub measured_at: String,
    pub target: String,
    pub runtime: String,
    pub replicas: usize,
    pub processors: usize,
}

impl About {
    /// Whether figures of both may be compared: another machine or set-up has other figures.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let set_up = |about: &Self| (about.target.clone(), about.runtime.clone(), about.replicas);
        set_up(self) == set_up(other) && self.processors == other.processors
    }
}

/// One number of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    pub name: String,
    pub unit: String,
    pub value: f64,
    pub better: Better,
}

impl Gauge {
    pub fn new(name: impl Into<String>, unit: &str, value: f64, better: Better) -> Self {
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value,
            better,
        }
    }
}

/// A number over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub unit: String,
    /// Seconds since the first point, and the value.
    pub points: Vec<(f64, f64)>,
}

/// What one scenario measured in one turn.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    #[serde(default)]
    pub figures: Vec<Figure>,
    #[serde(default)]
    pub streams: Option<Streams>,
    #[serde(default)]
    pub gauges: Vec<Gauge>,
    #[serde(default)]
    pub series: Vec<Series>,
    /// What the services measured meanwhile, the parts that took most time first. Empty of a running
    /// system.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Facts for the reader, such as the limit that was reached.
    #[serde(default)]
    pub findings: Vec<String>,
    /// Why the scenario ended early.
    #[serde(default)]
    pub error: Option<String>,
}

impl Measured {
    /// All numbers that can be compared with another turn.
    pub fn gauges(&self) -> Vec<Gauge> {
        let mut gauges = Vec::new();
        for figure in &self.figures {
            let name = |what: &str| format!("{}: {what}", figure.name);
            let times = [("p50", figure.p50_ms), ("p99", figure.p99_ms)];
            for (what, time) in times {
                let gauge = |ms| Gauge::new(name(what), "ms", ms, Better::Lower);
                gauges.extend(time.map(gauge));
            }
            let (rate, failures) = (figure.per_second, figure.failures as f64);
            gauges.push(Gauge::new(name("rate"), "/s", rate, Better::Higher));
            gauges.push(Gauge::new(name("failed"), "", failures, Better::Lower));
            let ratio = |ratio| Gauge::new(name("p50 / runtime alone"), "", ratio, Better::Lower);
            gauges.extend(figure.ratio().map(ratio));
        }
        gauges.extend(self.streams.iter().flat_map(Streams::gauges));
        gauges.extend(self.gauges.iter().cloned());
        gauges
    }
}

/// One scenario, in all turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScenarioRun {
    pub scenario: String,
    pub turns: Vec<Measured>,
}

impl ScenarioRun {
    pub fn is_complete(&self) -> bool {
        self.turns.iter().all(|turn| turn.error.is_none())
    }

    /// The spread of each number over the turns, in the order of the first turn that has it.
    pub fn spreads(&self) -> Vec<(Gauge, Spread)> {
        let mut order: Vec<Gauge> = Vec::new();
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for gauge in self.turns.iter().flat_map(Measured::gauges) {
            let of_name = values.entry(gauge.name.clone()).or_default();
            of_name.push(gauge.value);
            if of_name.len() == 1 {
                order.push(gauge);
            }
        }
        let spread = |gauge: Gauge| {
            let spread = Spread::of(values.remove(&gauge.name)?)?;
            Some((gauge, spread))
        };
        order.into_iter().filter_map(spread).collect()
    }
}

/// The other side of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Baseline {
    pub about: About,
    pub scenarios: Vec<ScenarioRun>,
}

/// A run, and what it is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub about: About,
    pub scenarios: Vec<ScenarioRun>,
    /// Of `make bench`, the last recorded run of each scenario; of `make bench-compare`, the other commit.
    pub baselines: Vec<Baseline>,
    pub changes: Vec<Change>,
}

impl Report {
    pub fn new(about: About, scenarios: Vec<ScenarioRun>, baselines: Vec<Baseline>) -> Self {
        let old_runs: Vec<&ScenarioRun> = baselines
            .iter()
            .flat_map(|baseline| &baseline.scenarios)
            .collect();
        let changes = scenarios.iter().flat_map(|new| {
            let old = old_runs.iter().find(|old| old.scenario == new.scenario);
            old.map(|old| compare::changes(old, new))
                .unwrap_or_default()
        });
        let changes = changes.collect();
        Self {
            about,
            scenarios,
            changes,
            baselines,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = &self.about;
        writeln!(
            f,
            "{}, commit {}; {} processors, shared with the load generator; boxes on {}, {} of each service\n\
             `/ raw`: p50 divided by the p50 of the runtime alone",
            about.target, about.commit, about.processors, about.runtime, about.replicas
        )?;
        for run in &self.scenarios {
            for (number, turn) in run.turns.iter().enumerate() {
                writeln!(f, "\n{}, turn {}", run.scenario, number + 1)?;
                write_turn(f, turn)?;
            }
            write_medians(f, run)?;
        }
        compare::write_table(f, &self.changes)
    }
}

fn write_turn(f: &mut fmt::Formatter<'_>, turn: &Measured) -> fmt::Result {
    if !turn.figures.is_empty() {
        writeln!(f, "{}", Figure::head())?;
    }
    for figure in &turn.figures {
        figure.write(f)?;
    }
    if let Some(streams) = &turn.streams {
        write!(f, "{streams}")?;
    }
    for gauge in &turn.gauges {
        writeln!(f, "{:<54} {:>10.2} {}", gauge.name, gauge.value, gauge.unit)?;
    }
    if !turn.parts.is_empty() {
        writeln!(
            f,
            "  what the services measured meanwhile: events, mean in ms"
        )?;
    }
    for part in turn.parts.iter().take(PRINTED_PARTS) {
        let (name, count, mean_ms) = (&part.name, part.count, part.mean_ms);
        writeln!(f, "  {name:<68} {count:>10.0} {mean_ms:>10.2}")?;
    }
    for finding in &turn.findings {
        writeln!(f, "  {finding}")?;
    }
    match &turn.error {
        Some(error) => writeln!(f, "  ended early: {error}"),
        None => Ok(()),
    }
}

fn write_medians(f: &mut fmt::Formatter<'_>, run: &ScenarioRun) -> fmt::Result {
    if run.turns.len() < 2 {
        return Ok(());
    }
    writeln!(
        f,
        "\n{}, medians of {} turns (± median absolute deviation)",
        run.scenario,
        run.turns.len()
    )?;
    for (gauge, spread) in run.spreads() {
        writeln!(
            f,
            "{:<68} {:>10.2} ± {:<8.2} {}",
            gauge.name, spread.median, spread.deviation, gauge.unit
        )?;
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::figures::Samples;

    pub fn about(commit: &str) -> About {
        About {
            commit: commit.to_owned(),
            measured_at: "2026-11-30T12:00:00Z".to_owned(),
            target: "a new system".to_owned(),
            runtime: "containerd".to_owned(),
            replicas: 1,
            processors: 2,
        }
    }

    /// A scenario with one case, whose time in each turn is given.
    pub fn run(scenario: &str, turns_ms: &[u64]) -> ScenarioRun {
        let turn = |ms: &u64| {
            let mut samples = Samples::default();
            samples.push(Ok(Duration::from_millis(*ms)));
            Measured {
                figures: vec![samples.figure("case")],
                gauges: vec![Gauge::new("boxes", "", 7.0, Better::Higher)],
                ..Measured::default()
            }
        };
        ScenarioRun {
            scenario: scenario.to_owned(),
            turns: turns_ms.iter().map(turn).collect(),
        }
    }

    #[test]
    fn spread_of_each_number_is_over_all_turns() {
        let spreads = run("s", &[10, 30, 20]).spreads();
        let names: Vec<_> = spreads
            .iter()
            .map(|(gauge, _)| gauge.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "case: p50",
                "case: p99",
                "case: rate",
                "case: failed",
                "boxes"
            ]
        );
        assert_eq!(spreads[0].1.values.len(), 3);
        assert!((spreads[0].1.median - 20.0).abs() < 0.1, "{spreads:?}");
    }

    #[test]
    fn report_compares_with_the_baseline_of_the_scenario() {
        let new = vec![run("a", &[20, 20, 20]), run("b", &[5, 5, 5])];
        let baseline = Baseline {
            about: about("old"),
            scenarios: vec![run("a", &[10, 10, 10])],
        };
        let report = Report::new(about("new"), new, vec![baseline]);
        assert!(report.changes.iter().all(|change| change.scenario == "a"));
        let text = report.to_string();
        assert!(text.contains("medians of 3 turns"), "{text}");
        assert!(text.contains("WORSE"), "{text}");
    }

    #[test]
    fn another_machine_or_set_up_is_not_comparable() {
        let one = about("a");
        assert!(one.is_comparable(&about("b")));
        let machine = About {
            processors: 8,
            ..one.clone()
        };
        let set_up = About {
            replicas: 2,
            ..one.clone()
        };
        assert!(!one.is_comparable(&machine));
        assert!(!one.is_comparable(&set_up));
    }

    #[test]
    fn scenario_that_ended_early_is_not_complete() {
        let mut run = run("a", &[1, 1]);
        assert!(run.is_complete());
        run.turns[1].error = Some("no box".to_owned());
        assert!(!run.is_complete());
    }
}
