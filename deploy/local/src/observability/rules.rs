//! The rules of Prometheus, as they are deployed, or changed for a test.

use agentbox_testing::plan::Plan;

use super::PROMETHEUS;

const RULES: &str = include_str!("../../../observability/prometheus/rules.yaml");
/// The variable of a test's Prometheus that replaces the ranges of the rules.
const RANGE_VARIABLE: &str = "RANGE";
/// The ranges in the expressions of the rules.
const RANGES: [&str; 6] = ["5m", "10m", "15m", "30m", "1h", "6h"];

/// The rules of an instance.
pub(super) fn of(plan: &Plan) -> String {
    if !plan.is_test() {
        return RULES.to_owned();
    }
    let variables = plan.environment.get(PROMETHEUS);
    let rules = without_durations(RULES);
    match variables.and_then(|variables| variables.get(RANGE_VARIABLE)) {
        Some(range) => with_range(&rules, range),
        None => rules,
    }
}

/// Rules that are evaluated as often as targets are read, and whose alerts fire as soon as their expression
/// holds. `promtool test rules` tests the durations.
fn without_durations(rules: &str) -> String {
    let mut changed = String::with_capacity(rules.len());
    for line in rules.lines() {
        let indent = line.len() - line.trim_start().len();
        let (spaces, rest) = line.split_at(indent);
        changed.push_str(spaces);
        changed.push_str(match rest.split_once(": ") {
            Some(("for", _)) => "for: 0s",
            Some(("interval", _)) => "interval: 1s",
            _ => rest,
        });
        changed.push('\n');
    }
    changed
}

/// Rules whose expressions look back for `range` alone, so that an alert ends soon after its cause.
fn with_range(rules: &str, range: &str) -> String {
    RANGES.iter().fold(rules.to_owned(), |rules, known| {
        rules
            .replace(&format!("[{known}]"), &format!("[{range}]"))
            .replace(&format!("offset {known})"), &format!("offset {range})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_test_have_no_durations() {
        let rules = "  - name: a\n    interval: 30s\n      - alert: b\n        for: 5m\n        expr: c > 1\n";
        assert_eq!(
            without_durations(rules),
            "  - name: a\n    interval: 1s\n      - alert: b\n        for: 0s\n        expr: c > 1\n"
        );
        assert_eq!(
            without_durations(RULES).lines().count(),
            RULES.lines().count()
        );
    }

    #[test]
    fn every_range_of_the_rules_is_replaced() {
        let rules = with_range(RULES, "1m");
        let ranges: Vec<&str> = rules
            .split('[')
            .skip(1)
            .filter_map(|rest| rest.split(']').next())
            .collect();
        assert!(ranges.len() > 30, "{ranges:?}");
        assert!(ranges.iter().all(|range| *range == "1m"), "{ranges:?}");
        let offsets: Vec<&str> = rules.split("offset ").skip(1).collect();
        assert!(!offsets.is_empty());
        assert!(offsets.iter().all(|rest| rest.starts_with("1m)")));
    }
}
