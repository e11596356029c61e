//! A client of Prometheus' API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_testing::{System, eventually};
use serde_json::Value;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const SCRAPE_DEADLINE: Duration = Duration::from_secs(60);

pub struct Prometheus {
    http: reqwest::Client,
    url: String,
}

/// One element of the result of a query.
#[derive(Clone, Debug)]
pub struct Series {
    labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Series {
    pub fn new(labels: &[(&str, &str)], value: f64) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            labels: labels.iter().map(owned).collect(),
            value,
        }
    }

    /// The value of a label; empty if it is absent.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whether it has these labels.
    pub fn has(&self, labels: &[(&str, String)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == value)
    }
}

/// A rule that Prometheus has loaded.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub query: String,
}

/// Seconds since the epoch.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

impl Prometheus {
    pub fn of(system: &System) -> Self {
        Self {
            http: reqwest::Client::new(),
            url: system.observability().unwrap().prometheus_url,
        }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let request = self.http.get(format!("{}/api/v1/{path}", self.url));
        let response = request.query(query).timeout(REQUEST_TIMEOUT).send();
        let reply: Value = response.await.unwrap().json().await.unwrap();
        assert_eq!(reply["status"], "success", "{query:?}: {reply}");
        reply["data"].clone()
    }

    /// The result of an expression whose type is a vector, at `time`.
    pub async fn query_at(&self, expression: &str, time: f64) -> Vec<Series> {
        let time = format!("{time:.3}");
        let data = self
            .get("query", &[("query", expression), ("time", &time)])
            .await;
        assert_eq!(data["resultType"], "vector", "{expression}");
        let result = data["result"].as_array().unwrap();
        result
            .iter()
            .map(|series| Series {
                labels: serde_json::from_value(series["metric"].clone()).unwrap(),
                value: series["value"][1].as_str().unwrap().parse().unwrap(),
            })
            .collect()
    }

    /// The only value of an expression now; `None` if it has no series.
    pub async fn value(&self, expression: &str) -> Option<f64> {
        let series = self.query_at(expression, now()).await;
        assert!(series.len() < 2, "{expression}: {series:?}");
        series.first().map(|series| series.value)
    }

    pub async fn rules(&self) -> Vec<Rule> {
        let data = self.get("rules", &[]).await;
        let groups = data["groups"].as_array().unwrap();
        groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap())
            .map(|rule| {
                assert_eq!(rule["health"], "ok", "{rule}");
                Rule {
                    name: rule["name"].as_str().unwrap().to_owned(),
                    query: rule["query"].as_str().unwrap().to_owned(),
                }
            })
            .collect()
    }

    /// The names of the alerts that fire now.
    pub async fn firing(&self) -> BTreeSet<String> {
        let data = self.get("alerts", &[]).await;
        let alerts = data["alerts"].as_array().unwrap();
        alerts
            .iter()
            .filter(|alert| alert["state"] == "firing")
            .filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned()))
            .collect()
    }

    /// Waits until every process was read after this call.
    pub async fn wait_for_scrape(&self) {
        let begun = now();
        let oldest = r#"min(timestamp(up{job=~"agentbox-.+|otel-collector"}))"#;
        eventually("every process is read again", SCRAPE_DEADLINE, async || {
            self.value(oldest).await.is_some_and(|time| time > begun)
        })
        .await;
    }
}
