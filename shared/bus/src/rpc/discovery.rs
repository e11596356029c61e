//! The discovery part of the NATS service API: `nats micro ls`, `info` and `stats` find every
//! server.
//!
//! The service type of the client library does this too, but it also owns the subscriptions
//! and the replies. With it, a server could not bound the requests in flight, skip requests past
//! their deadline, or drain before it ends.

use std::collections::HashMap;

use agentbox_contracts::ids::InstanceId;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::endpoint::Endpoint;
use crate::trace;

const PREFIX: &str = "$SRV.";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The description of one server.
pub(super) struct Discovery {
    service: &'static str,
    /// Unique: a process may run several servers.
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

    /// The subjects for requests to all servers, to this service, and to this server.
    pub(super) fn subjects(&self) -> [String; 3] {
        let Self { service, id, .. } = self;
        [
            format!("{PREFIX}*"),
            format!("{PREFIX}*.{service}"),
            format!("{PREFIX}*.{service}.{id}"),
        ]
    }

    /// The reply to a discovery request on `subject`; `None` when it is not one.
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
        details: impl Fn(&Endpoint) -> Value,
    ) -> Value {
        let mut subjects: Vec<&String> = endpoints.keys().collect();
        subjects.sort();
        let described = subjects.into_iter().map(|subject| {
            let mut described = details(&endpoints[subject]);
            described["name"] = json!(trace::method(subject).replace('.', "-"));
            described["subject"] = json!(subject);
            described["queue_group"] = json!(self.service);
            described
        });
        described.collect()
    }
}
