//! The current usage of a running box. It is optional: if the exec-proxy does not answer at once,
//! the environment is returned without it.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::exec::rpc::GetUsage;
use agentbox_contracts::exec::{UsageReply, UsageRequest};

use crate::state::Gateway;

const DEADLINE: Duration = Duration::from_millis(300);

/// Reads the usage of a running box; `None` if it is not running or does not answer in time.
pub(super) async fn read(gateway: &Gateway, environment: &Environment) -> Option<UsageReply> {
    let address = environment
        .address
        .filter(|_| environment.status == Status::Running)?;
    let request = UsageRequest {
        environment: environment.id.clone(),
        address,
    };
    let usage = gateway
        .bus
        .call_cluster::<GetUsage>(&environment.cluster, &request, DEADLINE)
        .await;
    match usage {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(error = %ErrorChain(&error), "the usage of a box could not be read");
            None
        }
    }
}
