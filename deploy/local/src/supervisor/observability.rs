//! Starts the programs that observe the instance: with it, or while it runs.

use std::convert::Infallible;
use std::time::Duration;

use agentbox_testing::paths::cache_directory;

use super::probe::probe;
use super::{SuperviseError, Supervisor};
use crate::kubernetes::build;
use crate::observability::{
    Addresses, CANARY, COLLECTOR, Files, JAEGER, ObservabilityError, PROMETHEUS, require_prometheus,
};
use crate::process::ProcessSpec;

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How often the supervisor looks for a request to observe the running instance.
const REQUEST_INTERVAL: Duration = Duration::from_millis(250);

impl Supervisor {
    /// Starts the collector, Jaeger and Prometheus. Services that start afterwards send their spans.
    pub(super) async fn start_observability(&mut self) -> Result<(), SuperviseError> {
        let prometheus = require_prometheus()?;
        let state_file = self.state_file.clone();
        let programs =
            build::provide_observability(&cache_directory(), |step| state_file.log_step(&step))
                .await
                .map_err(ObservabilityError::from)?;
        let addresses = Addresses::take(&mut self.ports)?;
        let layout = self.layout.clone();
        let files = Files(&layout);
        files.prepare(&addresses, &self.plan)?;
        // The collector last: what it receives it sends to Jaeger.
        for spec in [
            files.jaeger(&addresses, &programs),
            files.prometheus(&addresses, prometheus),
            files.collector(&addresses, &programs),
        ] {
            self.observe_with(spec, None, &addresses).await?;
        }
        self.state_file
            .update(|state| state.observability = Some(addresses.endpoint()));
        self.observed_at = Some(addresses);
        Ok(())
    }

    /// Starts the canary, and tells Prometheus the addresses of all processes. The services must run.
    pub(super) async fn observe_services(&mut self) -> Result<(), SuperviseError> {
        let Some(addresses) = self.observed_at.take() else {
            return Ok(());
        };
        let layout = self.layout.clone();
        let files = Files(&layout);
        let gateway = self.state_file.read(|state| state.gateway.clone());
        if let Some(gateway) = gateway {
            let spec = files.canary(&addresses, &self.plan, &self.secrets, &gateway.url)?;
            self.observe_with(spec, Some(addresses.canary_url()), &addresses)
                .await?;
        }
        self.state_file.read(|state| files.write_targets(state))?;
        self.observed_at = Some(addresses);
        Ok(())
    }

    async fn observe_with(
        &mut self,
        spec: ProcessSpec,
        admin_url: Option<String>,
        addresses: &Addresses,
    ) -> Result<(), SuperviseError> {
        let name = spec.name.clone();
        let ready = addresses.readiness(&name);
        self.observability.supervise(spec, admin_url);
        let http = reqwest::Client::new();
        self.observability
            .wait_ready(&name, READY_DEADLINE, || probe(&http, ready.clone()))
            .await?;
        self.state_file.log_step(&format!("{name} is ready"));
        Ok(())
    }

    /// Waits for requests of `agentbox-local observe` to observe the running instance. An attempt that
    /// fails is reported in the state file, and what it started is stopped.
    pub(super) async fn observe_on_request(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(REQUEST_INTERVAL).await;
            let request = self.layout.observe_request();
            if !request.exists() {
                continue;
            }
            // Before the request is removed, which answers it.
            self.state_file
                .update(|state| state.observability_error = None);
            let _ = std::fs::remove_file(request);
            if self.observed_at.is_some() {
                continue;
            }
            let outcome = self.observe_all().await;
            if let Err(error) = outcome {
                self.stop_observability().await;
                let message = error.to_string();
                self.state_file
                    .log_step(&format!("cannot observe the instance: {message}"));
                self.state_file
                    .update(|state| state.observability_error = Some(message));
            }
        }
    }

    async fn observe_all(&mut self) -> Result<(), SuperviseError> {
        self.start_observability().await?;
        self.observe_services().await
    }

    /// Stops what observes the instance. Services that start afterwards send no spans.
    async fn stop_observability(&mut self) {
        self.observability.stop().await;
        self.observability = super::ProcessGroup::new(self.state_file.clone());
        self.observed_at = None;
        let _ = std::fs::remove_file(self.layout.trace_environment());
        self.state_file.update(|state| {
            state.observability = None;
            for name in [COLLECTOR, JAEGER, PROMETHEUS, CANARY] {
                state.processes.remove(name);
            }
        });
    }
}
