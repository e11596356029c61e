//! The admin listener: metrics and health, for operators. Users must not be able to reach it.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::readiness::Readiness;

/// How long connections may stay open after the listener has stopped.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct AdminState {
    readiness: Readiness,
    metrics: PrometheusHandle,
}

pub(crate) struct Admin {
    listener: TcpListener,
    router: Router,
}

impl Admin {
    pub(crate) async fn bind(
        address: SocketAddr,
        readiness: Readiness,
        metrics: PrometheusHandle,
    ) -> Result<Self, anyhow::Error> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (AGENTBOX_ADMIN_LISTEN)"))?;
        let router = Router::new()
            .route("/metrics", get(render_metrics))
            .route("/health/live", get(|| async { "alive\n" }))
            .route("/health/ready", get(ready))
            .with_state(AdminState { readiness, metrics });
        Ok(Self { listener, router })
    }

    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let served = axum::serve(self.listener, self.router)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        // A scraper that keeps its connection open must not delay the exit.
        let grace_is_over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(CLOSE_GRACE).await;
        };
        tokio::select! {
            outcome = served => if let Err(error) = outcome {
                tracing::error!(error = %ErrorChain(&error), "admin listener failed");
            },
            () = grace_is_over => {}
        }
    }
}

async fn render_metrics(State(state): State<AdminState>) -> Response {
    metrics::measure_process();
    metrics::unready(state.readiness.reasons().into_keys());
    state.metrics.run_upkeep();
    let mut text = state.metrics.render();
    text.push_str(&agentbox_metrics::render_gauge_sets());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn ready(State(state): State<AdminState>) -> Response {
    let reasons = state.readiness.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let body: String = reasons
        .iter()
        .map(|(component, reason)| format!("{component}: {reason}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}
