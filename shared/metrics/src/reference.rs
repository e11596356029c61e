//! The reference of the metrics, `docs/metrics.md`: its tables are rendered from the definitions, and a
//! unit test of each crate compares them. Prometheus' exposition of a service is compared with it too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ::metrics::Unit;

use crate::definition::{Definition, Kind, Label, Metric, Values};

/// The variable that makes [`check`] write the tables instead of comparing them.
const UPDATE: &str = "UPDATE_METRICS";
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
/// Begins a row of a table.
const ROW: &str = "| `agentbox_";

/// Compares the table of `section` in `docs/metrics.md` with `metrics`, and checks their names. For use
/// in a test.
///
/// # Errors
/// When a name breaks a rule, or the table differs or is missing; the message says how to update it.
pub fn check(section: &str, metrics: &[&dyn Metric]) -> Result<(), String> {
    let problems: Vec<String> = metrics
        .iter()
        .filter_map(|metric| metric.definition().name_problem())
        .collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let table = table(metrics);
    let document = read()?;
    let (before, found, after) = split(&document, section)?;
    if std::env::var_os(UPDATE).is_some() {
        return std::fs::write(DOCUMENT, format!("{before}{table}{after}"))
            .map_err(|error| format!("{DOCUMENT}: {error}"));
    }
    if found == table {
        return Ok(());
    }
    Err(format!(
        "docs/metrics.md, section {section}, does not match the code. Update it with \
         `{UPDATE}=1 cargo test metrics_reference` and check the difference."
    ))
}

/// The series in `exposition`, the text of a `/metrics`, that `docs/metrics.md` does not describe: an
/// unknown metric, other labels, or a value that is not in the closed list of its label.
///
/// # Errors
/// When the document cannot be read.
pub fn undocumented(exposition: &str) -> Result<Vec<String>, String> {
    let document = read()?;
    let documented = documented(&document);
    Ok(exposition
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| Some((line, problem(line, &documented)?)))
        .map(|(line, problem)| format!("{line}: {problem}"))
        .collect())
}

fn read() -> Result<String, String> {
    std::fs::read_to_string(DOCUMENT).map_err(|error| format!("{DOCUMENT}: {error}"))
}

/// Splits the document into the parts before, in and after the table of `section`.
fn split<'a>(document: &'a str, section: &str) -> Result<(&'a str, &'a str, &'a str), String> {
    let (begin, end) = (
        format!("<!-- table: {section} -->\n"),
        "<!-- end of table -->",
    );
    let missing = || format!("docs/metrics.md has no table of the section {section}");
    let (before, rest) = document.split_once(&begin).ok_or_else(missing)?;
    let (table, _) = rest.split_once(end).ok_or_else(missing)?;
    let start = before.len() + begin.len();
    let (before, rest) = document.split_at(start);
    let (table, after) = rest.split_at(table.len());
    Ok((before, table, after))
}

fn table(metrics: &[&dyn Metric]) -> String {
    let mut table =
        String::from("| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for metric in metrics {
        let Definition {
            name,
            kind,
            unit,
            labels,
            description,
        } = metric.definition();
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| `{name}` | {} | {} | {} | {description}. |",
            kind.as_str(),
            unit_name(unit),
            labels.iter().map(label).collect::<Vec<_>>().join("; "),
        );
    }
    table
}

const fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
        _ => "",
    }
}

/// `name`: `value`, `value`; or `name`: a description.
fn label(label: &Label) -> String {
    let values = match label.values {
        Values::Bounded(description) => description.to_owned(),
        Values::OneOf(values) => {
            let quoted = |value: &&str| format!("`{value}`");
            values.iter().map(quoted).collect::<Vec<_>>().join(", ")
        }
    };
    format!("`{}`: {values}", label.name)
}

/// A metric of the document.
struct Documented<'a> {
    kind: &'a str,
    /// The labels, with the closed list of values if there is one.
    labels: BTreeMap<&'a str, Option<Vec<&'a str>>>,
}

fn unquoted(value: &str) -> Option<&str> {
    value.strip_prefix('`')?.strip_suffix('`')
}

