//! The logs of a system, parsed as JSON lines.

use std::collections::BTreeSet;

use agentbox_testing::System;
use serde_json::Value;

use super::secrets::Secrets;

const SERVICES: [&str; 4] = ["api-gateway", "auth", "scheduler", "exec-proxy"];

/// All logs of a system.
pub struct Logs(Vec<(String, String)>);

impl Logs {
    pub fn of(system: &System) -> Self {
        let read = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (
                name,
                String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned(),
            )
        };
        let entries = std::fs::read_dir(system.logs()).unwrap();
        Self(entries.map(|entry| read(entry.unwrap())).collect())
    }

    /// The log lines of the services, without those of Postgres, NATS and containerd.
    pub fn lines(&self) -> impl Iterator<Item = (&str, Value)> {
        let ours = |name: &str| SERVICES.iter().any(|service| name.starts_with(service));
        self.0
            .iter()
            .filter(move |(name, _)| ours(name))
            .flat_map(|(name, text)| {
                // The last line may not be written to its end yet.
                let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
                complete.lines().map(move |line| {
                    let value: Result<Value, _> = serde_json::from_str(line);
                    assert!(value.is_ok(), "{name}: no JSON: {line}");
                    (name.as_str(), value.unwrap())
                })
            })
    }

    pub fn check(&self, secrets: &Secrets) {
        for (name, text) in &self.0 {
            secrets.check(name, text);
        }
        let mut services = BTreeSet::new();
        for (name, line) in self.lines() {
            for key in ["timestamp", "level", "target", "service", "message"] {
                assert!(line[key].is_string(), "{name}: no {key}: {line}");
            }
            assert_ne!(
                line["level"], "ERROR",
                "ERROR means that a person must act: {line}"
            );
            services.insert(line["service"].as_str().unwrap().to_owned());
        }
        assert_eq!(services, SERVICES.map(String::from).into());
    }

    pub fn has_line_in_trace(&self, trace: &str, service: &str) -> bool {
        self.lines()
            .any(|(_, line)| line["trace_id"] == trace && line["service"] == service)
    }
}
