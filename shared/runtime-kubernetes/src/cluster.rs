//! A client of the cluster's API server. Each call has a deadline, and its error is an
//! [`ApiError`].
//!
//! Never decides anything, and never retries: callers do.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RuntimeError;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{NamespaceResourceScope, Status};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::config::Config;

/// The owner of the fields that this driver applies.
const FIELD_MANAGER: &str = "agentbox";
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// A call to the API server that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{operation} did not finish within {after:?}")]
    Deadline {
        operation: &'static str,
        after: Duration,
    },
    /// The API server is down or overloaded, or the connection broke.
    #[error("{operation}: the API server does not answer: {message}")]
    Unavailable {
        operation: &'static str,
        message: String,
    },
    #[error("{operation}: {}", .status.message)]
    Refused {
        operation: &'static str,
        status: Box<Status>,
    },
}

impl ApiError {
    fn from_kube(operation: &'static str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 429 | 502..=504) => {
                Self::Unavailable {
                    operation,
                    message: status.message.clone(),
                }
            }
            kube::Error::Api(status) => Self::Refused { operation, status },
            other => Self::Unavailable {
                operation,
                message: ErrorChain(&other).to_string(),
            },
        }
    }

    /// The status code and message of a refused call.
    pub fn refusal(&self) -> Option<(u16, &str)> {
        match self {
            Self::Refused { status, .. } => Some((status.code, &status.message)),
            _ => None,
        }
    }

    /// Whether another client changed or created the object first.
    pub fn is_conflict(&self) -> bool {
        self.refusal().is_some_and(|(code, _)| code == 409)
    }

    fn is_not_found(&self) -> bool {
        self.refusal().is_some_and(|(code, _)| code == 404)
    }
}

impl From<ApiError> for RuntimeError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Deadline { after, .. } => Self::Deadline(after),
            ApiError::Unavailable { message, .. } => Self::Unavailable(message),
            ApiError::Refused { operation, status } => Self::Cluster {
                operation,
                message: status.message,
            },
        }
    }
}

/// The client of one cluster. It connects at the first call, and again when the connection broke.
pub struct Cluster {
    config: Config,
    client: OnceCell<Client>,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// The namespace of a box.
pub fn namespace_of(id: &EnvironmentId) -> String {
    format!("agentbox-{id}")
}

impl Cluster {
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            client: OnceCell::new(),
        }
    }

    /// # Errors
    /// When the kubeconfig cannot be read, or not yet.
    pub async fn client(&self) -> Result<&Client, ApiError> {
        let unusable = |message: String| ApiError::Unavailable {
            operation: "read the kubeconfig",
            message,
        };
        self.client
            .get_or_try_init(|| async {
                let config = match &self.config.kubeconfig {
                    None => kube::Config::incluster()
                        .map_err(|e| unusable(ErrorChain(&e).to_string()))?,
                    Some(path) => {
                        let options = KubeConfigOptions {
                            context: self.config.context.clone(),
                            ..Default::default()
                        };
                        let file = Kubeconfig::read_from(path)
                            .map_err(|e| unusable(ErrorChain(&e).to_string()))?;
                        kube::Config::from_custom_kubeconfig(file, &options)
                            .await
                            .map_err(|e| unusable(ErrorChain(&e).to_string()))?
                    }
                };
                Client::try_from(config).map_err(|e| unusable(ErrorChain(&e).to_string()))
            })
            .await
    }

    pub async fn call<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T, kube::Error>> + Send,
    ) -> Result<T, ApiError> {
        let after = self.config.call_deadline();
        match tokio::time::timeout(after, answer).await {
            Ok(outcome) => outcome.map_err(|error| ApiError::from_kube(operation, error)),
            Err(_) => Err(ApiError::Deadline { operation, after }),
        }
    }

    pub async fn namespaces(&self) -> Result<Api<Namespace>, ApiError> {
        Ok(Api::all(self.client().await?.clone()))
    }

    pub async fn nodes(&self) -> Result<Api<Node>, ApiError> {
        Ok(Api::all(self.client().await?.clone()))
    }

    /// The pods of one box's namespace: there is one, `main`.
    pub async fn box_pods(&self, id: &EnvironmentId) -> Result<Api<Pod>, ApiError> {
        self.box_objects(id).await
    }

    /// Objects of one kind in a box's namespace.
    pub async fn box_objects<K>(&self, id: &EnvironmentId) -> Result<Api<K>, ApiError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let client = self.client().await?.clone();
        Ok(Api::namespaced(client, &namespace_of(id)))
    }

    pub async fn system_services(&self) -> Result<Api<Service>, ApiError> {
        self.system_objects().await
    }

    /// Objects of one kind in the namespace of the deployment's services.
    pub async fn system_objects<K>(&self) -> Result<Api<K>, ApiError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let client = self.client().await?.clone();
        Ok(Api::namespaced(client, &self.config.system_namespace))
    }

    /// Every object that a selector finds, page by page.
    pub async fn list<K>(&self, api: &Api<K>, selector: Option<&str>) -> Result<Vec<K>, ApiError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.label_selector = selector.map(str::to_owned);
        let mut all = Vec::new();
        loop {
            let page = self.call("list", api.list(&parameters)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    pub async fn get<K>(&self, api: &Api<K>, name: &str) -> Result<Option<K>, ApiError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        self.call("get", api.get_opt(name)).await
    }

    /// Server-side apply: when this returns, the object matches the manifest.
    pub async fn apply<K>(&self, api: &Api<K>, manifest: &Value) -> Result<K, ApiError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let parameters = PatchParams::apply(FIELD_MANAGER)
            .force()
            .validation_strict();
        self.call(
            "apply",
            api.patch(name, &parameters, &Patch::Apply(manifest)),
        )
        .await
    }

    /// Applies a merge patch. A patch with a `resourceVersion` applies to that version only.
    pub async fn merge<K, P>(&self, api: &Api<K>, name: &str, patch: &P) -> Result<K, ApiError>
    where
        K: Clone + DeserializeOwned + Debug,
        P: Serialize + Debug + Sync,
    {
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..Default::default()
        };
        self.call("patch", api.patch(name, &parameters, &Patch::Merge(patch)))
            .await
    }

    /// Deletes an object, and returns whether it existed.
    pub async fn delete<K>(
        &self,
        api: &Api<K>,
        name: &str,
        parameters: &DeleteParams,
    ) -> Result<bool, ApiError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match self.call("delete", api.delete(name, parameters)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
