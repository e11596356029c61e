//! Samples, and the statistics reported of them.

use std::fmt;
use std::time::Duration;

use agentbox_testing::Runtime;
use serde::Serialize;

use crate::streams::Streams;

/// The statistics of one case. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub samples: usize,
    /// Not counted in `samples`.
    pub failures: usize,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Samples per second, from the first start to the last end.
    pub per_second: f64,
    /// The error of the first failure.
    pub first_failure: Option<String>,
    /// The same case with the runtime alone, measured in the same run.
    pub raw: Option<Box<Figure>>,
}

/// The samples of one case.
#[derive(Default)]
pub struct Samples {
    results: Vec<anyhow::Result<Duration>>,
    busy: Duration,
}

impl Samples {
    /// Adds a sample that ran alone.
    pub fn push(&mut self, result: anyhow::Result<Duration>) {
        self.busy += result.as_ref().copied().unwrap_or_default();
        self.results.push(result);
    }

    /// Samples that ran concurrently, within `wall` in total.
    pub fn concurrent(results: Vec<anyhow::Result<Duration>>, wall: Duration) -> Self {
        Self {
            results,
            busy: wall,
        }
    }

    pub fn figure(self, name: &str) -> Figure {
        let mut times = Vec::new();
        let (mut failures, mut first_failure) = (0, None);
        for result in self.results {
            match result {
                Ok(time) => times.push(time),
                Err(error) => {
                    failures += 1;
                    first_failure.get_or_insert(format!("{error:#}"));
                }
            }
        }
        times.sort_unstable();
        let at = |percent| percentile(&times, percent).map(|time| time.as_secs_f64() * 1e3);
        Figure {
            name: name.to_owned(),
            samples: times.len(),
            failures,
            p50_ms: at(50),
            p95_ms: at(95),
            p99_ms: at(99),
            per_second: times.len() as f64 / self.busy.as_secs_f64().max(1e-9),
            first_failure,
            raw: None,
        }
    }
}

impl Figure {
    /// Adds the figure of the runtime alone, if it was measured.
    #[must_use]
    pub fn compared_with(mut self, raw: Option<Figure>) -> Self {
        self.raw = raw.map(Box::new);
        self
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str, ratio: &str) -> fmt::Result {
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        writeln!(
            f,
            "{name:<46} {:>5} {:>6} {:>8} {:>8} {:>8} {:>8.1} {ratio:>7}",
            self.samples,
            self.failures,
            time(self.p50_ms),
            time(self.p95_ms),
            time(self.p99_ms),
            self.per_second
        )?;
        match &self.first_failure {
            Some(why) => writeln!(f, "  first failure: {why}"),
            None => Ok(()),
        }
    }
}

/// A percentile by the nearest rank; with fewer than 100 samples the 99th is the maximum.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[derive(Debug, Serialize)]
pub struct Report {
    target: String,
    runtime: Runtime,
    processors: usize,
    figures: Vec<Figure>,
    /// `None`: not measured.
    streams: Option<Streams>,
}

impl Report {
    pub fn new(
        target: String,
        runtime: Runtime,
        figures: Vec<Figure>,
        streams: Option<Streams>,
    ) -> Self {
        Self {
            target,
            runtime,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            figures,
            streams,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} processors, shared with the load generator; boxes on {}",
            self.processors,
            match self.runtime {
                Runtime::Containerd => "containerd",
                Runtime::Kubernetes => "Kubernetes",
            }
        )?;
        if !self.figures.is_empty() {
            writeln!(
                f,
                "`/ raw`: p50 divided by the p50 of the runtime alone\n\
                 {:<46} {:>5} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7}",
                "", "n", "failed", "p50 ms", "p95 ms", "p99 ms", "n/s", "/ raw"
            )?;
        }
        for figure in &self.figures {
            let raw = figure.raw.as_deref();
            let ratio = figure.p50_ms.zip(raw.and_then(|raw| raw.p50_ms));
            let ratio = ratio.map(|(ours, raw)| format!("{:.2}", ours / raw));
            figure.line(f, &figure.name, &ratio.unwrap_or_default())?;
            if let Some(raw) = raw {
                raw.line(f, &format!("  {}", raw.name), "")?;
            }
        }
        match &self.streams {
            Some(streams) => streams.fmt(f),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_nearest_rank() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&times, 99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&times[..3], 99), Some(Duration::from_millis(3)));
        assert_eq!(percentile(&[], 50), None);
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
        let figures = vec![figure.clone().compared_with(Some(figure))];
        let text = Report::new("t".into(), Runtime::Kubernetes, figures, None).to_string();
        assert!(text.contains("1.00"), "{text}");
        assert!(text.contains("boxes on Kubernetes"), "{text}");
    }
}
