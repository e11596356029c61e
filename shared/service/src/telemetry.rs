//! Logs, traces and metrics. Traces leave by OTLP over gRPC when the standard variables
//! (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin) name a collector; without one, trace ids
//! are still made, so that logs and answers can carry them.

use std::time::Duration;

use agentbox_contracts::ids::InstanceId;
use anyhow::{Context as _, bail};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::CommonConfig;
use crate::log_format::JsonLines;

/// How long the last spans may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// Seconds; from a bus round trip to a slow image pull.
const LATENCY_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

pub(crate) struct Telemetry {
    tracer: SdkTracerProvider,
    metrics: PrometheusHandle,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.trim().is_empty())
}

/// Whether the standard variables ask for spans to be exported.
fn export_wanted() -> Result<bool, anyhow::Error> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None | Some("otlp") => {}
        Some("none") => return Ok(false),
        Some(other) => bail!("OTEL_TRACES_EXPORTER: `{other}` is not one of otlp, none"),
    }
    let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    match (endpoint, protocol.as_deref()) {
        (None, _) => Ok(false),
        (Some(_), None | Some("grpc")) => Ok(true),
        (Some(_), Some(other)) => {
            bail!("OTEL_EXPORTER_OTLP_PROTOCOL: `{other}` is not supported, only grpc")
        }
    }
}

pub(crate) fn start(
    service: &'static str,
    instance: &InstanceId,
    config: &CommonConfig,
) -> Result<Telemetry, anyhow::Error> {
    global::set_text_map_propagator(TraceContextPropagator::new());

    let resource = Resource::builder()
        .with_service_name(format!("agentbox-{service}"))
        .with_attributes([
            KeyValue::new("service.namespace", "agentbox"),
            KeyValue::new("service.instance.id", instance.to_string()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("agentbox.replica", config.replica.clone()),
        ])
        .build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if export_wanted()? {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .build()
            .context("cannot set up the OTLP exporter")?;
        provider = provider.with_batch_exporter(exporter);
    }
    let tracer = provider.build();
    global::set_tracer_provider(tracer.clone());

    let filter = EnvFilter::try_new(&config.log)
        .with_context(|| format!("AGENTBOX_LOG: `{}` is not a log filter", config.log))?;
    tracing_subscriber::registry()
        .with(
            tracing_opentelemetry::layer()
                .with_tracer(tracer.tracer("agentbox"))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(EnvFilter::new(
                    "info,h2=off,hyper=off,tonic=off,tower=off,sqlx=off,async_nats=off",
                )),
        )
        .with(
            tracing_subscriber::fmt::layer()
                .event_format(JsonLines {
                    service,
                    replica: config.replica.clone(),
                })
                .with_writer(std::io::stderr)
                .with_filter(filter),
        )
        .try_init()
        .context("cannot set up logging")?;

    let metrics = PrometheusBuilder::new()
        .set_buckets(&LATENCY_BUCKETS)
        .context("cannot set the histogram buckets")?
        .install_recorder()
        .context("cannot set up metrics")?;
    metrics::gauge!("agentbox_build_info", "service" => service, "version" => env!("CARGO_PKG_VERSION"))
        .set(1.0);
    Ok(Telemetry { tracer, metrics })
}

impl Telemetry {
    pub(crate) fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends what is left, off the async threads, for a bounded time.
    pub(crate) async fn flush(self) {
        let tracer = self.tracer;
        let flushed =
            tokio::task::spawn_blocking(move || tracer.shutdown_with_timeout(FLUSH_DEADLINE)).await;
        if let Ok(Err(error)) = flushed {
            tracing::debug!(%error, "the last spans may be lost");
        }
    }
}
