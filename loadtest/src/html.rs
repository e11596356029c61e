//! The report as one HTML page with SVG charts. It needs no script and no other file.

use std::fmt::Write as _;

use crate::compare::Change;
use crate::figures::Figure;
use crate::report::{Gauge, Measured, Report, ScenarioRun};
use crate::statistics::{Spread, Verdict};
use crate::svg::{Bar, Line, bars, escape, lines};

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1b1f24;\
background:#fff}\
h2{margin-top:2.2rem;border-bottom:1px solid #d0d7de}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
td,th{padding:.15rem .5rem;text-align:right;border-bottom:1px solid #eaeef2}\
td:first-child,th:first-child{text-align:left}\
svg{max-width:100%;height:auto;margin:.6rem 0;font-size:12px}\
svg text{fill:#1b1f24}.label{text-anchor:end}.tick{text-anchor:middle}.grid{stroke:#eaeef2}\
circle{fill:#1b1f24;fill-opacity:.6}polyline{fill:none;stroke-width:1.8}\
.c0{fill:#0969da}.c1{fill:#bf8700}.c2{fill:#1a7f37}.c3{fill:#8250df}.c4{fill:#cf222e}.c5{fill:#57606a}\
.s0{stroke:#0969da}.s1{stroke:#bf8700}.s2{stroke:#1a7f37}.s3{stroke:#8250df}.s4{stroke:#cf222e}\
.s5{stroke:#57606a}\
.better{color:#1a7f37}.worse{color:#cf222e;font-weight:600}.note{color:#57606a}";

/// Gives the page.
pub fn page(report: &Report) -> String {
    let mut page =
        String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let about = &report.about;
    let _ = write!(
        page,
        "<title>AgentBox: measurements</title><style>{STYLE}</style></head><body>\
         <h1>AgentBox: measurements</h1>\
         <p>{}, commit {}, {}. {} processors, shared with the load generator; boxes on {}, {} of each \
         service.</p>",
        escape(&about.target),
        escape(&about.commit),
        escape(&about.measured_at),
        about.processors,
        escape(&about.runtime),
        about.replicas
    );
    changes(&mut page, report);
    for run in &report.scenarios {
        scenario(&mut page, run, &report.changes);
    }
    page.push_str("</body></html>\n");
    page
}

fn changes(page: &mut String, report: &Report) {
    if report.changes.is_empty() {
        return;
    }
    page.push_str("<h2>Changes</h2><p class=\"note\">Compared with ");
    let names: Vec<String> = report
        .baselines
        .iter()
        .map(|baseline| {
            let about = &baseline.about;
            format!("commit {} of {}", about.commit, about.measured_at)
        })
        .collect();
    let _ = write!(
        page,
        "{}, by medians of turns. A change counts if it exceeds three standard deviations (estimated by \
         the median absolute deviation) and five percent.</p>",
        escape(&names.join("; "))
    );
    page.push_str("<table><tr><th>case</th><th>before</th><th>now</th><th></th><th></th></tr>");
    for change in &report.changes {
        change_row(page, change);
    }
    page.push_str("</table>");
}

fn change_row(page: &mut String, change: &Change) {
    let class = match change.verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Noise | Verdict::TooFewTurns => "note",
    };
    let ratio = change.ratio().map(|ratio| format!("{ratio:.2}×"));
    let _ = write!(
        page,
        "<tr><td>{}: {}</td><td>{:.2}</td><td>{:.2} {}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
        escape(&change.scenario),
        escape(&change.name),
        change.old.median,
        change.new.median,
        escape(&change.unit),
        ratio.unwrap_or_default(),
        change.verdict.as_str()
    );
}

fn scenario(page: &mut String, run: &ScenarioRun, all_changes: &[Change]) {
    let title = &run.scenario;
    let _ = write!(page, "<h2>{}</h2>", escape(title));
    let spreads = run.spreads();
    let mut of_unit: Vec<(&str, Vec<Bar>)> = Vec::new();
    for (gauge, spread) in &spreads {
        if !is_charted(gauge) {
            continue;
        }
        let group = match of_unit.iter().position(|(unit, _)| *unit == gauge.unit) {
            Some(group) => group,
            None => {
                of_unit.push((gauge.unit.as_str(), Vec::new()));
                of_unit.len() - 1
            }
        };
        let before = all_changes
            .iter()
            .find(|change| change.scenario == run.scenario && change.name == gauge.name);
        if let Some((_, bars)) = of_unit.get_mut(group) {
            bars.extend(before.map(|change| bar("before", &change.old, 5)));
            bars.push(bar(&gauge.name, spread, 0));
        }
    }
    for (unit, of_unit) in &of_unit {
        page.push_str(&bars(&format!("{title} in {unit}"), unit, of_unit));
    }
    if let Some(last) = run.turns.last() {
        curves(page, last);
        series(page, last);
    }
    table(page, &spreads);
    if let Some(last) = run.turns.last() {
        parts(page, last);
    }
    findings(page, run);
}

/// Failures are in the table; a bar of zero tells nothing.
fn is_charted(gauge: &Gauge) -> bool {
    !gauge.name.ends_with(": failed") && !gauge.unit.is_empty()
}

fn bar(label: &str, spread: &Spread, class: usize) -> Bar {
    Bar {
        label: label.to_owned(),
        value: spread.median,
        dots: spread.values.clone(),
        class,
    }
}

/// The times by percentile, of the last turn.
fn curves(page: &mut String, turn: &Measured) {
    let curve = |figure: &Figure| Line {
        label: figure.name.clone(),
        points: figure.curve.clone(),
    };
    let all: Vec<Line> = turn.figures.iter().map(curve).collect();
    page.push_str(&lines("times by percentile", "percentile", "ms", &all));
}

/// The series of the last turn, those of one unit in one chart.
fn series(page: &mut String, turn: &Measured) {
    let mut units: Vec<&str> = turn.series.iter().map(|one| one.unit.as_str()).collect();
    units.sort_unstable();
    units.dedup();
    for unit in units {
        let of_unit = turn.series.iter().filter(|one| one.unit == unit);
        let all: Vec<Line> = of_unit
            .map(|one| Line {
                label: one.name.clone(),
                points: one.points.clone(),
            })
            .collect();
        page.push_str(&lines(&format!("{unit} over time"), "seconds", unit, &all));
    }
}

fn table(page: &mut String, spreads: &[(Gauge, Spread)]) {
    page.push_str("<table><tr><th>case</th><th>median</th><th>deviation</th><th>turns</th></tr>");
    for (gauge, spread) in spreads {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{:.2} {}</td><td>{:.2}</td><td>{}</td></tr>",
            escape(&gauge.name),
            spread.median,
            escape(&gauge.unit),
            spread.deviation,
            spread.values.len()
        );
    }
    page.push_str("</table>");
}

/// What the services measured in the last turn.
fn parts(page: &mut String, turn: &Measured) {
    if turn.parts.is_empty() {
        return;
    }
    page.push_str(
        "<table><tr><th>what the services measured in the last turn</th><th>events</th>\
         <th>mean</th></tr>",
    );
    for part in &turn.parts {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{:.0}</td><td>{:.2} ms</td></tr>",
            escape(&part.name),
            part.count,
            part.mean_ms
        );
    }
    page.push_str("</table>");
}

fn findings(page: &mut String, run: &ScenarioRun) {
    for (number, turn) in run.turns.iter().enumerate() {
        let error = turn
            .error
            .iter()
            .map(|error| format!("ended early: {error}"));
        for finding in turn.findings.iter().cloned().chain(error) {
            let _ = write!(page, "<p>Turn {}: {}</p>", number + 1, escape(&finding));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breakdown::Part;
    use crate::report::Baseline;
    use crate::report::tests::{about, run};

    #[test]
    fn page_has_charts_and_no_script() {
        let mut measured = run("exec <1>", &[10, 11, 12]);
        measured.turns[0]
            .findings
            .push("the limit: QUOTA".to_owned());
        measured.turns[2].parts.push(Part {
            name: "answer GET /<route>".to_owned(),
            count: 4.0,
            mean_ms: 1.5,
        });
        let page = page(&Report::new(about("new"), vec![measured], Vec::new()));
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        assert!(page.contains("<svg"), "{page}");
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("exec &lt;1&gt;"), "{page}");
        assert!(page.contains("Turn 1: the limit: QUOTA"), "{page}");
        assert!(page.contains("answer GET /&lt;route&gt;"), "{page}");
        for element in ["svg", "table", "tr", "td", "p", "text"] {
            let opened = page.matches(&format!("<{element}>")).count()
                + page.matches(&format!("<{element} ")).count();
            let closed = page.matches(&format!("</{element}>")).count();
            assert_eq!(opened, closed, "{element}");
        }
    }

    #[test]
    fn page_of_a_comparison_names_both_commits_and_the_worse_case() {
        let baseline = Baseline {
            about: about("aaaa"),
            scenarios: vec![run("exec", &[10, 10, 10])],
        };
        let new = vec![run("exec", &[20, 20, 20])];
        let page = page(&Report::new(about("bbbb"), new, vec![baseline]));
        assert!(page.contains("commit aaaa of "), "{page}");
        assert!(page.contains("commit bbbb"), "{page}");
        assert!(page.contains("class=\"worse\">WORSE"), "{page}");
    }
}
