//! A client of Jaeger's API.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_testing::{System, eventually_some};
use serde_json::Value;

use super::client::Trace;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Jaeger {
    http: reqwest::Client,
    url: String,
}

/// A span of a trace.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub id: String,
    /// Empty: it has no parent in its trace.
    pub parent: String,
}

impl Jaeger {
    pub fn of(system: &System) -> Self {
        Self {
            http: reqwest::Client::new(),
            url: system.observability().unwrap().jaeger_url,
        }
    }

    /// The spans of a trace; none if Jaeger does not know it.
    async fn spans(&self, trace: &str) -> Vec<Span> {
        let request = self.http.get(format!("{}/api/traces/{trace}", self.url));
        let response = request.timeout(REQUEST_TIMEOUT).send().await.unwrap();
        if !response.status().is_success() {
            return Vec::new();
        }
        let reply: Value = response.json().await.unwrap();
        let traces = reply["data"].as_array().cloned().unwrap_or_default();
        traces.iter().flat_map(spans_of).collect()
    }

    /// Waits until the trace has each of these spans, named by service and operation, and no span has a parent
    /// that is missing. Jaeger does not have the span of the caller.
    pub async fn complete(&self, trace: &Trace, wanted: &[(&str, &str)]) -> Vec<Span> {
        let expected = format!("trace {} has {wanted:?} and no orphan", trace.id);
        eventually_some(&expected, DEADLINE, async || {
            let spans = self.spans(&trace.id).await;
            is_complete(&spans, &trace.span, wanted).then_some(spans)
        })
        .await
    }
}

fn is_complete(spans: &[Span], caller: &str, wanted: &[(&str, &str)]) -> bool {
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let is_orphan = |span: &Span| span.parent != caller && !ids.contains(span.parent.as_str());
    let has = |(service, name): &(&str, &str)| {
        let service = format!("agentbox-{service}");
        let fits = |span: &Span| span.service == service && span.name == *name;
        spans.iter().any(fits)
    };
    wanted.iter().all(has) && !spans.iter().any(is_orphan)
}

fn spans_of(trace: &Value) -> Vec<Span> {
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    spans
        .iter()
        .map(|span| {
            let process = span["processID"].as_str().unwrap_or_default();
            let references = span["references"].as_array().cloned().unwrap_or_default();
            let parent = references
                .iter()
                .find(|reference| {
                    reference["refType"] == "CHILD_OF" && reference["traceID"] == trace["traceID"]
                })
                .and_then(|reference| reference["spanID"].as_str())
                .unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Span {
                service: text(&trace["processes"][process]["serviceName"]),
                name: text(&span["operationName"]),
                id: text(&span["spanID"]),
                parent: parent.to_owned(),
            }
        })
        .collect()
}
