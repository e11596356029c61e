//! Where the traces and the metrics of an instance are found.

use serde::{Deserialize, Serialize};

/// The programs that observe an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservabilityEndpoint {
    /// Prometheus: its pages, and `/api/v1/query`.
    pub prometheus_url: String,
    /// Jaeger's query service: `/api/traces/{id}`.
    pub jaeger_url: String,
    /// The trace collector's address for OTLP over gRPC.
    pub otlp_url: String,
    /// The trace collector's `/metrics`, with the metrics of spans.
    pub span_metrics_url: String,
}
