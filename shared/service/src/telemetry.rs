//! Logs, traces and metrics. Traces are exported by OTLP when the standard variables (such as
//! `OTEL_EXPORTER_OTLP_ENDPOINT`) name a collector. Without one, trace ids are still created,
//! so that logs and responses contain them.
//!
//! * [`mod@otel_variables`]: reads the variables.
//! * [`export`]: the queue to the collector.
//! * [`relayed`]: spans exported on behalf of a program without a collector.
//! * [`statements`]: the durations of statements to Postgres, from their spans.

mod export;
mod otel_variables;
mod relayed;
mod statements;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use anyhow::Context as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanProcessor as _};
use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::CommonConfig;
use crate::log_format::JsonLines;
use crate::metrics;
use export::Queue;
use otel_variables::{OtelVariables, Protocol};
pub use relayed::RelayedSpans;
use statements::{StatementDurations, only_statements};

/// How long the export of the last spans may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// In seconds: from a round trip on the bus to a slow image pull.
const LATENCY_BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// The spans that are recorded. Those of libraries are not: they may contain user data.
const SPAN_FILTER: &str =
    "info,h2=off,hyper=off,tonic=off,tower=off,sqlx=off,async_nats=off,opentelemetry=off";

/// Precedes the operator's own filter, which may override it. The code that uses these libraries
/// logs the same events once: the bus for NATS, the caller for Postgres, the span queue for the
/// collector.
const LOG_FILTER: &str = "opentelemetry=off,async_nats=off,sqlx=off";

pub(crate) struct Telemetry {
    tracer: SdkTracerProvider,
    exports: Exports,
    metrics: PrometheusHandle,
}

/// The export of spans: its protocol, and the queues for the spans of other programs.
#[derive(Clone, Default)]
pub(crate) struct Exports {
    /// How spans reach the collector; `None` without one.
    protocol: Option<Protocol>,
    relayed: Arc<Mutex<Vec<Arc<Queue>>>>,
}

fn otel_variables() -> OtelVariables<impl Fn(&str) -> Option<String>> {
    OtelVariables(|name: &str| std::env::var(name).ok())
}

fn queue(protocol: Protocol) -> Result<Queue, anyhow::Error> {
    let builder = SpanExporter::builder();
    let exporter = match protocol {
        Protocol::Grpc => builder.with_tonic().build(),
        Protocol::HttpProtobuf => builder.with_http().build(),
    }
    .context("cannot set up the OTLP exporter")?;
    Ok(Queue::new(exporter, otel_variables().queue_size()))
}

fn resource(service: &str, instance: &InstanceId, replica: &str) -> Resource {
    otel_variables().resource(
        &format!("agentbox-{service}"),
        vec![
            KeyValue::new("service.namespace", "agentbox"),
            KeyValue::new("service.instance.id", instance.to_string()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("agentbox.replica", replica.to_owned()),
        ],
    )
}

/// Sets up logs, traces and metrics of this process. Must be called inside the tokio runtime, which
/// drives the exporter's connection.
pub(crate) fn start(
    service: &'static str,
    instance: &InstanceId,
    config: &CommonConfig,
) -> Result<Telemetry, anyhow::Error> {
    global::set_text_map_propagator(TraceContextPropagator::new());

    let exports = Exports {
        protocol: otel_variables().protocol()?,
        ..Exports::default()
    };
    let mut provider =
        SdkTracerProvider::builder().with_resource(resource(service, instance, &config.replica));
    if let Some(protocol) = exports.protocol {
        provider = provider.with_span_processor(queue(protocol)?);
    }
    let tracer = provider.build();
    global::set_tracer_provider(tracer.clone());

    let filter = EnvFilter::try_new(format!("{LOG_FILTER},{}", config.log))
        .with_context(|| format!("AGENTBOX_LOG: `{}` is not a log filter", config.log))?;
    tracing_subscriber::registry()
        .with(
            tracing_opentelemetry::layer()
                .with_tracer(tracer.tracer("agentbox"))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(EnvFilter::new(SPAN_FILTER)),
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
        .with(StatementDurations.with_filter(only_statements()))
        .try_init()
        .context("cannot set up logging")?;
    crate::panics::install_hook();

    let recorder = PrometheusBuilder::new()
        .set_buckets(&LATENCY_BUCKETS)
        .context("cannot set the histogram buckets")?
        .install_recorder()
        .context("cannot set up metrics")?;
    metrics::describe(service);
    Ok(Telemetry {
        tracer,
        exports,
        metrics: recorder,
    })
}

impl Exports {
    /// A queue to the collector for the spans of `program`.
    pub(crate) fn relayed_spans(&self, program: &str) -> Result<RelayedSpans, anyhow::Error> {
        let Some(protocol) = self.protocol else {
            return Ok(RelayedSpans::default());
        };
        let mut queue = queue(protocol)?;
        queue.set_resource(&otel_variables().relayed_resource(
            &format!("agentbox-{program}"),
            vec![KeyValue::new("service.namespace", "agentbox")],
        ));
        let queue = Arc::new(queue);
        self.relayed.lock().push(Arc::clone(&queue));
        Ok(RelayedSpans { queue: Some(queue) })
    }
}

impl Telemetry {
    pub(crate) fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    pub(crate) fn exports(&self) -> Exports {
        self.exports.clone()
    }

    /// Exports the remaining spans, outside the async threads, for a bounded time.
    pub(crate) async fn flush(self) {
        let flush = move || {
            let deadline = Instant::now() + FLUSH_DEADLINE;
            let left = || deadline.saturating_duration_since(Instant::now());
            let relayed = self.exports.relayed.lock();
            let own = self.tracer.shutdown_with_timeout(left());
            relayed.iter().fold(own, |outcome, queue| {
                outcome.and(queue.shutdown_with_timeout(left()))
            })
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(flush).await {
            tracing::debug!(error = %ErrorChain(&error), "spans not flushed: the last ones may be lost");
        }
    }
}
