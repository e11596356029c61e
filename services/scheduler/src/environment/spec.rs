//! The box spec of an environment. Pure.

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_box_protocol::token::{BoxToken, TokenError};
use agentbox_contracts::environment::Environment;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxSpec, Isolation, NetworkPolicyError, Resources};

use crate::cluster::placement::unmatched_selector;
use crate::cluster::registry::Cluster;
use crate::environment::request::Quantities;

/// Settings of every box of this deployment.
#[derive(Clone, Debug)]
pub struct BoxDefaults {
    /// Processes and threads of one box.
    pub pids: u32,
    pub secret: BoxSecret,
}

/// The spec cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(
        "cluster `{0}` no longer has the labels in the environment's node_selector; restore \
         them in the clusters file"
    )]
    Selector(String),
    #[error("the stored network policy is invalid")]
    NetworkPolicy(#[from] NetworkPolicyError),
    #[error("the box's token cannot be derived")]
    Token(#[from] TokenError),
}

/// The spec of `environment`, which has its variables (`Store::open`), with its parsed
/// `quantities`, on `cluster`.
///
/// # Errors
/// When the environment's selector contradicts the cluster's labels. When its stored network
/// policy breaks a rule that is newer than the environment.
pub fn box_spec(
    environment: &Environment,
    quantities: Quantities,
    cluster: &Cluster,
    defaults: &BoxDefaults,
) -> Result<BoxSpec, SpecError> {
    let request = &environment.request;
    let node_selector = unmatched_selector(&request.node_selector, &cluster.labels)
        .ok_or_else(|| SpecError::Selector(cluster.name.clone()))?;
    // The row has the request. A parsed policy in the record would make a row that breaks a newer
    // rule unreadable, and its environment could not be listed or deleted.
    let isolation = match &request.isolation {
        Some(isolation) => Isolation::parse(isolation)?,
        None => Isolation::default(),
    };
    Ok(BoxSpec {
        id: environment.id.clone(),
        warm: false,
        owner: environment.owner.clone(),
        image: request.image.clone(),
        command: request.command.clone(),
        use_entrypoint: request.use_entrypoint,
        env: request
            .env
            .iter()
            .chain(&request.secret_env)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        labels: request.labels.clone(),
        resources: Resources {
            cpu: quantities.cpu,
            memory: quantities.memory,
            storage: quantities.storage,
            pids: defaults.pids,
        },
        isolation,
        node_selector,
        tolerations: request.tolerations.clone(),
        boxd_token: BoxToken::derive(defaults.secret.bytes(), &environment.id)?
            .expose()
            .to_owned(),
        // Read when the box is created: the owner may change it.
        image_credential: None,
    })
}

/// The name that a Kubernetes cluster resolves to the box; on any cluster, the endpoint of a
/// box that has no address yet.
#[must_use]
pub fn endpoint_name(id: &EnvironmentId) -> String {
    format!("{id}.agentbox.svc.cluster.local")
}

/// The Kubernetes namespace of the box.
#[must_use]
pub fn namespace(id: &EnvironmentId) -> String {
    format!("agentbox-{id}")
}
