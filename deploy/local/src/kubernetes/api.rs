//! The requests to the API server while a cluster starts.

use std::path::Path;

use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::{admission, node};
use crate::gvisor;

/// The namespace of the product's services.
pub(crate) const SYSTEM_NAMESPACE: &str = "agentbox-system";

/// A request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot read the cluster's kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("{what}: {source}")]
    Call {
        what: String,
        source: Box<kube::Error>,
    },
    #[error("cannot read {path}: {source}")]
    File {
        path: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    NotYet(String),
}

/// Whether the same request may succeed shortly after. An object that is invalid, or not allowed,
/// stays so.
fn is_transient(error: &ApiError) -> bool {
    let ApiError::Call { source, .. } = error else {
        return false;
    };
    match source.as_ref() {
        // 404: the kind or the namespace is not served yet.
        kube::Error::Api(status) => match status.code {
            404 | 409 | 429 | 500..=599 => true,
            // An admission plugin that has not read its objects yet.
            403 => status.message.contains("not yet ready to handle request"),
            _ => false,
        },
        // The connection failed or broke.
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

/// A client of the cluster's API server.
pub(crate) struct Api(Client);

impl Api {
    pub(crate) async fn connect(kubeconfig: &Path) -> Result<Self, ApiError> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let configuration = kube::Config::from_custom_kubeconfig(file, &options).await?;
        let client = Client::try_from(configuration).map_err(|source| ApiError::Call {
            what: "connecting to the API server".to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self(client))
    }

    pub(super) fn into_client(self) -> Client {
        self.0
    }

    async fn call(&self, method: &str, path: &str, body: Vec<u8>) -> Result<String, ApiError> {
        let failed = |source| ApiError::Call {
            what: format!("{method} {path}"),
            source: Box::new(source),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            // The type for server-side apply. JSON is valid YAML.
            .header("Content-Type", "application/apply-patch+yaml")
            .body(body)
            .map_err(|error| failed(kube::Error::HttpError(error)))?;
        self.0.request_text(request).await.map_err(failed)
    }

    pub(crate) async fn is_ready(&self) -> Result<(), ApiError> {
        self.call("GET", "/readyz", Vec::new()).await.map(drop)
    }

    /// Applies one object server-side.
    pub(super) async fn apply(&self, path: &str, body: impl Into<Vec<u8>>) -> Result<(), ApiError> {
        let path = format!("{path}?fieldManager=agentbox-local&force=true");
        self.call("PATCH", &path, body.into()).await.map(drop)
    }

    /// Creates Calico's resource definitions and the resources that Felix requires.
    pub(crate) async fn set_up_calico(
        &self,
        crds: &Path,
        addresses: &ClusterAddresses,
    ) -> Result<(), ApiError> {
        let failed = |source| ApiError::File {
            path: crds.display().to_string(),
            source,
        };
        let mut applied = Vec::new();
        for entry in std::fs::read_dir(crds).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            // The file crd.projectcalico.org_ippools.yaml defines ippools.crd.projectcalico.org.
            let Some((group, plural)) = stem.split_once('_') else {
                continue;
            };
            let name = format!("{plural}.{group}");
            let at = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            let crd = std::fs::read(&path).map_err(failed)?;
            applied.push(async move { self.apply(&at, crd).await });
        }
        futures::future::try_join_all(applied).await?;
        for (plural, kind, name, spec) in [
            (
                "clusterinformations",
                "ClusterInformation",
                "default",
                json!({
                    "datastoreReady": true, "clusterGUID": "agentbox-local",
                    "clusterType": "k8s", "calicoVersion": "v3.28.5",
                }),
            ),
            (
                "ippools",
                "IPPool",
                "pods",
                json!({
                    "cidr": addresses.pods.to_string(), "ipipMode": "Never",
                    "vxlanMode": "Never", "natOutgoing": true, "nodeSelector": "all()",
                    "allowedUses": ["Workload", "Tunnel"],
                }),
            ),
            (
                "felixconfigurations",
                "FelixConfiguration",
                "default",
                json!({
                    "usageReportingEnabled": false, "ipv6Support": true, "bpfEnabled": false,
                }),
            ),
        ] {
            let object = json!({
                "apiVersion": "crd.projectcalico.org/v1",
                "kind": kind,
                "metadata": { "name": name },
                "spec": spec,
            });
            let at = format!("/apis/crd.projectcalico.org/v1/{plural}/{name}");
            self.apply_with_retries(&at, &object).await?;
        }
        Ok(())
    }

    /// Applies an object, and retries for a limited time while the error is transient: the API
    /// server serves a new kind, or a new namespace, only shortly after its definition.
    async fn apply_with_retries(&self, path: &str, object: &Value) -> Result<(), ApiError> {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match self.apply(path, object.to_string()).await {
                Err(error) if is_transient(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Creates the Node object before the kubelet starts: kube-proxy waits for the object, and
    /// must create its rules before Felix does.
    pub(crate) async fn create_node(&self, addresses: &ClusterAddresses) -> Result<(), ApiError> {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node::NAME },
        });
        let at = format!("/api/v1/nodes/{}", node::NAME);
        self.apply(&at, object.to_string()).await?;
        object["status"] = json!({ "addresses": [
            { "type": "InternalIP", "address": addresses.node.to_string() },
        ]});
        self.apply(&format!("{at}/status"), object.to_string())
            .await
    }

    /// Creates the services' namespace.
    pub(crate) async fn set_up_namespace(&self) -> Result<(), ApiError> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": SYSTEM_NAMESPACE },
        });
        let at = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}");
        self.apply_with_retries(&at, &namespace).await
    }

    /// Binds the account of the services to the boxes of a deployment.
    pub(crate) async fn set_up_admission(&self, deployment: &str) -> Result<(), ApiError> {
        for (path, policy) in admission::policies(deployment) {
            self.apply(&path, policy).await?;
        }
        Ok(())
    }

    /// Applies objects, each at its path.
    pub(crate) async fn set_up(
        &self,
        objects: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<(), ApiError> {
        for (path, object) in objects {
            self.apply(&path, object.to_string()).await?;
        }
        Ok(())
    }

    /// Creates the RuntimeClass of gVisor if the node's containerd has that runtime.
    pub(crate) async fn set_up_runtime_classes(&self) -> Result<(), ApiError> {
        if gvisor::find().is_none() {
            return Ok(());
        }
        let class = json!({
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": { "name": gvisor::CLASS },
            "handler": gvisor::CLASS,
        });
        let at = format!("/apis/node.k8s.io/v1/runtimeclasses/{}", gvisor::CLASS);
        self.apply(&at, class.to_string()).await
    }

    pub(crate) async fn node_is_ready(&self) -> Result<(), ApiError> {
        let text = self
            .call("GET", &format!("/api/v1/nodes/{}", node::NAME), Vec::new())
            .await?;
        let object: Value = serde_json::from_str(&text).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Ready");
        match ready {
            Some(ready) if ready["status"] == "True" => Ok(()),
            Some(ready) => Err(ApiError::NotYet(ready["message"].to_string())),
            None => Err(ApiError::NotYet(
                "the kubelet has not registered".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn call(source: kube::Error) -> ApiError {
        ApiError::Call {
            what: "PATCH /api/v1/namespaces/agentbox-system".to_owned(),
            source: Box::new(source),
        }
    }

    fn refused(code: u16, message: &str) -> ApiError {
        let status = Status::failure(message, "Refused").with_code(code);
        call(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn only_transient_errors_are_retried() {
        for error in [
            refused(404, "404 page not found"),
            refused(409, "the object has been modified"),
            refused(429, "too many requests"),
            refused(500, "etcdserver: request timed out"),
            refused(503, "apiserver is shutting down"),
            refused(403, "not yet ready to handle request"),
            call(kube::Error::Service("connection refused".into())),
        ] {
            assert!(is_transient(&error), "{error}");
        }
        for error in [
            refused(400, "the body is not an object"),
            refused(401, "Unauthorized"),
            refused(403, "namespaces is forbidden"),
            refused(422, "spec.cidr: Invalid value"),
            ApiError::NotYet("the kubelet has not registered".to_owned()),
        ] {
            assert!(!is_transient(&error), "{error}");
        }
    }
}
