//! Runs the sandbox of a box, and reads what containerd has made.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_runtime::{BoxSpec, FailureReason, RuntimeError};
use k8s_cri::v1::PodSandboxConfig;
use tokio::time::Instant;

use super::EnsureError;
use crate::box_state::Failure;
use crate::context::Context;
use crate::cri::CriError;
use crate::error::io_failure;
use crate::network::{BoxNetwork, Inside};
use crate::{refusal, sandbox, seccomp};

impl Context {
    pub(super) async fn run_sandbox(
        &self,
        spec: &BoxSpec,
        config: PodSandboxConfig,
    ) -> Result<String, EnsureError> {
        let within = Duration::from_secs(self.config.sandbox_deadline_s);
        let deadline = Instant::now() + within;
        loop {
            let class = sandbox::runtime_handler(&self.config, spec);
            let run = self.cri.run_sandbox(config.clone(), class.clone(), within);
            match run.await {
                Ok(id) => return Ok(id),
                // containerd is still creating or removing the sandbox of a killed `ensure`. The
                // sandbox appears, or its name becomes free.
                Err(error) if error.message().contains("is reserved for") => {
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                    self.remove_sandboxes(&self.objects(&spec.id).await?)
                        .await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(sandbox_error(&class, error)),
            }
        }
    }

    /// The sandbox's network, and the file of the system-call filter for its container.
    pub(super) async fn read_sandbox(
        &self,
        sandbox: &str,
    ) -> Result<(BoxNetwork, Inside, PathBuf), RuntimeError> {
        let status = self.cri.sandbox_status(sandbox).await?;
        let info = status.info.get("info").map_or("", String::as_str);
        let (network, inside) =
            BoxNetwork::read(info, &self.config.bridge).map_err(|error| RuntimeError::Cluster {
                operation: "sandbox network",
                message: error.to_string(),
            })?;
        let filter = seccomp::restrict(info).map_err(|error| RuntimeError::Cluster {
            operation: "system-call filter",
            message: error.to_string(),
        })?;
        let stored = seccomp::store(&self.config.state_dir, &filter)
            .map_err(|error| io_failure("system-call filter", &error))?;
        Ok((network, inside, stored))
    }
}

/// An error of the sandbox. The user can cause it by the runtime class only; `class` is empty for
/// containerd's default.
fn sandbox_error(class: &str, error: CriError) -> EnsureError {
    if class.is_empty() || !refusal::is_missing_runtime(error.message()) {
        return error.into();
    }
    EnsureError::Failed(Failure {
        reason: FailureReason::RuntimeClass,
        message: format!("the runtime class `{class}` is not available on this machine"),
    })
}
