//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_testing::Runtime;
use clap::{Parser, ValueEnum};

use crate::target::Setup;

/// Measures AgentBox. Starts a new system, unless AGENTBOX_URL, AGENTBOX_ADMIN_USERNAME and
/// AGENTBOX_ADMIN_PASSWORD select a running one.
#[derive(Clone, Debug, Parser)]
#[command(name = "agentbox-loadtest", version)]
pub struct Options {
    /// What to measure; by default everything but `density` and `soak`.
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,

    /// The cluster for the boxes: this machine's containerd, or a Kubernetes.
    #[arg(long, env = "RUNTIME", default_value = "containerd")]
    pub runtime: Runtime,

    /// The number of replicas of each service of a new system.
    #[arg(long, env = "REPLICAS", default_value_t = 1)]
    pub replicas: usize,

    /// How often everything is measured, each time in a new system. With fewer than three turns no
    /// change is judged.
    #[arg(long, env = "TURNS", default_value_t = 3)]
    pub turns: usize,

    /// The file for the figures as JSON. The page with charts is beside it, as `.html`.
    #[arg(long, default_value = "target/bench.json")]
    pub report: PathBuf,

    /// The commit of the measured programs, for the report.
    #[arg(long, default_value = "unknown")]
    pub commit: String,

    /// Keep the record of the last run, and do not compare with it.
    #[arg(long)]
    pub no_record: bool,

    /// The directory of another build's programs, which are measured by turns with this build's.
    #[arg(long, requires = "base_commit")]
    pub base_programs: Option<PathBuf>,

    /// The commit of the other build.
    #[arg(long, requires = "base_programs")]
    pub base_commit: Option<String>,

    /// The average requests per second of the open loops. Default: `mixed` and `soak` 40, `reads` a part
    /// of the rate that `/health/live` reached.
    #[arg(long, env = "RATE")]
    pub rate: Option<f64>,

    /// The creates of each mode of `first-exec`.
    #[arg(long, env = "CREATES", default_value_t = 100)]
    pub creates: usize,

    /// The most environments of `density`.
    #[arg(long, env = "MOST", default_value_t = 500)]
    pub most: usize,

    /// The seconds of the load of `soak`.
    #[arg(long, env = "SOAK_SECONDS", default_value_t = 3_600)]
    pub soak_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Creating boxes one by one and 20 at once, beside the runtime alone.
    Boxes,
    /// Time to the first command: one by one, staggered, and in a burst; cold and from a warm pool.
    FirstExec,
    /// Commands from 1, 32 and 256 clients, beside the runtime alone.
    Exec,
    /// Reads from 64 clients, and at a rate.
    Reads,
    /// The echo of a terminal.
    Attach,
    /// A line of a log to 1, 32 and 256 followers.
    FanOut,
    /// Reads, commands, lists, logins and creates together, at a rate.
    Mixed,
    /// Lists of 100,000 environments.
    Lists,
    /// Files and output of a GiB each.
    Streams,
    /// Idle boxes until the first limit.
    Density,
    /// The mixed load for an hour, with a check for leaks.
    Soak,
}

impl Scenario {
    /// Those that run unless others are named. The rows of `lists` would slow the others, so it is late.
    const ORDINARY: [Self; 9] = [
        Self::Boxes,
        Self::FirstExec,
        Self::Exec,
        Self::Reads,
        Self::Attach,
        Self::FanOut,
        Self::Mixed,
        Self::Streams,
        Self::Lists,
    ];

    /// Whether it uses more than the public API.
    const fn needs_new_system(self) -> bool {
        matches!(
            self,
            Self::Lists | Self::Streams | Self::Density | Self::Soak
        )
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Options {
    /// The scenarios of each turn, in their order, each once. Of a running system those that need a new
    /// one are left out, unless they are named.
    pub fn selected(&self, is_new_system: bool) -> Vec<Scenario> {
        if self.scenarios.is_empty() {
            let is_possible = |scenario: &Scenario| is_new_system || !scenario.needs_new_system();
            return Scenario::ORDINARY.into_iter().filter(is_possible).collect();
        }
        let mut selected = Vec::new();
        for scenario in &self.scenarios {
            if !selected.contains(scenario) {
                selected.push(*scenario);
            }
        }
        selected
    }

    pub fn setup(&self, programs: Option<PathBuf>) -> Setup {
        Setup {
            runtime: self.runtime,
            replicas: self.replicas,
            programs,
        }
    }

    pub fn soak_length(&self) -> Duration {
        Duration::from_secs(self.soak_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["agentbox-loadtest"][..], arguments].concat())
    }

    #[test]
    fn named_scenarios_run_once_in_their_order() {
        let options = parse(&["soak", "fan-out", "soak"]).unwrap();
        assert_eq!(options.selected(true), [Scenario::Soak, Scenario::FanOut]);
    }

    #[test]
    fn long_scenarios_run_only_when_they_are_named() {
        let selected = parse(&[]).unwrap().selected(true);
        assert!(!selected.contains(&Scenario::Soak));
        assert!(!selected.contains(&Scenario::Density));
        assert_eq!(selected.len(), Scenario::value_variants().len() - 2);
    }

    #[test]
    fn running_system_is_not_asked_for_what_needs_a_new_one() {
        let selected = parse(&[]).unwrap().selected(false);
        assert!(selected.contains(&Scenario::Exec));
        assert!(!selected.contains(&Scenario::Lists));
        let named = parse(&["lists"]).unwrap().selected(false);
        assert_eq!(named, [Scenario::Lists]);
    }

    #[test]
    fn names_of_scenarios_are_those_of_the_command_line() {
        assert_eq!(Scenario::FirstExec.name(), "first-exec");
        assert_eq!(Scenario::Lists.name(), "lists");
    }

    #[test]
    fn programs_of_another_build_need_its_commit() {
        assert!(parse(&["--base-programs", "/p"]).is_err());
        let options = parse(&["--base-programs", "/p", "--base-commit", "c"]).unwrap();
        assert_eq!(options.base_commit.as_deref(), Some("c"));
    }
}
