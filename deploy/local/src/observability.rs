//! The programs that observe an instance: an OpenTelemetry collector, Jaeger, Prometheus and the canary.
//!
//! Their configuration is that of `deploy/observability`; only addresses and paths are of this machine.
//!
//! * I1. They listen on loopback alone.
//! * I2. They keep what they store in the instance's directory; Jaeger keeps traces in memory.

#[cfg(test)]
mod deployment;
mod rules;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::ObservabilityEndpoint;
use agentbox_testing::paths::{Layout, NotBuilt, require};
use agentbox_testing::plan::Plan;
use agentbox_testing::state::State;
use agentbox_testing::tool;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::kubernetes::build::{BuildError, Programs};
use crate::ports::{PortError, Ports};
use crate::process::ProcessSpec;
use crate::secrets::Secrets;

pub(crate) const COLLECTOR: &str = "otel-collector";
pub(crate) const JAEGER: &str = "jaeger";
pub(crate) const PROMETHEUS: &str = "prometheus";
pub(crate) const CANARY: &str = "canary";

const COLLECTOR_CONFIGURATION: &str = include_str!("../../observability/collector/config.yaml");
/// The traces that Jaeger keeps, the newest.
const KEPT_TRACES: u32 = 20_000;

/// The instance cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObservabilityError {
    #[error("prometheus is not installed; run `make packages OBSERVE=1`")]
    NoPrometheus,
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Canary(#[from] NotBuilt),
    #[error(transparent)]
    Port(#[from] PortError),
}

/// The path of Debian's Prometheus.
///
/// # Errors
/// When it is not installed.
pub(crate) fn require_prometheus() -> Result<PathBuf, ObservabilityError> {
    tool::find("prometheus").ok_or(ObservabilityError::NoPrometheus)
}

/// The program of the canary.
///
/// # Errors
/// When it is not built.
pub(crate) fn require_canary(bin_dir: &Path) -> Result<PathBuf, NotBuilt> {
    require(
        bin_dir.join("agentbox-loadtest"),
        "cargo build -p agentbox-loadtest",
    )
}

/// The addresses on which the programs listen.
pub(crate) struct Addresses {
    otlp: SocketAddr,
    otlp_http: SocketAddr,
    collector_health: SocketAddr,
    span_metrics: SocketAddr,
    jaeger_otlp: SocketAddr,
    jaeger_admin: SocketAddr,
    jaeger_query: SocketAddr,
    /// Listeners of Jaeger that nothing here uses.
    jaeger_others: [SocketAddr; 5],
    prometheus: SocketAddr,
    canary: SocketAddr,
}

impl Addresses {
    pub(crate) fn take(ports: &mut Ports) -> Result<Self, PortError> {
        let mut next = || {
            let port = ports.take()?;
            Ok::<_, PortError>(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        };
        Ok(Self {
            otlp: next()?,
            otlp_http: next()?,
            collector_health: next()?,
            span_metrics: next()?,
            jaeger_otlp: next()?,
            jaeger_admin: next()?,
            jaeger_query: next()?,
            jaeger_others: [next()?, next()?, next()?, next()?, next()?],
            prometheus: next()?,
            canary: next()?,
        })
    }

    pub(crate) fn endpoint(&self) -> ObservabilityEndpoint {
        ObservabilityEndpoint {
            prometheus_url: url(self.prometheus),
            jaeger_url: url(self.jaeger_query),
            otlp_url: url(self.otlp),
            span_metrics_url: url(self.span_metrics),
        }
    }

    /// The URL that answers with success when the program is ready.
    pub(crate) fn readiness(&self, program: &str) -> String {
        match program {
            COLLECTOR => url(self.collector_health),
            JAEGER => url(self.jaeger_admin),
            PROMETHEUS => format!("{}/-/ready", url(self.prometheus)),
            _ => format!("{}/health/ready", url(self.canary)),
        }
    }

    pub(crate) fn canary_url(&self) -> String {
        url(self.canary)
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// The files of the programs of one instance.
pub(crate) struct Files<'a>(pub(crate) &'a Layout);

impl Files<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.0.observability().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, ObservabilityError> {
        let path = self.at(name);
        match std::fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(source) => Err(ObservabilityError::Write { path, source }),
        }
    }

    /// Writes the configuration of all programs, and the variables that send the spans of the services to
    /// the collector.
    pub(crate) fn prepare(
        &self,
        addresses: &Addresses,
        plan: &Plan,
    ) -> Result<(), ObservabilityError> {
        let directory = self.0.observability();
        if let Err(source) = std::fs::create_dir_all(&directory) {
            return Err(ObservabilityError::Write {
                path: directory,
                source,
            });
        }
        self.write("collector.yaml", COLLECTOR_CONFIGURATION)?;
        let rules = self.write("rules.yaml", &rules::of(plan))?;
        self.write_targets(&State::new(String::new()))?;
        // JSON is YAML.
        let configuration = self.prometheus_configuration(addresses, plan, &rules);
        self.write("prometheus.yaml", &configuration.to_string())?;
        let environment = format!("OTEL_EXPORTER_OTLP_ENDPOINT={}\n", url(addresses.otlp));
        self.write("services.env", &environment)?;
        Ok(())
    }

    fn prometheus_configuration(&self, addresses: &Addresses, plan: &Plan, rules: &Path) -> Value {
        let interval = if plan.is_test() { "1s" } else { "5s" };
        json!({
            "global": { "scrape_interval": interval, "evaluation_interval": interval },
            "rule_files": [rules],
            "scrape_configs": [
                {
                    "job_name": "agentbox",
                    "file_sd_configs": [{
                        "files": [self.at("targets.json")],
                        "refresh_interval": interval,
                    }],
                },
                {
                    "job_name": COLLECTOR,
                    "static_configs": [{ "targets": [addresses.span_metrics.to_string()] }],
                },
            ],
        })
    }

    /// Writes the addresses of the `/metrics` of the instance's processes, for Prometheus.
    pub(crate) fn write_targets(&self, state: &State) -> Result<(), ObservabilityError> {
        let targets: Vec<Value> = state
            .processes
            .iter()
            .filter_map(|(name, process)| {
                let address = process.admin_url.as_deref()?.strip_prefix("http://")?;
                let service = match name.rsplit_once('-') {
                    Some((service, index)) if index.parse::<u16>().is_ok() => service,
                    _ => name.as_str(),
                };
                Some(json!({
                    "labels": { "job": format!("agentbox-{service}") },
                    "targets": [address],
                }))
            })
            .collect();
        self.write("targets.json", &Value::from(targets).to_string())?;
        Ok(())
    }

    fn spec(&self, name: &str, program: PathBuf, arguments: Vec<String>) -> ProcessSpec {
        ProcessSpec {
            name: name.to_owned(),
            program,
            program_override: None,
            environment_file: None,
            arguments: arguments.into_iter().map(OsString::from).collect(),
            environment: BTreeMap::new(),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(5),
            log: self.0.log(name),
        }
    }

    pub(crate) fn collector(&self, addresses: &Addresses, programs: &Programs) -> ProcessSpec {
        let configuration = self.at("collector.yaml");
        let mut spec = self.spec(
            COLLECTOR,
            programs.bin("collector").join("collector"),
            vec![format!("--config=file:{}", configuration.display())],
        );
        spec.environment = [
            ("OTLP_GRPC_ENDPOINT", addresses.otlp.to_string()),
            ("OTLP_HTTP_ENDPOINT", addresses.otlp_http.to_string()),
            ("HEALTH_ENDPOINT", addresses.collector_health.to_string()),
            ("METRICS_ENDPOINT", addresses.span_metrics.to_string()),
            ("METRICS_FLUSH_INTERVAL", "1s".to_owned()),
            ("TRACES_ENDPOINT", addresses.jaeger_otlp.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        spec
    }

    pub(crate) fn jaeger(&self, addresses: &Addresses, programs: &Programs) -> ProcessSpec {
        let [grpc, http, otlp_http, query_grpc, agent] = addresses.jaeger_others;
        let flags = vec![
            format!("--admin.http.host-port={}", addresses.jaeger_admin),
            format!("--collector.otlp.grpc.host-port={}", addresses.jaeger_otlp),
            format!("--collector.otlp.http.host-port={otlp_http}"),
            format!("--collector.grpc-server.host-port={grpc}"),
            format!("--collector.http-server.host-port={http}"),
            format!("--query.http-server.host-port={}", addresses.jaeger_query),
            format!("--query.grpc-server.host-port={query_grpc}"),
            format!("--http-server.host-port={agent}"),
            // The agent's own protocols, which nothing here speaks: the kernel chooses the ports.
            "--processor.zipkin-compact.server-host-port=127.0.0.1:0".to_owned(),
            "--processor.jaeger-compact.server-host-port=127.0.0.1:0".to_owned(),
            "--processor.jaeger-binary.server-host-port=127.0.0.1:0".to_owned(),
            format!("--memory.max-traces={KEPT_TRACES}"),
            "--query.enable-tracing=false".to_owned(),
        ];
        let mut spec = self.spec(JAEGER, programs.bin("jaeger").join("jaeger"), flags);
        spec.environment = [("SPAN_STORAGE_TYPE".to_owned(), "memory".to_owned())].into();
        spec
    }

    pub(crate) fn prometheus(&self, addresses: &Addresses, program: PathBuf) -> ProcessSpec {
        let flags = vec![
            format!("--config.file={}", self.at("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", self.at("prometheus").display()),
            "--storage.tsdb.retention.time=7d".to_owned(),
            format!("--web.listen-address={}", addresses.prometheus),
            "--enable-feature=exemplar-storage".to_owned(),
        ];
        self.spec(PROMETHEUS, program, flags)
    }

    /// The canary, which uses the instance as its administrator.
    pub(crate) fn canary(
        &self,
        addresses: &Addresses,
        plan: &Plan,
        secrets: &Secrets,
        gateway: &str,
    ) -> Result<ProcessSpec, ObservabilityError> {
        let program = require_canary(&plan.bin_dir)?;
        let mut spec = self.spec(CANARY, program, vec![CANARY.to_owned()]);
        spec.environment = [
            ("AGENTBOX_URL", gateway.to_owned()),
            ("AGENTBOX_CANARY_USERNAME", secrets.admin_username.clone()),
            ("AGENTBOX_CANARY_PASSWORD", secrets.admin_password.clone()),
            ("AGENTBOX_CANARY_LISTEN", addresses.canary.to_string()),
            // Of `make up`, which may name two; the program accepts one, also where it uses none.
            ("RUNTIME", "containerd".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        spec.environment
            .extend(plan.environment.get(CANARY).cloned().unwrap_or_default());
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use agentbox_testing::state::ProcessState;

    use super::*;

    #[test]
    fn targets_are_the_processes_with_metrics_by_service() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        std::fs::create_dir_all(layout.observability()).unwrap();
        let mut state = State::new("test".to_owned());
        for (name, admin_url) in [
            ("api-gateway-1", Some("http://127.0.0.1:2001")),
            ("canary", Some("http://127.0.0.1:2002")),
            ("nats", None),
        ] {
            let process = ProcessState {
                admin_url: admin_url.map(ToOwned::to_owned),
                ..ProcessState::default()
            };
            state.processes.insert(name.to_owned(), process);
        }
        Files(&layout).write_targets(&state).unwrap();
        let text = std::fs::read_to_string(layout.observability().join("targets.json")).unwrap();
        let targets: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            targets,
            json!([
                { "labels": { "job": "agentbox-api-gateway" }, "targets": ["127.0.0.1:2001"] },
                { "labels": { "job": "agentbox-canary" }, "targets": ["127.0.0.1:2002"] },
            ])
        );
    }

    #[test]
    fn every_listener_has_its_own_port() {
        let mut ports = Ports::new().unwrap();
        let addresses = Addresses::take(&mut ports).unwrap();
        let endpoint = addresses.endpoint();
        let mut urls = vec![
            endpoint.prometheus_url,
            endpoint.jaeger_url,
            endpoint.otlp_url,
            endpoint.span_metrics_url,
            addresses.canary_url(),
        ];
        urls.extend([COLLECTOR, JAEGER].map(|program| addresses.readiness(program)));
        let count = urls.len();
        urls.sort();
        urls.dedup();
        assert_eq!(urls.len(), count);
    }
}
