//! What a running box uses now. Worth a short wait, and no error: without an answer the
//! environment is shown without it.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::exec::rpc::GetUsage;
use agentbox_contracts::exec::{UsageReply, UsageRequest};

use crate::state::Gateway;

const DEADLINE: Duration = Duration::from_millis(300);

pub(super) async fn of(gateway: &Gateway, environment: &Environment) -> Option<UsageReply> {
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
            tracing::debug!(error = %ErrorChain(&error), "a box's usage is not known");
            None
        }
    }
}
