//! A mixed load for a long time, with a check for leaks: of memory, descriptors, containers, mounts,
//! consumers and connections.
//!
//! The resources are read twice while the system is idle: after a first minute of the same load, and at
//! the end. A leak is a finding; it does not end the run.
//!
//! * I1. The environments are deleted at the end, also after a failure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::environment::delete_all;
use crate::figures::Figure;
use crate::mixed::{PER_SECOND, environments, load};
use crate::report::{Gauge, Measured, Series};
use crate::resources::{Kind, Resource, leaks, read};
use crate::statistics::Better;
use crate::target::Target;

const WARM_UP: Duration = Duration::from_secs(60);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How long resources of ended environments and closed connections may take to go: longer than
/// idle connections and consumers are kept.
const SETTLE: Duration = Duration::from_secs(180);
const SETTLE_POLL: Duration = Duration::from_secs(5);

/// # Errors
/// When a running system is measured, when the environments do not run, or when a part of the system does
/// not answer.
pub async fn measure(
    target: &Target,
    per_second: Option<f64>,
    length: Duration,
) -> anyhow::Result<Measured> {
    target.require_new_system()?;
    let rate = per_second.unwrap_or(PER_SECOND);
    let empty = read(target).await?;
    run(target, rate, WARM_UP, &mut Sampler::default()).await?;
    let before = settle(target, &empty).await?;
    let mut sampler = Sampler::default();
    let figures = run(target, rate, length, &mut sampler).await?;
    let after = settle(target, &before).await?;
    let mut measured = Measured {
        figures,
        series: sampler.series(),
        findings: leaks::find(&before, &after),
        ..Measured::default()
    };
    if measured.findings.is_empty() {
        measured.findings.push("nothing has leaked".to_owned());
    }
    let readings = [
        ("at rest", &empty),
        ("at most", &sampler.peaks()),
        ("after the load", &after),
    ];
    for (when, resources) in readings {
        let gauges = resources.iter().map(|resource| gauge(resource, when));
        measured.gauges.extend(gauges);
    }
    Ok(measured)
}

fn gauge(resource: &Resource, when: &str) -> Gauge {
    let name = format!("{}, {when}", resource.name);
    Gauge::new(name, resource.kind.unit(), resource.value, Better::Lower)
}

/// Runs the load with its environments, and samples the resources meanwhile.
async fn run(
    target: &Target,
    per_second: f64,
    length: Duration,
    sampler: &mut Sampler,
) -> anyhow::Result<Vec<Figure>> {
    let ids = environments(&target.api).await?;
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = CancellationToken::new();
    let loading = async {
        let figures = load(&target.api, &ids, per_second, length).await;
        ended.cancel();
        figures
    };
    let sampling = async {
        while ended.run_until_cancelled(ticks.tick()).await.is_some() {
            sampler.sample(read(target).await);
        }
    };
    let (figures, ()) = tokio::join!(loading, sampling);
    delete_all(&target.api, ids).await;
    Ok(figures)
}

/// Waits until nothing exceeds the earlier reading, at most [`SETTLE`]. Gives the last reading.
async fn settle(target: &Target, earlier: &[Resource]) -> anyhow::Result<Vec<Resource>> {
    let started = Instant::now();
    loop {
        let now = read(target).await?;
        if leaks::is_clean(earlier, &now) || started.elapsed() > SETTLE {
            return Ok(now);
        }
        tokio::time::sleep(SETTLE_POLL).await;
    }
}

/// The resources over time.
#[derive(Default)]
struct Sampler {
    started: Option<Instant>,
    memory: BTreeMap<String, Vec<(f64, f64)>>,
    /// The largest reading of each resource.
    peaks: BTreeMap<String, Resource>,
}

impl Sampler {
    /// Adds a reading. One that failed is printed and left out.
    fn sample(&mut self, reading: anyhow::Result<Vec<Resource>>) {
        let resources = match reading {
            Ok(resources) => resources,
            Err(error) => {
                println!("the resources were not read: {error:#}");
                return;
            }
        };
        let at = self.started.get_or_insert_with(Instant::now).elapsed();
        for resource in resources {
            let name = resource.name.clone();
            if resource.kind == Kind::Memory {
                let points = self.memory.entry(name.clone()).or_default();
                points.push((at.as_secs_f64(), resource.value));
            }
            let peak = self.peaks.entry(name).or_insert_with(|| resource.clone());
            peak.value = peak.value.max(resource.value);
        }
    }

    fn peaks(&self) -> Vec<Resource> {
        self.peaks.values().cloned().collect()
    }

    fn series(&self) -> Vec<Series> {
        let series = |(name, points): (&String, &Vec<(f64, f64)>)| Series {
            name: name.clone(),
            unit: Kind::Memory.unit().to_owned(),
            points: points.clone(),
        };
        self.memory.iter().map(series).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, kind: Kind, value: f64) -> Resource {
        Resource {
            name: name.to_owned(),
            kind,
            value,
        }
    }

    #[test]
    fn sampler_keeps_peaks_and_the_series_of_memory() {
        let mut sampler = Sampler::default();
        for (memory, mounts) in [(10.0, 3.0), (30.0, 9.0), (20.0, 1.0)] {
            sampler.sample(Ok(vec![
                resource("memory of auth", Kind::Memory, memory),
                resource("mounts", Kind::Objects, mounts),
            ]));
        }
        sampler.sample(Err(anyhow::anyhow!("no answer")));
        let peaks: Vec<f64> = sampler.peaks().iter().map(|peak| peak.value).collect();
        assert_eq!(peaks, [30.0, 9.0]);
        let series = sampler.series();
        assert_eq!(series.len(), 1);
        let values: Vec<f64> = series[0].points.iter().map(|point| point.1).collect();
        assert_eq!(values, [10.0, 30.0, 20.0]);
    }
}
