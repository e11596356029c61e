//! Samples, and what is told of them.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// One measured thing. Times are milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub samples: usize,
    /// Not among the samples.
    pub failures: usize,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Samples a second of the whole case, from its first start to its last end.
    pub per_second: f64,
    /// The first failure, in words.
    pub first_failure: Option<String>,
}

impl Figure {
    pub fn new(name: &str, wall: Duration, results: Vec<anyhow::Result<Duration>>) -> Self {
        let mut times = Vec::new();
        let (mut failures, mut first_failure) = (0, None);
        for result in results {
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
        Self {
            name: name.to_owned(),
            samples: times.len(),
            failures,
            p50_ms: at(50),
            p95_ms: at(95),
            p99_ms: at(99),
            per_second: times.len() as f64 / wall.as_secs_f64().max(1e-9),
            first_failure,
        }
    }
}

/// By nearest rank; with fewer than 100 samples the 99th is the greatest.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[derive(Debug, Serialize)]
pub struct Report {
    target: String,
    processors: usize,
    figures: Vec<Figure>,
}

impl Report {
    pub fn new(target: String, figures: Vec<Figure>) -> Self {
        Self {
            target,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            figures,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        writeln!(f, "{} processors, shared with the load", self.processors)?;
        writeln!(
            f,
            "{:<52} {:>5} {:>6} {:>9} {:>9} {:>9} {:>8}",
            "", "n", "failed", "p50 ms", "p95 ms", "p99 ms", "n/s"
        )?;
        for figure in &self.figures {
            writeln!(
                f,
                "{:<52} {:>5} {:>6} {:>9} {:>9} {:>9} {:>8.1}",
                figure.name,
                figure.samples,
                figure.failures,
                time(figure.p50_ms),
                time(figure.p95_ms),
                time(figure.p99_ms),
                figure.per_second
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
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&times, 99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&times[..3], 99), Some(Duration::from_millis(3)));
        assert_eq!(percentile(&[], 50), None);
    }
}
