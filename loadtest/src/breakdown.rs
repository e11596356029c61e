//! Where the time of a scenario went: the durations that the services measured while it ran.
//!
//! They are the differences of two readings of the services' histograms, before and after the scenario. Only
//! of a system that was started for the measurement: another one has further callers.

use std::collections::BTreeMap;

use agentbox_testing::System;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::http::Http;
use crate::resources::SERVICES;
use crate::target::Target;

/// A histogram of durations, in seconds.
struct Source {
    metric: &'static str,
    /// The name of its parts begins with it.
    title: &'static str,
    /// The labels that tell its parts apart. Parts with the same values of them are added up.
    labels: &'static [&'static str],
}

const SOURCES: [Source; 6] = [
    Source {
        metric: "agentbox_http_server_request_duration_seconds",
        title: "answer",
        labels: &["http_request_method", "http_route"],
    },
    Source {
        metric: "agentbox_rpc_server_call_duration_seconds",
        title: "serve",
        labels: &["rpc_method"],
    },
    Source {
        metric: "agentbox_messaging_client_operation_duration_seconds",
        title: "store in JetStream",
        labels: &["messaging_destination_template"],
    },
    Source {
        metric: "agentbox_db_client_operation_duration_seconds",
        title: "Postgres",
        labels: &["db_operation_name", "db_collection_name"],
    },
    Source {
        metric: "agentbox_environment_stage_duration_seconds",
        title: "stage of a create",
        labels: &["stage"],
    },
    Source {
        metric: "agentbox_exec_duration_seconds",
        title: "exec in exec-proxy",
        labels: &[],
    },
];

/// Events of one kind, such as the statements on one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub count: f64,
    pub mean_ms: f64,
}

/// The number of events, and their seconds together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Total {
    count: f64,
    seconds: f64,
}

/// What the services have measured since their starts, by the names of the parts.
#[derive(Debug, Default)]
pub struct Durations(BTreeMap<String, Total>);

/// Reads the durations of all replicas. `None`: a running system is measured, or a replica did not answer,
/// which is printed.
pub async fn read(target: &Target) -> Option<Durations> {
    let system = target.require_new_system().ok()?;
    match read_all(system).await {
        Ok(durations) => Some(durations),
        Err(error) => {
            println!("the durations of the services were not read: {error:#}");
            None
        }
    }
}

async fn read_all(system: &System) -> anyhow::Result<Durations> {
    let mut durations = Durations::default();
    for service in SERVICES {
        for index in system.pids(service).into_keys() {
            let url = system.admin_url(service, index);
            let url = url.with_context(|| format!("{service} has no metrics"))?;
            let text = Http::new(&url, None)?.get("/metrics").await?;
            durations.add(&String::from_utf8_lossy(&text));
        }
    }
    Ok(durations)
}

impl Durations {
    /// Adds the metrics of one process, in the text format of Prometheus.
    fn add(&mut self, text: &str) {
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let of_name = |source: &Source| {
                Some((
                    source.title,
                    name.strip_prefix(source.metric)?,
                    source.labels,
                ))
            };
            let Some((title, suffix, wanted)) = SOURCES.iter().find_map(of_name) else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let total = self.0.entry(part_name(title, labels, wanted));
            match suffix {
                "_count" => total.or_default().count += value,
                "_sum" => total.or_default().seconds += value,
                _ => {}
            }
        }
    }

    /// The parts of the time since `before`, those that took most first.
    pub fn since(&self, before: &Self) -> Vec<Part> {
        let mut parts: Vec<(f64, Part)> = self
            .0
            .iter()
            .filter_map(|(name, total)| {
                let before = before.0.get(name).copied().unwrap_or_default();
                let (count, seconds) = (total.count - before.count, total.seconds - before.seconds);
                // A process that was started again has counted less.
                (count > 0.0 && seconds >= 0.0).then(|| {
                    let part = Part {
                        name: name.clone(),
                        count,
                        mean_ms: 1e3 * seconds / count,
                    };
                    (seconds, part)
                })
            })
            .collect();
        parts.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        parts.into_iter().map(|(_, part)| part).collect()
    }
}

/// The title and the values of the wanted labels. `labels` is the rest of a series after its name.
fn part_name(title: &str, labels: &str, wanted: &[&str]) -> String {
    let mut name = title.to_owned();
    for label in wanted {
        // No value that is wanted has a quotation mark.
        let value = labels
            .split_once(&format!("{label}=\""))
            .and_then(|(_, rest)| rest.split_once('"'));
        if let Some((value, _)) = value {
            name.push(' ');
            name.push_str(value);
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(text: &str) -> Durations {
        let mut durations = Durations::default();
        durations.add(text);
        durations
    }

    #[test]
    fn parts_are_the_differences_of_two_readings() {
        let before = durations(
            "# TYPE agentbox_exec_duration_seconds histogram\n\
             agentbox_exec_duration_seconds_bucket{le=\"0.1\"} 2\n\
             agentbox_exec_duration_seconds_sum 0.5\n\
             agentbox_exec_duration_seconds_count 2\n\
             agentbox_environment_stage_duration_seconds_sum{stage=\"sandbox\"} 1\n\
             agentbox_environment_stage_duration_seconds_count{stage=\"sandbox\"} 4\n",
        );
        let after = durations(
            "agentbox_exec_duration_seconds_sum 0.9\n\
             agentbox_exec_duration_seconds_count 6\n\
             agentbox_environment_stage_duration_seconds_sum{stage=\"sandbox\"} 1\n\
             agentbox_environment_stage_duration_seconds_count{stage=\"sandbox\"} 4\n\
             agentbox_http_connections 7\n",
        );
        let parts = after.since(&before);
        assert_eq!(parts.len(), 1, "{parts:?}");
        assert_eq!(
            (parts[0].name.as_str(), parts[0].count),
            ("exec in exec-proxy", 4.0)
        );
        assert!((parts[0].mean_ms - 100.0).abs() < 0.01, "{parts:?}");
    }

    #[test]
    fn series_of_one_route_and_of_all_replicas_are_added() {
        let name = "agentbox_http_server_request_duration_seconds";
        let route =
            "http_request_method=\"POST\",http_route=\"/api/v1/environments/{environment}/exec\"";
        let mut both = Durations::default();
        for status in ["200", "404"] {
            let labels = format!("{{{route},http_response_status_code=\"{status}\"}}");
            both.add(&format!("{name}_sum{labels} 1.5\n{name}_count{labels} 3\n"));
        }
        let parts = both.since(&Durations::default());
        let expected = Part {
            name: "answer POST /api/v1/environments/{environment}/exec".to_owned(),
            count: 6.0,
            mean_ms: 500.0,
        };
        assert_eq!(parts, [expected]);
    }

    #[test]
    fn parts_that_took_most_come_first() {
        let of_stage = |stage: &str, seconds: f64| {
            let name = "agentbox_environment_stage_duration_seconds";
            format!(
                "{name}_sum{{stage=\"{stage}\"}} {seconds}\n{name}_count{{stage=\"{stage}\"}} 1\n"
            )
        };
        let text = [
            of_stage("queued", 0.1),
            of_stage("sandbox", 0.3),
            of_stage("started", 0.2),
        ];
        let parts = durations(&text.concat()).since(&Durations::default());
        let names: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
        let expected =
            ["sandbox", "started", "queued"].map(|stage| format!("stage of a create {stage}"));
        assert_eq!(names, expected);
    }
}
