//! From an environment to the box that its cluster shall make. Pure.

use agentbox_box_protocol::token::{BoxToken, TokenError};
use agentbox_contracts::environment::{Environment, EnvironmentRequest};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{BoxSpec, Isolation, Resources};

use crate::cluster::placement::rest_of_selector;
use crate::cluster::registry::Cluster;
use crate::environment::request;
use agentbox_box_protocol::secret::BoxSecret;

/// What every box of this deployment has in common.
#[derive(Clone, Debug)]
pub struct BoxDefaults {
    /// Processes and threads of one box.
    pub pids: u32,
    pub secret: BoxSecret,
}

/// A request, or the secret, does not make a box.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("the request is not valid: {0}")]
    Request(Error),
    #[error("cluster `{0}` no longer has the labels that the environment was placed by")]
    Selector(String),
    #[error("the box's token cannot be made")]
    Token(#[from] TokenError),
}

/// The spec of `id` on `cluster`.
///
/// # Errors
/// When the request is not valid, or contradicts the cluster's labels.
pub fn box_spec(
    id: &EnvironmentId,
    owner: &UserId,
    wanted: &EnvironmentRequest,
    cluster: &Cluster,
    defaults: &BoxDefaults,
) -> Result<BoxSpec, SpecError> {
    let quantities = request::quantities(wanted).map_err(SpecError::Request)?;
    let node_selector = rest_of_selector(&wanted.node_selector, &cluster.labels)
        .ok_or_else(|| SpecError::Selector(cluster.name.clone()))?;
    let isolation = match &wanted.isolation {
        Some(isolation) => Isolation::parse(isolation)
            .map_err(|error| SpecError::Request(request::policy_error(&error)))?,
        None => Isolation::default(),
    };
    Ok(BoxSpec {
        id: id.clone(),
        owner: owner.clone(),
        image: wanted.image.clone(),
        command: wanted.command.clone(),
        env: wanted.env.clone(),
        labels: wanted.labels.clone(),
        resources: Resources {
            cpu: quantities.cpu,
            memory: quantities.memory,
            storage: quantities.storage,
            pids: defaults.pids,
        },
        isolation,
        node_selector,
        tolerations: wanted.tolerations.clone(),
        boxd_token: BoxToken::derive(defaults.secret.bytes(), id)?
            .expose()
            .to_owned(),
    })
}

/// The spec of a stored environment.
///
/// # Errors
/// As [`box_spec`].
pub fn of_environment(
    environment: &Environment,
    cluster: &Cluster,
    defaults: &BoxDefaults,
) -> Result<BoxSpec, SpecError> {
    box_spec(
        &environment.id,
        &environment.owner,
        &environment.request,
        cluster,
        defaults,
    )
}

/// The name under which a Kubernetes cluster resolves the box, and what is told of a box
/// anywhere before it has an address.
#[must_use]
pub fn endpoint_name(id: &EnvironmentId) -> String {
    format!("{id}.agentbox.svc.cluster.local")
}

#[must_use]
pub fn namespace(id: &EnvironmentId) -> String {
    format!("agentbox-{id}")
}
