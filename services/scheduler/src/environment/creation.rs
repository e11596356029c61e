//! A new environment, as its request asks for it. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::EnvironmentId;
use chrono::{DateTime, TimeDelta, Utc};

use crate::cluster::placement::Allocatable;
use crate::environment::quota::Quota;
use crate::environment::request::{self, Quantities};
use crate::environment::spec::{endpoint_name, namespace};
use crate::environment::warm_claim::{CLAIM_GENERATION, WarmClaim};

/// An environment to be created.
#[derive(Clone, Debug)]
pub struct Creation {
    /// Pending, without a message.
    pub environment: Environment,
    pub quantities: Quantities,
    pub allocatable: Allocatable,
    pub quota: Quota,
    pub start_deadline: DateTime<Utc>,
    pub idempotency_key: Option<String>,
    /// The warm box that it has claimed.
    pub claim: Option<WarmClaim>,
}

impl Creation {
    /// The environment of `request`, created at `now`. Its cluster is not chosen yet, and
    /// neither its quota nor its cluster's capacity is limited.
    ///
    /// # Errors
    /// `Validation`, naming the first field that breaks its rule.
    pub fn new(
        id: EnvironmentId,
        request: CreateRequest,
        start_timeout: Duration,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let quantities = request::validate(&request.request)?;
        let lifetime = Duration::from_secs(request.request.timeout_s);
        let environment = Environment {
            endpoint: endpoint_name(&id),
            namespace: namespace(&id),
            id,
            owner: request.owner,
            owner_username: request.owner_username,
            cluster: String::new(),
            request: request.request,
            status: Status::Pending,
            status_reason: None,
            status_message: None,
            created_at: now,
            started_at: None,
            ended_at: None,
            expires_at: after(now, lifetime),
            last_active_at: None,
            exit_code: None,
            address: None,
            generation: 1,
            pool: None,
        };
        Ok(Self {
            environment,
            quantities,
            allocatable: Allocatable::UNLIMITED,
            quota: Quota::default(),
            start_deadline: after(now, start_timeout),
            idempotency_key: request.idempotency_key,
            claim: None,
        })
    }

    /// The same environment in the warm box `id` of `cluster`, which it has claimed. Its capacity is
    /// reserved since the box was started.
    #[must_use]
    pub fn in_warm_box(&self, id: EnvironmentId, cluster: String, address: SocketAddr) -> Self {
        let mut claimed = self.clone();
        let environment = &mut claimed.environment;
        environment.endpoint = endpoint_name(&id);
        environment.namespace = namespace(&id);
        environment.id = id;
        environment.cluster = cluster;
        environment.generation = CLAIM_GENERATION;
        claimed.allocatable = Allocatable::UNLIMITED;
        claimed.claim = Some(WarmClaim::Pending { address });
        claimed
    }
}

/// The time `duration` after `begin`, or the last time that there is.
fn after(begin: DateTime<Utc>, duration: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(duration)
        .ok()
        .and_then(|delta| begin.checked_add_signed(delta))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}
