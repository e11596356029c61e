//! `observe`: starts a trace collector, Jaeger, Prometheus and the canary beside the running instance.
//!
//! The services are restarted one after the other, because they read at their start where to send spans.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentbox_contracts::permissions::SERVICES;
use agentbox_testing::ObservabilityEndpoint;
use agentbox_testing::bin_dir;
use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::state::State;
use agentbox_testing::tool::Tool;
use anyhow::{Context, bail};

use super::restart;
use crate::kubernetes::build;
use crate::observability::{require_canary, require_prometheus};

/// The time for the supervisor to start the programs, which are built by then.
const START_DEADLINE: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// # Errors
/// When AgentBox is not running, or a program is missing or does not start.
pub(super) async fn run(layout: &Layout) -> anyhow::Result<()> {
    let state = restart::running_state(layout)?;
    let endpoint = match state.observability {
        Some(endpoint) => endpoint,
        None => {
            require()?;
            build().await?;
            let endpoint = request(layout).await?;
            for service in SERVICES {
                restart::run(layout, service).await?;
            }
            endpoint
        }
    };
    print!("{}", summary(&endpoint));
    Ok(())
}

/// Checks that the programs that are not built from Go modules exist.
///
/// # Errors
/// When one is missing, with the command that installs or builds it.
pub(super) fn require() -> anyhow::Result<()> {
    require_prometheus()?;
    require_canary(&bin_dir())?;
    Ok(())
}

/// Builds the programs that are not in the cache.
///
/// # Errors
/// When a build fails.
pub(super) async fn build() -> anyhow::Result<build::Programs> {
    let built = build::provide_observability(&cache_directory(), |step| println!("{step}")).await;
    Ok(built?)
}

/// Validates dashboards with Grafana's own types.
///
/// # Errors
/// When one is invalid.
pub(super) async fn validate(dashboards: &[PathBuf]) -> anyhow::Result<()> {
    let program = build().await?.bin("dashboards").join("validate-dashboards");
    let files = dashboards
        .iter()
        .map(std::path::absolute)
        .collect::<Result<Vec<_>, _>>()?;
    let report = Tool::new(program).args(files).run().await?;
    print!("{report}");
    Ok(())
}

/// Asks the supervisor to start the programs, and waits until they are ready.
async fn request(layout: &Layout) -> anyhow::Result<ObservabilityEndpoint> {
    let request = layout.observe_request();
    std::fs::write(&request, "").with_context(|| format!("cannot write {}", request.display()))?;
    let started = Instant::now();
    loop {
        let state = State::read(&layout.state()).context("AgentBox is not running any more")?;
        let is_answered = !request.exists();
        let has_canary = state.processes.contains_key(crate::observability::CANARY);
        match (state.observability, state.observability_error) {
            (Some(endpoint), _) if is_answered && has_canary => return Ok(endpoint),
            (None, Some(error)) if is_answered => bail!("{error}"),
            _ if started.elapsed() > START_DEADLINE => {
                bail!("not started after {START_DEADLINE:?}; see `make status` and `make logs`")
            }
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// The URLs, as `up` and `observe` print them.
pub(super) fn summary(endpoint: &ObservabilityEndpoint) -> String {
    let ObservabilityEndpoint {
        prometheus_url,
        jaeger_url,
        otlp_url,
        span_metrics_url,
    } = endpoint;
    format!(
        r#"
AgentBox is observed.

  Prometheus    {prometheus_url} (alerts: {prometheus_url}/classic/alerts)
  Jaeger        {jaeger_url}/api/traces/TRACE_ID, with the X-Trace-Id of any answer
  OTLP (gRPC)   {otlp_url}
  span metrics  {span_metrics_url}/metrics
"#
    )
}
