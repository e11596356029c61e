//! The memory of the services and of a box, sampled while streams run.
//!
//! Of a service it is the resident memory of its process. Of a box it is the anonymous and shared memory
//! of its control group: what its processes and its file systems in memory hold, without the page cache
//! of its files. The control group is known on containerd only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_testing::System;
use tokio::time::{MissedTickBehavior, interval};

use crate::resources::services;

/// The name of the box in figures.
const BOX: &str = "box";
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
const CGROUPS: &str = "/sys/fs/cgroup";
const MIB: f64 = 1024.0 * 1024.0;

/// A file of the kernel with lines `name value`, of which some are added.
#[derive(Debug)]
struct Source {
    name: &'static str,
    path: PathBuf,
    fields: &'static [&'static str],
    /// Bytes of one unit of a value.
    unit: u64,
}

impl Source {
    /// `None`: the process or the group is gone.
    fn read(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.path).ok()?;
        Some(sum(&text, self.fields) * self.unit)
    }
}

fn sum(text: &str, fields: &[&str]) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            fields
                .contains(&name)
                .then(|| words.next()?.parse::<u64>().ok())?
        })
        .sum()
}

/// The sources, and what each had at the start.
#[derive(Debug)]
pub struct Memory {
    sources: Vec<Source>,
    start: Vec<u64>,
}

impl Memory {
    /// Starts at the present memory. The box runs.
    ///
    /// # Errors
    /// When a service does not run.
    pub fn of(system: &System, id: &EnvironmentId) -> anyhow::Result<Self> {
        let mut sources = Vec::new();
        for (name, pids) in services(system)? {
            sources.extend(pids.first().map(|pid| Source {
                name,
                path: format!("/proc/{pid}/status").into(),
                fields: &["VmRSS:"],
                unit: 1024,
            }));
        }
        if let Some(containerd) = &system.containerd {
            sources.extend(of_box(&containerd.deployment, id));
        }
        let start = sources.iter().map(|source| source.read().unwrap_or(0));
        Ok(Self {
            start: start.collect(),
            sources,
        })
    }

    /// Awaits `work`; returns its output, and by how many MiB the memory of each source exceeded the
    /// start at most.
    pub async fn during<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> (T, BTreeMap<&'static str, f64>) {
        let mut peaks = self.start.clone();
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = pin!(work);
        let output = loop {
            tokio::select! {
                output = &mut work => break output,
                _ = ticks.tick() => self.sample(&mut peaks),
            }
        };
        self.sample(&mut peaks);
        let growth = |(peak, start): (&u64, &u64)| (peak - start) as f64 / MIB;
        let growths = peaks.iter().zip(&self.start).map(growth);
        let names = self.sources.iter().map(|source| source.name);
        (output, names.zip(growths).collect())
    }

    fn sample(&self, peaks: &mut [u64]) {
        for (source, peak) in self.sources.iter().zip(peaks) {
            *peak = source.read().unwrap_or(0).max(*peak);
        }
    }
}

/// The control group that the driver for containerd creates for a box.
fn of_box(deployment: &str, id: &EnvironmentId) -> Option<Source> {
    let group = format!("agentbox-{deployment}/{id}/memory.stat");
    let v1 = Path::new(CGROUPS).join("memory").join(&group);
    let v2 = Path::new(CGROUPS).join(&group);
    let (path, fields) = if v1.exists() {
        (v1, &["total_rss", "total_shmem"])
    } else if v2.exists() {
        (v2, &["anon", "shmem"])
    } else {
        return None;
    };
    Some(Source {
        name: BOX,
        path,
        fields,
        unit: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_lines_are_added() {
        let status = "Name:\tauth\nVmPeak:\t  900 kB\nVmRSS:\t    120 kB\nRssAnon: 100 kB\n";
        assert_eq!(sum(status, &["VmRSS:"]), 120);
        let stat = "cache 50\nrss 1\nshmem 2\ntotal_cache 70\ntotal_rss 10\ntotal_shmem 20\n";
        assert_eq!(sum(stat, &["total_rss", "total_shmem"]), 30);
        assert_eq!(sum("", &["anon"]), 0);
    }

    #[tokio::test]
    async fn growth_is_the_peak_above_the_start() {
        let file = std::env::temp_dir().join(format!("agentbox-memory-{}", std::process::id()));
        let write = |anon: u64| fs::write(&file, format!("anon {}\n", anon << 20)).unwrap();
        write(3);
        let source = Source {
            name: BOX,
            path: file.clone(),
            fields: &["anon"],
            unit: 1,
        };
        let memory = Memory {
            start: vec![source.read().unwrap()],
            sources: vec![source],
        };
        let work = async {
            write(8);
            "output"
        };
        let (output, growth) = memory.during(work).await;
        write(1);
        let (_, none) = memory.during(async {}).await;
        fs::remove_file(&file).unwrap();
        assert_eq!((output, growth.get(BOX)), ("output", Some(&5.0)));
        assert_eq!(none.get(BOX), Some(&0.0));
    }
}
