//! Waits until a started box is ready.

use std::time::Duration;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;
use chrono::Utc;
use k8s_cri::v1::ContainerState;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::EnsureError;
use crate::box_state::{BoxLock, BoxState};
use crate::context::Context;
use crate::network::BoxNetwork;
use crate::{output, phase};

/// The pause between two connection attempts: boxd listens a few milliseconds after its start.
const READY_POLL: Duration = Duration::from_millis(2);
/// Connection attempts for each status request to containerd, which costs more. A container
/// that ends at once never listens.
const ATTEMPTS_PER_STATUS: u32 = 10;

impl Context {
    /// Waits until boxd accepts a connection, or the container has ended.
    pub(super) async fn wait_until_ready(
        &self,
        id: &EnvironmentId,
        container: &str,
        network: &BoxNetwork,
        lock: &BoxLock,
        state: &mut BoxState,
    ) -> Result<(), EnsureError> {
        let within = Duration::from_secs(self.config.start_deadline_s);
        let deadline = Instant::now() + within;
        let address = (network.address, DEFAULT_PORT);
        let mut attempts = 0u32;
        loop {
            let attempt = tokio::time::timeout_at(deadline, TcpStream::connect(address)).await;
            if matches!(attempt, Ok(Ok(_))) {
                break;
            }
            attempts += 1;
            if attempts.is_multiple_of(ATTEMPTS_PER_STATUS) {
                let Some(status) = self.cri.container_status(container).await? else {
                    break;
                };
                if status.state() == ContainerState::ContainerExited {
                    let termination = output::termination(&self.output_directory(id));
                    if let Some(failure) = phase::failed_start(&status, termination.as_ref()) {
                        return Err(EnsureError::Failed(failure));
                    }
                    // The container has run and ended; the phase has its exit status.
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Deadline(within).into());
            }
            tokio::time::sleep(READY_POLL).await;
        }
        state.ready_at = Some(Utc::now());
        self.states.save(lock, id, state).await?;
        Ok(())
    }
}
