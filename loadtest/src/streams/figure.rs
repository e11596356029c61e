//! The figures of streams, and their table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::Gauge;
use crate::statistics::Better;

/// The end of one stream.
pub enum Outcome {
    /// After this time.
    Complete(Duration),
    Failed(String),
}

/// All streams of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Streams {
    /// The content of each stream, in units of 1,000,000 bytes, as every rate.
    pub megabytes_each: f64,
    /// One publisher and one subscriber of NATS.
    pub nats_megabytes_per_second: f64,
    pub figures: Vec<StreamFigure>,
}

/// One kind of stream, some at the same time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamFigure {
    pub name: String,
    /// Complete streams.
    pub streams: usize,
    /// Not counted in `streams`.
    pub failures: usize,
    /// The error of the first failure.
    pub first_failure: Option<String>,
    /// All complete streams together, from the first start to the last end.
    pub megabytes_per_second: f64,
    /// The rate divided by that of NATS.
    pub nats_ratio: Option<f64>,
    /// The time of the slowest stream divided by that of the fastest.
    pub slowest_to_fastest: Option<f64>,
    /// Peak memory above the start, in MiB: of each service, and of the box if it is known.
    pub memory_mib: BTreeMap<String, f64>,
}

impl StreamFigure {
    /// The figure of streams of `bytes` each, which took `wall` together.
    pub fn new(
        name: &str,
        bytes: u64,
        wall: Duration,
        outcomes: Vec<Outcome>,
        memory_mib: BTreeMap<&'static str, f64>,
    ) -> Self {
        let mut times = Vec::new();
        let mut failures = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Complete(took) => times.push(took),
                Outcome::Failed(error) => failures.push(error),
            }
        }
        let slowest = times.iter().max().map(Duration::as_secs_f64);
        let fastest = times.iter().min().map(Duration::as_secs_f64);
        let megabytes = bytes as f64 / 1e6 * times.len() as f64;
        Self {
            name: name.to_owned(),
            streams: times.len(),
            failures: failures.len(),
            first_failure: failures.into_iter().next(),
            megabytes_per_second: megabytes / wall.as_secs_f64().max(1e-9),
            nats_ratio: None,
            slowest_to_fastest: slowest
                .zip(fastest)
                .map(|(slowest, fastest)| slowest / fastest.max(1e-9)),
            memory_mib: memory_mib
                .into_iter()
                .map(|(part, mib)| (part.to_owned(), mib))
                .collect(),
        }
    }

    /// Adds the ratio to the rate of NATS.
    #[must_use]
    pub fn compared_with(mut self, nats_megabytes_per_second: f64) -> Self {
        self.nats_ratio = Some(self.megabytes_per_second / nats_megabytes_per_second);
        self
    }
}

impl Streams {
    /// The numbers that are compared between runs.
    pub fn gauges(&self) -> Vec<Gauge> {
        let nats = self.nats_megabytes_per_second;
        let mut gauges = vec![Gauge::new("NATS alone", "MB/s", nats, Better::Higher)];
        for figure in &self.figures {
            let at_once = figure.streams + figure.failures;
            let name = |what: &str| format!("{}, {at_once} at once: {what}", figure.name);
            let (rate, failures) = (figure.megabytes_per_second, figure.failures as f64);
            gauges.push(Gauge::new(name("rate"), "MB/s", rate, Better::Higher));
            gauges.push(Gauge::new(name("failed"), "", failures, Better::Lower));
            for (part, mib) in &figure.memory_mib {
                let name = name(&format!("memory of {part}"));
                gauges.push(Gauge::new(name, "MiB", *mib, Better::Lower));
            }
        }
        gauges
    }
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "streams of {:.0} MB each; `/ NATS`: divided by {:.0} MB/s of one publisher and one \
             subscriber; `slow`: the slowest divided by the fastest; peak memory above the start in MiB",
            self.megabytes_each, self.nats_megabytes_per_second
        )?;
        writeln!(
            f,
            "{:<32} {:>3} {:>6} {:>7} {:>6} {:>5}  memory",
            "", "n", "failed", "MB/s", "/ NATS", "slow"
        )?;
        for figure in &self.figures {
            let ratio = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.2}"));
            let memory = figure.memory_mib.iter();
            let memory = memory.map(|(name, mib)| format!("{name} {mib:.1}"));
            writeln!(
                f,
                "{:<32} {:>3} {:>6} {:>7.1} {:>6} {:>5}  {}",
                figure.name,
                figure.streams,
                figure.failures,
                figure.megabytes_per_second,
                ratio(figure.nats_ratio),
                ratio(figure.slowest_to_fastest),
                memory.collect::<Vec<_>>().join(", ")
            )?;
            if let Some(why) = &figure.first_failure {
                writeln!(f, "  first failure: {why}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_complete_streams_and_compares_the_slowest() {
        let outcomes = vec![
            Outcome::Complete(Duration::from_secs(4)),
            Outcome::Failed("broken".to_owned()),
            Outcome::Complete(Duration::from_secs(5)),
        ];
        let memory = BTreeMap::from([("box", 1.5)]);
        let wall = Duration::from_secs(5);
        let figure = StreamFigure::new("download", 100_000_000, wall, outcomes, memory);
        let figure = figure.compared_with(400.0);
        assert_eq!((figure.streams, figure.failures), (2, 1));
        assert_eq!(figure.megabytes_per_second, 40.0);
        assert_eq!(figure.nats_ratio, Some(0.1));
        assert_eq!(figure.slowest_to_fastest, Some(1.25));
        let streams = Streams {
            megabytes_each: 100.0,
            nats_megabytes_per_second: 400.0,
            figures: vec![figure],
        };
        let names: Vec<_> = streams.gauges().into_iter().map(|one| one.name).collect();
        assert_eq!(
            names,
            [
                "NATS alone",
                "download, 3 at once: rate",
                "download, 3 at once: failed",
                "download, 3 at once: memory of box",
            ]
        );
        let text = streams.to_string();
        for part in [
            "download",
            "40.0",
            "0.10",
            "1.25",
            "box 1.5",
            "first failure: broken",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn only_failures_have_no_ratio_of_times() {
        let outcomes = vec![Outcome::Failed("broken".to_owned())];
        let wall = Duration::from_secs(1);
        let figure = StreamFigure::new("upload", 1, wall, outcomes, BTreeMap::new());
        assert_eq!((figure.streams, figure.megabytes_per_second), (0, 0.0));
        assert_eq!(figure.slowest_to_fastest, None);
    }
}
