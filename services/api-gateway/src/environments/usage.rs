//! What a running box uses now. Worth a short wait, and no error: without an answer the
//! environment is shown without it.

use std::time::Duration;

use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::exec::{USAGE, UsageReply, UsageRequest};
use agentbox_contracts::subjects;

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
    let subject = subjects::exec_rpc(&environment.cluster, USAGE);
    match gateway.bus.call_on(subject, &request, DEADLINE).await {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(%error, "a box's usage is not known");
            None
        }
    }
}
