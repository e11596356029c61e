//! What is known about the result of an expression, and whether the result agrees with it.

use std::fmt;
use std::time::Duration;

use crate::prometheus::Series;

/// How much a result may differ from an exact answer. A rate is exact to an interval between two scrapes (one
/// second) at each end of its window.
const TOLERANCE: f64 = 0.05;
/// A panel may show only so many series, the highest.
const TOP: usize = 10;
/// The bounds of the buckets of all histograms: those of the services, and of the collector but the last.
const BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// The most that a quantile of a histogram reports for this duration: the end of its bucket.
pub fn bucket_end(duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    let end = BUCKETS.into_iter().find(|end| *end >= seconds);
    end.unwrap_or(f64::INFINITY)
}

/// What is known about the series of one expression that have some labels.
#[derive(Clone, Debug)]
pub enum Known {
    /// The number of events in the window, of which the expression is the rate.
    Events(f64),
    /// The sum of the series.
    Value(f64),
    /// For each of these values of the labels, joined with a space, the number of its events in the window.
    EventsBy(&'static [&'static str], Vec<(String, f64)>),
    /// The number of events in the window is at least the first and at most the second.
    EventsBetween(f64, f64),
    /// More than or equal to the first, and at most the second.
    Between(f64, f64),
    /// No series is above this, and one has a value: those without an event in the window are not numbers.
    EachAtMost(f64),
    /// What it shows does not happen in the scenario: no series, none above zero.
    Nothing,
    /// Only that it has series, for this reason.
    Data(&'static str),
    /// Not even that, for this reason.
    Unknown(&'static str),
}

/// The kinds of answers, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Exact,
    Bounds,
    Nothing,
    Data,
    Unknown,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::Exact,
        Self::Bounds,
        Self::Nothing,
        Self::Data,
        Self::Unknown,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact, within 5 %",
            Self::Bounds => "a bound on each side",
            Self::Nothing => "nothing of it happens",
            Self::Data => "has data",
            Self::Unknown => "accepted",
        })
    }
}

