//! Samples of times, and the figure of one case.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest time that is told apart, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;
/// A time is kept with three significant digits.
const DIGITS: u8 = 3;
/// The percentiles of a figure's curve.
const CURVE: [f64; 14] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0,
];

/// The statistics of one case. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub samples: u64,
    /// Not counted in `samples`.
    pub failures: u64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
    /// Samples per second, from the first start to the last end.
    pub per_second: f64,
    /// Percentiles and their times, in increasing order. Empty without a sample.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
    /// The error of the first failure.
    pub first_failure: Option<String>,
    /// The same case with the runtime alone, measured in the same turn.
    pub raw: Option<Box<Figure>>,
}

/// The samples of one case.
pub struct Samples {
    times: Histogram<u64>,
    failures: u64,
    first_failure: Option<String>,
    busy: Duration,
}

impl Default for Samples {
    #[allow(
        clippy::expect_used,
        reason = "the bounds are constants that the histogram accepts"
    )]
    fn default() -> Self {
        Self {
            times: Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("valid bounds"),
            failures: 0,
            first_failure: None,
            busy: Duration::ZERO,
        }
    }
}

impl Samples {
    /// Adds a sample that ran alone.
    pub fn push(&mut self, result: anyhow::Result<Duration>) {
        self.busy += result.as_ref().copied().unwrap_or_default();
        self.record(result);
    }

    /// Adds a sample that ran beside others; see [`Self::within`].
    pub fn record(&mut self, result: anyhow::Result<Duration>) {
        match result {
            Ok(time) => {
                let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
                self.times.saturating_record(micros.max(1));
            }
            Err(error) => {
                self.failures += 1;
                self.first_failure
                    .get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    /// Adds the samples of another client of the same case.
    pub fn merge(&mut self, other: Self) {
        self.times += &other.times;
        self.failures += other.failures;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    /// Sets the time from the first start to the last end of samples that ran concurrently.
    #[must_use]
    pub fn within(mut self, wall: Duration) -> Self {
        self.busy = wall;
        self
    }

    /// Samples that ran concurrently, within `wall` in total.
    pub fn concurrent(results: Vec<anyhow::Result<Duration>>, wall: Duration) -> Self {
        let mut samples = Self::default();
        for result in results {
            samples.record(result);
        }
        samples.within(wall)
    }

    pub fn figure(self, name: &str) -> Figure {
        let count = self.times.len();
        let at = |percent: f64| {
            let micros = self.times.value_at_quantile(percent / 100.0);
            (count > 0).then_some(micros as f64 / 1e3)
        };
        let curve = CURVE
            .iter()
            .filter_map(|percent| Some((*percent, at(*percent)?)));
        Figure {
            name: name.to_owned(),
            samples: count,
            failures: self.failures,
            p50_ms: at(50.0),
            p95_ms: at(95.0),
            p99_ms: at(99.0),
            max_ms: at(100.0),
            per_second: count as f64 / self.busy.as_secs_f64().max(1e-9),
            curve: curve.collect(),
            first_failure: self.first_failure,
            raw: None,
        }
    }
}

impl Figure {
    /// The head of the table whose lines [`Self::write`] writes.
    pub fn head() -> String {
        format!(
            "{:<54} {:>7} {:>6} {:>8} {:>8} {:>8} {:>9} {:>7}",
            "", "n", "failed", "p50 ms", "p95 ms", "p99 ms", "n/s", "/ raw"
        )
    }

    /// Adds the figure of the runtime alone, if it was measured.
    #[must_use]
    pub fn compared_with(mut self, raw: Option<Figure>) -> Self {
        self.raw = raw.map(Box::new);
        self
    }

    /// The p50 divided by that of the runtime alone.
    pub fn ratio(&self) -> Option<f64> {
        let raw = self.raw.as_deref().and_then(|raw| raw.p50_ms)?;
        self.p50_ms.map(|ours| ours / raw)
    }

    /// Writes the lines of the table: the case, and the runtime alone.
    ///
    /// # Errors
    /// When `out` refuses them.
    pub fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let ratio = self.ratio().map(|ratio| format!("{ratio:.2}"));
        self.line(out, &self.name, &ratio.unwrap_or_default())?;
        match &self.raw {
            Some(raw) => raw.line(out, &format!("  {}", raw.name), ""),
            None => Ok(()),
        }
    }

    fn line(&self, out: &mut impl fmt::Write, name: &str, ratio: &str) -> fmt::Result {
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        writeln!(
            out,
            "{name:<54} {:>7} {:>6} {:>8} {:>8} {:>8} {:>9.1} {ratio:>7}",
            self.samples,
            self.failures,
            time(self.p50_ms),
            time(self.p95_ms),
            time(self.p99_ms),
            self.per_second
        )?;
        match &self.first_failure {
            Some(why) => writeln!(out, "  first failure: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_nearest_rank_with_three_digits() {
        let times = (1..=200).map(|ms| Ok(Duration::from_millis(ms)));
        let figure = Samples::concurrent(times.collect(), Duration::from_secs(1)).figure("f");
        for (measured, expected) in [
            (figure.p50_ms, 100.0),
            (figure.p95_ms, 190.0),
            (figure.p99_ms, 198.0),
            (figure.max_ms, 200.0),
        ] {
            let error = (measured.unwrap() - expected).abs() / expected;
            assert!(error <= 0.001, "{measured:?} {expected}");
        }
        assert_eq!(figure.per_second, 200.0);
        assert!(
            figure
                .curve
                .is_sorted_by(|low, high| low.0 < high.0 && low.1 <= high.1)
        );
    }

    #[test]
    fn no_sample_has_no_time() {
        let figure = Samples::default().figure("f");
        assert_eq!((figure.samples, figure.p50_ms), (0, None));
        assert!(figure.curve.is_empty());
    }

    #[test]
    fn failure_is_reported_and_not_counted_as_a_sample() {
        let mut samples = Samples::default();
        samples.push(Ok(Duration::from_millis(10)));
        samples.push(Err(anyhow::anyhow!("broken")));
        samples.push(Ok(Duration::from_millis(30)));
        let figure = samples.figure("f");
        assert_eq!((figure.samples, figure.failures), (2, 1));
        assert_eq!(figure.first_failure.as_deref(), Some("broken"));
        assert_eq!(figure.per_second.round(), 50.0);
        let mut text = String::new();
        let compared = figure.clone().compared_with(Some(figure));
        compared.write(&mut text).unwrap();
        assert!(text.contains("1.00"), "{text}");
        assert_eq!(text.matches("first failure: broken").count(), 2, "{text}");
    }

    #[test]
    fn merged_samples_are_those_of_all_clients() {
        let mut all = Samples::default();
        for client in 0..3u64 {
            let mut own = Samples::default();
            own.record(Ok(Duration::from_millis(client + 1)));
            own.record(Err(anyhow::anyhow!("failure {client}")));
            all.merge(own);
        }
        let figure = all.within(Duration::from_secs(2)).figure("f");
        assert_eq!((figure.samples, figure.failures), (3, 3));
        assert_eq!(figure.first_failure.as_deref(), Some("failure 0"));
        assert_eq!(figure.per_second, 1.5);
    }
}
