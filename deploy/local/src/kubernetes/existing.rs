//! A Kubernetes that somebody else runs, for the boxes alone: our services stay on this
//! machine, and reach boxes through its API server.

use std::path::PathBuf;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api as Objects, DeleteParams, ListParams};
use serde::{Deserialize, Serialize};

use super::api::{Api, SYSTEM_NAMESPACE};
use super::{KubernetesEndpoint, KubernetesError};

/// The label of everything that the driver makes; its value is the deployment.
const DEPLOYMENT: &str = "agentbox.dev/deployment";

/// What cannot be found out about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExistingKubernetes {
    /// Of somebody who may make namespaces and everything in them.
    pub kubeconfig: PathBuf,
    /// An image with `/boxd`, where its nodes can pull it.
    pub boxd_image: String,
    /// The networks of its pods, services and nodes, which no box may reach.
    pub cluster_cidrs: Vec<IpNet>,
}

impl ExistingKubernetes {
    /// Finds out that it answers, and makes the namespace that the driver expects.
    pub(crate) async fn join(
        &self,
        deployment: &str,
    ) -> Result<KubernetesEndpoint, KubernetesError> {
        let api = Api::connect(&self.kubeconfig).await?;
        api.is_ready().await?;
        api.set_up_namespace().await?;
        Ok(KubernetesEndpoint {
            kubeconfig: self.kubeconfig.clone(),
            deployment: deployment.to_owned(),
            system_namespace: SYSTEM_NAMESPACE.to_owned(),
            boxd_image: self.boxd_image.clone(),
            boxd_delivery: "init_container".to_owned(),
            image_pull_secrets: Vec::new(),
            cluster_cidrs: self.cluster_cidrs.clone(),
            boxd_client_cidrs: Vec::new(),
            dns_servers: Vec::new(),
            reach: "port_forward".to_owned(),
        })
    }

    /// Removes every box of a deployment from it; the rest of each goes by itself.
    pub(crate) async fn remove_boxes(&self, deployment: &str) -> Result<usize, KubernetesError> {
        let client = Api::connect(&self.kubeconfig).await?.into_client();
        let ours = ListParams::default().labels(&format!("{DEPLOYMENT}={deployment}"));
        let delete = DeleteParams::default();
        let failed = |source| super::api::ApiError::Call {
            what: "remove boxes".to_owned(),
            source: Box::new(source),
        };
        let names: Objects<Service> = Objects::namespaced(client.clone(), SYSTEM_NAMESPACE);
        for name in names.list(&ours).await.map_err(failed)? {
            let name = name.metadata.name.unwrap_or_default();
            names.delete(&name, &delete).await.map_err(failed)?;
        }
        let namespaces: Objects<Namespace> = Objects::all(client);
        let boxes = namespaces.list(&ours).await.map_err(failed)?.items;
        for namespace in &boxes {
            let name = namespace.metadata.name.as_deref().unwrap_or_default();
            namespaces.delete(name, &delete).await.map_err(failed)?;
        }
        Ok(boxes.len())
    }
}