/// One row of the table of answers.
#[derive(Clone, Debug)]
pub struct Row {
    /// The title of the panel, or the name of the rule.
    pub name: &'static str,
    /// The index of the expression in the panel, or of the rule among those of its name.
    pub index: usize,
    labels: Vec<(&'static str, String)>,
    pub known: Known,
}

impl Row {
    pub fn new(
        name: &'static str,
        index: usize,
        labels: &[(&'static str, &str)],
        known: Known,
    ) -> Self {
        let owned = labels
            .iter()
            .map(|(label, value)| (*label, (*value).to_owned()));
        Self {
            name,
            index,
            labels: owned.collect(),
            known,
        }
    }

    pub fn kind(&self) -> Kind {
        match self.known {
            // A panel of what went wrong, of which nothing happened, shows zero.
            Known::Events(value) | Known::Value(value) if value == 0.0 => Kind::Nothing,
            Known::Events(_) | Known::Value(_) | Known::EventsBy(..) => Kind::Exact,
            Known::EventsBetween(..) | Known::Between(..) | Known::EachAtMost(_) => Kind::Bounds,
            Known::Nothing => Kind::Nothing,
            Known::Data(_) => Kind::Data,
            Known::Unknown(_) => Kind::Unknown,
        }
    }

    /// Why the answer is not known.
    pub fn reason(&self) -> Option<&'static str> {
        match self.known {
            Known::Data(reason) | Known::Unknown(reason) => Some(reason),
            _ => None,
        }
    }

    /// How the series differ from what is known, with what was seen; `None` if they do not.
    pub fn problem(&self, all: &[Series], window: f64) -> Option<String> {
        let series: Vec<&Series> = all
            .iter()
            .filter(|series| series.has(&self.labels))
            .collect();
        let has_data = !series.is_empty();
        let sum: f64 = series.iter().map(|series| series.value).sum();
        let (is_right, expected, seen) = match &self.known {
            Known::Events(count) => {
                let found = sum * window;
                let expected = format!("{count} events");
                (has_data && is_close(found, *count), expected, found)
            }
            Known::Value(value) => {
                let is_right = has_data && is_close(sum, *value);
                (is_right, format!("{value}"), sum)
            }
            Known::EventsBy(labels, counts) => return problem_by(labels, counts, all, window),
            Known::EventsBetween(least, most) => {
                let found = sum * window;
                let expected = format!("from {least} to {most} events");
                let is_right = is_between(found, *least, *most);
                (has_data && is_right, expected, found)
            }
            Known::Between(least, most) => {
                let is_right = has_data && *least <= sum && sum <= *most;
                (is_right, format!("from {least} to {most}"), sum)
            }
            Known::EachAtMost(most) => {
                let highest = series
                    .iter()
                    .map(|series| series.value)
                    .fold(f64::NAN, f64::max);
                let is_right = (0.0..=*most).contains(&highest);
                (is_right, format!("each at most {most}"), highest)
            }
            Known::Nothing => {
                let is_right = !series.iter().any(|series| series.value.abs() > 0.0);
                (is_right, "nothing, or zero".to_owned(), sum)
            }
            Known::Data(_) => (has_data, "some data".to_owned(), sum),
            Known::Unknown(_) => return None,
        };
        let labels = &self.labels;
        (!is_right).then(|| {
            format!("{labels:?}: expected {expected}, seen {seen:.4}, in the series {series:?}")
        })
    }
}

/// As [`Row::problem`], for the values of labels.
fn problem_by(
    labels: &[&str],
    counts: &[(String, f64)],
    all: &[Series],
    window: f64,
) -> Option<String> {
    let key = |series: &Series| {
        let values: Vec<&str> = labels.iter().map(|label| series.label(label)).collect();
        values.join(" ")
    };
    let seen: Vec<(String, f64)> = all
        .iter()
        .map(|series| (key(series), series.value * window))
        .collect();
    let mut problems = Vec::new();
    for (value, found) in &seen {
        let counted = counts.iter().find(|(counted, _)| counted == value);
        let count = counted.map_or(0.0, |(_, count)| *count);
        if !is_close(*found, count) {
            problems.push(format!("{value}: expected {count} events, seen {found:.1}"));
        }
    }
    for (value, count) in counts {
        if seen.len() < TOP && !seen.iter().any(|(seen, _)| seen == value) {
            problems.push(format!("{value}: expected {count} events, seen no series"));
        }
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

fn is_close(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= TOLERANCE * wanted
}

/// As exact as a rate is.
fn is_between(found: f64, least: f64, most: f64) -> bool {
    found >= least * (1.0 - TOLERANCE) && found <= most * (1.0 + TOLERANCE)
}

#[test]
fn result_that_differs_from_what_is_known_is_a_problem() {
    use Known::{Between, Data, EachAtMost, Events, EventsBetween, EventsBy, Nothing, Value};
    let series = |status: &str, value| Series::new(&[("status", status)], value);
    let found = [series("a", 2.0), series("b", 0.5)];
    let problem = |status: &str, known| {
        let labels: &[(&'static str, &str)] = &[("status", status)];
        Row::new("panel", 0, labels, known).problem(&found, 10.0)
    };
    let by = |counts: &[(&str, f64)]| {
        let counts = counts
            .iter()
            .map(|(value, count)| ((*value).to_owned(), *count));
        EventsBy(&["status"], counts.collect())
    };
    for right in [
        Events(19.5),
        Value(2.0),
        EventsBetween(1.0, 20.0),
        Between(2.0, 3.0),
        EachAtMost(2.0),
        Data("a reason"),
        by(&[("a", 20.0), ("b", 5.0)]),
    ] {
        assert_eq!(problem("a", right.clone()), None, "{right:?}");
    }
    for wrong in [
        Events(18.0),
        Value(2.2),
        EventsBetween(1.0, 18.0),
        Between(2.1, 3.0),
        EachAtMost(1.0),
        Nothing,
        by(&[("a", 20.0)]),
        by(&[("a", 20.0), ("b", 5.0), ("c", 1.0)]),
    ] {
        assert!(problem("a", wrong.clone()).is_some(), "{wrong:?}");
    }
    // Without a series with the label.
    assert_eq!(problem("c", Nothing), None);
    for wrong in [Value(0.0), Events(0.0), EachAtMost(1.0), Data("a reason")] {
        assert!(problem("c", wrong.clone()).is_some(), "{wrong:?}");
    }
}
