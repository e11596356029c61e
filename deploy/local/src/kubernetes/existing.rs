//! A Kubernetes that already runs, for the boxes alone. The services run on this machine and
//! reach boxes through its API server.

use agentbox_testing::{ExistingKubernetes, KubernetesEndpoint};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api as Objects, DeleteParams, ListParams};

use super::KubernetesError;
use super::api::{Api, ApiError, SYSTEM_NAMESPACE};
use crate::network::machine_addresses;

/// The label of every object of the driver; its value is the deployment.
const DEPLOYMENT: &str = "agentbox.dev/deployment";

/// Checks that the API server answers, and creates the namespace that the driver requires.
pub(crate) async fn join(
    cluster: &ExistingKubernetes,
    deployment: &str,
) -> Result<KubernetesEndpoint, KubernetesError> {
    let api = Api::connect(&cluster.kubeconfig).await?;
    api.is_ready().await?;
    api.set_up_namespace().await?;
    // The services run on this machine, which may be a node of the cluster or reachable from one.
    let mut cluster_cidrs = cluster.cluster_cidrs.clone();
    cluster_cidrs.extend(machine_addresses().await?);
    Ok(KubernetesEndpoint {
        kubeconfig: cluster.kubeconfig.clone(),
        deployment: deployment.to_owned(),
        system_namespace: SYSTEM_NAMESPACE.to_owned(),
        boxd_image: cluster.boxd_image.clone(),
        boxd_delivery: "init_container".to_owned(),
        image_pull_secrets: Vec::new(),
        shared_pull_secrets: Vec::new(),
        present_images: cluster.present_images.clone(),
        cluster_cidrs,
        boxd_client_cidrs: Vec::new(),
        dns_servers: Vec::new(),
        reach: "port_forward".to_owned(),
    })
}

/// Deletes the namespace of every box of a deployment, and the boxes' Services. Kubernetes
/// deletes the objects in the namespaces. Returns the number of boxes.
pub(crate) async fn remove_boxes(
    cluster: &ExistingKubernetes,
    deployment: &str,
) -> Result<usize, KubernetesError> {
    let client = Api::connect(&cluster.kubeconfig).await?.into_client();
    let ours = ListParams::default().labels(&format!("{DEPLOYMENT}={deployment}"));
    let delete = DeleteParams::default();
    let failed = |source| ApiError::Call {
        what: "removing boxes".to_owned(),
        source: Box::new(source),
    };
    let services: Objects<Service> = Objects::namespaced(client.clone(), SYSTEM_NAMESPACE);
    for service in services.list(&ours).await.map_err(failed)? {
        let name = service.metadata.name.unwrap_or_default();
        services.delete(&name, &delete).await.map_err(failed)?;
    }
    let namespaces: Objects<Namespace> = Objects::all(client);
    let boxes = namespaces.list(&ours).await.map_err(failed)?.items;
    for namespace in &boxes {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        namespaces.delete(name, &delete).await.map_err(failed)?;
    }
    Ok(boxes.len())
}
