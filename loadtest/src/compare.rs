//! The comparison of two groups of turns of one scenario.

use std::fmt;

use serde::Serialize;

use crate::report::ScenarioRun;
use crate::statistics::{Spread, Verdict, judge};

/// One number, before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub scenario: String,
    pub name: String,
    pub unit: String,
    pub old: Spread,
    pub new: Spread,
    pub verdict: Verdict,
}

impl Change {
    /// The new median divided by the old one; `None` if the old one is 0.
    pub fn ratio(&self) -> Option<f64> {
        (self.old.median != 0.0).then(|| self.new.median / self.old.median)
    }
}

/// The changes of all numbers that both runs have, in the order of the new one.
pub fn changes(old: &ScenarioRun, new: &ScenarioRun) -> Vec<Change> {
    let old_spreads = old.spreads();
    let change = |(gauge, spread): (crate::report::Gauge, Spread)| {
        let (_, before) = old_spreads
            .iter()
            .find(|(before, _)| before.name == gauge.name)?;
        Some(Change {
            scenario: new.scenario.clone(),
            verdict: judge(before, &spread, gauge.better),
            name: gauge.name,
            unit: gauge.unit,
            old: before.clone(),
            new: spread,
        })
    };
    new.spreads().into_iter().filter_map(change).collect()
}

/// Writes the table of the changes beyond noise, and how many others there are.
///
/// # Errors
/// When `out` refuses it.
pub fn write_table(out: &mut impl fmt::Write, changes: &[Change]) -> fmt::Result {
    if changes.is_empty() {
        return Ok(());
    }
    let is_beyond = |change: &&Change| matches!(change.verdict, Verdict::Better | Verdict::Worse);
    writeln!(out, "\nchanges beyond noise, by medians of turns")?;
    for change in changes.iter().filter(is_beyond) {
        let ratio = change.ratio().map(|ratio| format!("{ratio:.2}×"));
        writeln!(
            out,
            "{:<12} {:<68} {:>10.2} → {:<10.2} {:<3} {:>7} {}",
            change.scenario,
            change.name,
            change.old.median,
            change.new.median,
            change.unit,
            ratio.unwrap_or_default(),
            change.verdict.as_str()
        )?;
    }
    let count = |verdict| changes.iter().filter(|one| one.verdict == verdict).count();
    writeln!(
        out,
        "{} better, {} worse, {} within noise, {} with too few turns",
        count(Verdict::Better),
        count(Verdict::Worse),
        count(Verdict::Noise),
        count(Verdict::TooFewTurns)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run;

    fn verdict(changes: &[Change], name: &str) -> Verdict {
        changes
            .iter()
            .find(|change| change.name == name)
            .unwrap()
            .verdict
    }

    #[test]
    fn slower_case_is_worse_in_time_and_in_rate() {
        let changes = changes(&run("s", &[10, 10, 10]), &run("s", &[20, 20, 20]));
        assert_eq!(verdict(&changes, "case: p50"), Verdict::Worse);
        assert_eq!(verdict(&changes, "case: rate"), Verdict::Worse);
        assert_eq!(verdict(&changes, "boxes"), Verdict::Noise);
        let p50 = changes[0].ratio().unwrap();
        assert!((p50 - 2.0).abs() < 0.01, "{p50}");
    }

    #[test]
    fn table_names_what_is_beyond_noise_and_counts_the_rest() {
        let changes = changes(&run("s", &[20, 20, 20]), &run("s", &[10, 10, 10]));
        let mut text = String::new();
        write_table(&mut text, &changes).unwrap();
        assert!(text.contains("case: p50"), "{text}");
        assert!(!text.contains("boxes"), "{text}");
        assert!(text.contains("3 better, 0 worse, 2 within noise"), "{text}");
    }

    #[test]
    fn number_of_one_side_only_is_not_compared() {
        let mut new = run("s", &[10, 10, 10]);
        for turn in &mut new.turns {
            turn.figures[0].name = "another case".to_owned();
        }
        let changes = changes(&run("s", &[10, 10, 10]), &new);
        let names: Vec<_> = changes.iter().map(|change| change.name.as_str()).collect();
        assert_eq!(names, ["boxes"]);
        let mut text = String::new();
        write_table(&mut text, &[]).unwrap();
        assert_eq!(text, "");
    }
}
