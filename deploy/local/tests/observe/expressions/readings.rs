//! What other programs count: NATS, Postgres and the kernel, each read directly.

use std::collections::BTreeMap;

use agentbox_testing::System;
use serde_json::Value;

/// The services, which have one replica each.
pub const SERVICES: [&str; 5] = ["api-gateway", "auth", "scheduler", "exec-proxy", "webhooks"];
/// The clock of the kernel's times.
const TICKS_PER_SECOND: f64 = 100.0;

/// What they counted until a moment.
#[derive(Clone, Debug)]
pub struct Readings {
    /// The messages that each stream of NATS has stored.
    streams: BTreeMap<String, u64>,
    /// The messages of NATS' durable consumers that are not delivered or not acknowledged.
    pub unfinished: u64,
    /// The entries of the audit trail.
    pub audit_entries: f64,
    /// Rows that are not published yet.
    pub unpublished: f64,
    /// The connections to Postgres by role.
    pub connections: BTreeMap<String, f64>,
    pub processes: BTreeMap<&'static str, Process>,
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub resident_bytes: f64,
    pub cpu_s: f64,
    pub descriptors: f64,
}

impl Readings {
    pub async fn take(system: &System) -> Self {
        let url = &system.nats.as_ref().unwrap().monitor_url;
        let url = format!("{url}/jsz?accounts=true&streams=true&consumers=true&config=true");
        let reply: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        let (mut streams, mut unfinished) = (BTreeMap::new(), 0);
        let accounts = reply["account_details"].as_array().unwrap();
        for stream in accounts
            .iter()
            .flat_map(|account| list(&account["stream_detail"]))
        {
            let name = stream["name"].as_str().unwrap().to_owned();
            streams.insert(name, stream["state"]["last_seq"].as_u64().unwrap());
            for consumer in list(&stream["consumer_detail"]) {
                if consumer["config"]["durable_name"].is_string() {
                    let count = |field: &str| consumer[field].as_u64().unwrap_or_default();
                    unfinished += count("num_pending") + count("num_ack_pending");
                }
            }
        }
        let postgres = system.postgres.as_ref().unwrap();
        let query = async |statement: &str| postgres.execute(&[statement]).await.unwrap();
        let number = |text: String| text.trim().parse::<f64>().unwrap();
        let connections = query(
            "SELECT usename, count(*) FROM pg_stat_activity
             WHERE usename IN ('auth', 'scheduler', 'webhooks') GROUP BY usename",
        )
        .await;
        let unpublished = query(
            "SELECT (SELECT count(*) FROM scheduler.outbox WHERE published_at IS NULL)
                  + (SELECT count(*) FROM auth.audit_outbox)",
        )
        .await;
        Self {
            streams,
            unfinished,
            audit_entries: number(query("SELECT count(*) FROM auth.audit_log").await),
            unpublished: number(unpublished),
            connections: connections
                .lines()
                .map(|line| {
                    let (role, count) = line.split_once('|').unwrap();
                    (role.to_owned(), count.parse().unwrap())
                })
                .collect(),
            processes: SERVICES
                .map(|service| (service, Process::read(system.pids(service)[&0])))
                .into(),
        }
    }

    /// The last number that a stream has given to a message.
    pub fn stored(&self, stream: &str) -> u64 {
        self.streams[stream]
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Process {
    fn read(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let status = read("status");
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .unwrap();
        let stat = read("stat");
        // The name may contain spaces and brackets; the third field follows it.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let ticks = rest.split_whitespace().skip(11).take(2);
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let count = u32::try_from(descriptors.count()).unwrap();
        Self {
            resident_bytes: resident.parse::<f64>().unwrap() * 1024.0,
            cpu_s: ticks
                .map(|ticks| ticks.parse::<f64>().unwrap())
                .sum::<f64>()
                / TICKS_PER_SECOND,
            descriptors: f64::from(count),
        }
    }
}
