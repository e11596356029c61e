//! `agentbox-loadtest canary`: uses the public API as a user does, again and again, and exports what it
//! saw as metrics.
//!
//! A run logs in, creates an environment, runs `true` in it, follows the output of an execution, and
//! deletes the environment. It also compares the clock of the API with its own.
//!
//! * I1. At most one environment exists at a time. A run deletes its own, also after a failed step; one
//!   that is left by a killed process ends after [`steps::LIFETIME_S`].
//! * I2. Every step has a deadline. A failed step ends the run, is counted, and is printed with its error;
//!   the next run begins after the interval.

mod metrics;
mod steps;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use clap::Args;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// In seconds: from a fast exec to the deadline of a step.
const BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

#[derive(Args)]
pub(crate) struct Options {
    /// The URL of the API.
    #[arg(long, env = "AGENTBOX_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The username to log in with.
    #[arg(long, env = "AGENTBOX_CANARY_USERNAME")]
    username: String,
    /// The password. Prefer the variable: other users of the machine see arguments.
    #[arg(long, env = "AGENTBOX_CANARY_PASSWORD", hide_env_values = true)]
    password: String,
    /// The image of its environments. It needs `true` and `echo`.
    #[arg(long, env = "AGENTBOX_CANARY_IMAGE", default_value = "busybox")]
    image: String,
    /// Seconds from the begin of a run to the begin of the next.
    #[arg(long, env = "AGENTBOX_CANARY_INTERVAL", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// The address of the listener for `/metrics` and `/health/ready`.
    #[arg(long, env = "AGENTBOX_CANARY_LISTEN", default_value = "127.0.0.1:9095")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot listen, or the URL is invalid.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)
        .context("cannot set the histogram buckets")?
        .install_recorder()
        .context("cannot set up metrics")?;
    metrics::describe();
    let canary = steps::Canary::new(
        &options.url,
        options.username,
        options.password,
        options.image,
    )?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    println!("metrics on http://{}/metrics", options.listen);
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(listener, router(recorder)) => served.context("the listener failed"),
        () = repeat(&canary, Duration::from_secs(options.interval)) => Ok(()),
        _ = terminated.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for a signal"),
    }
}

fn router(recorder: PrometheusHandle) -> Router {
    let render = move || {
        let recorder = recorder.clone();
        async move {
            recorder.run_upkeep();
            recorder.render()
        }
    };
    Router::new()
        .route("/metrics", get(render))
        .route("/health/ready", get(|| async { "ready\n" }))
}

/// Never returns.
async fn repeat(canary: &steps::Canary, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        canary.run().await;
    }
}
