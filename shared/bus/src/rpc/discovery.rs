//! The NATS service API: `nats micro ls`, `info` and `stats` find every server of ours.
//!
//! Only the discovery part. The client library's own service type also owns the
//! subscriptions and the replies, and with them what a server here promises: a bound on
//! the requests at work, no request begun past its deadline, a drain before the end.

use std::collections::HashMap;

use agentbox_contracts::ids::InstanceId;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::destination;
use super::endpoint::Endpoint;

const PREFIX: &str = "$SRV.";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What one server says of itself.
pub(super) struct Discovery {
    service: &'static str,
    /// A process may run several servers.
    id: InstanceId,
    started: DateTime<Utc>,
}

impl Discovery {
    pub(super) fn new(service: &'static str) -> Self {
        Self {
            service,
            id: InstanceId::random(),
            started: Utc::now(),
        }
    }

    /// Asked of all, of this service, of this server.
    pub(super) fn subjects(&self) -> [String; 3] {
        let Self { service, id, .. } = self;
        [
            format!("{PREFIX}*"),
            format!("{PREFIX}*.{service}"),
            format!("{PREFIX}*.{service}.{id}"),
        ]
    }

    /// The answer to what was asked on `subject`; `None` for what is no such question.
    pub(super) fn answer(
        &self,
        subject: &str,
        endpoints: &HashMap<String, Endpoint>,
    ) -> Option<Bytes> {
        let (verb, endpoints) = match subject.strip_prefix(PREFIX)?.split('.').next()? {
            "PING" => ("ping", None),
            "INFO" => ("info", Some(self.endpoints(endpoints, |_| json!({})))),
            "STATS" => ("stats", Some(self.endpoints(endpoints, Endpoint::stats))),
            _ => return None,
        };
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{verb}_response"),
            "name": self.service,
            "id": self.id,
            "version": VERSION,
            "metadata": {},
        });
        match verb {
            "info" => answer["description"] = json!(format!("AgentBox {}", self.service)),
            "stats" => {
                answer["started"] = json!(self.started.to_rfc3339_opts(SecondsFormat::Nanos, true));
            }
            _ => {}
        }
        if let Some(endpoints) = endpoints {
            answer["endpoints"] = endpoints;
        }
        Some(answer.to_string().into())
    }

    fn endpoints(
        &self,
        endpoints: &HashMap<String, Endpoint>,
        more: impl Fn(&Endpoint) -> Value,
    ) -> Value {
        let mut subjects: Vec<&String> = endpoints.keys().collect();
        subjects.sort();
        let described = subjects.into_iter().map(|subject| {
            let mut described = more(&endpoints[subject]);
            described["name"] = json!(destination(subject).replace('.', "-"));
            described["subject"] = json!(subject);
            described["queue_group"] = json!(self.service);
            described
        });
        described.collect()
    }
}