fn documented(document: &str) -> BTreeMap<&str, Documented<'_>> {
    document
        .lines()
        .filter(|line| line.starts_with(ROW))
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let name = cells.next()?.trim_matches('`');
            let kind = cells.next()?;
            let labels = cells.nth(1)?;
            let labels = labels.split("; ").filter_map(|label| {
                let (name, values) = label.split_once(": ")?;
                let closed: Option<Vec<&str>> = values.split(", ").map(unquoted).collect();
                Some((name.trim_matches('`'), closed))
            });
            let labels = labels.collect();
            Some((name, Documented { kind, labels }))
        })
        .collect()
}

/// How a series differs from the document; `None` if it does not.
fn problem(line: &str, documented: &BTreeMap<&str, Documented<'_>>) -> Option<String> {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| name.strip_suffix(*suffix))
        .and_then(|name| documented.get(name))
        .filter(|metric| metric.kind == Kind::Histogram.as_str());
    let Some(metric) = documented.get(name).or(histogram) else {
        return Some("unknown metric".to_owned());
    };
    let labels = rest
        .strip_prefix('{')
        .and_then(|rest| rest.rsplit_once('}'))
        .map_or("", |(labels, _)| labels);
    let mut found = 0;
    for label in labels.split("\",").filter(|label| !label.is_empty()) {
        let Some((label, value)) = label.split_once("=\"") else {
            return Some(format!("malformed label {label}"));
        };
        if label == "le" && metric.kind == Kind::Histogram.as_str() {
            continue;
        }
        found += 1;
        match metric.labels.get(label) {
            None => return Some(format!("unknown label {label}")),
            Some(Some(values)) if !values.contains(&value.trim_end_matches('"')) => {
                return Some(format!("{label} must be one of {values:?}"));
            }
            Some(_) => {}
        }
    }
    let expected = metric.labels.len();
    (found != expected).then(|| format!("must have {expected} labels, has {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Histogram};

    static JOBS: Counter<2> = Counter::new(
        "agentbox_jobs_total",
        Unit::Count,
        [
            Label::one_of("outcome", &["ok", "failed"]),
            Label::bounded("cluster", "the name of a cluster"),
        ],
        "Jobs that ended",
    );
    static SECONDS: Histogram = Histogram::new(
        "agentbox_job_duration_seconds",
        Unit::Seconds,
        [],
        "Duration of a job",
    );

    #[test]
    fn table_lists_types_units_and_values_of_labels() {
        assert_eq!(
            table(&[&JOBS, &SECONDS])
                .lines()
                .skip(2)
                .collect::<Vec<_>>(),
            [
                "| `agentbox_jobs_total` | counter |  | `outcome`: `ok`, `failed`; `cluster`: the \
                 name of a cluster | Jobs that ended. |",
                "| `agentbox_job_duration_seconds` | histogram | seconds |  | Duration of a job. |",
            ]
        );
    }

    #[test]
    fn series_that_differs_from_its_row_is_a_problem() {
        let document = table(&[&JOBS, &SECONDS]);
        let documented = documented(&document);
        let is_ok = |line: &str| problem(line, &documented).is_none();
        assert!(is_ok(
            "agentbox_jobs_total{outcome=\"ok\",cluster=\"a,b\"} 1"
        ));
        assert!(is_ok("agentbox_job_duration_seconds_bucket{le=\"0.1\"} 1"));
        assert!(is_ok("agentbox_job_duration_seconds_sum 1.5"));
        for other in [
            "agentbox_other 1",
            "agentbox_jobs_total_count 1",
            "agentbox_jobs_total{outcome=\"ok\"} 1",
            "agentbox_jobs_total{outcome=\"late\",cluster=\"a\"} 1",
            "agentbox_jobs_total{outcome=\"ok\",cluster=\"a\",owner=\"b\"} 1",
            "agentbox_job_duration_seconds_count{cluster=\"a\"} 1",
        ] {
            assert!(!is_ok(other), "{other}");
        }
    }

    #[test]
    fn missing_section_is_an_error() {
        let document = "a\n<!-- table: bus -->\nrows\n<!-- end of table -->\nb";
        let (before, rows, after) = split(document, "bus").unwrap();
        assert_eq!(before, "a\n<!-- table: bus -->\n");
        assert_eq!((rows, after), ("rows\n", "<!-- end of table -->\nb"));
        split(document, "auth").unwrap_err();
    }
}
