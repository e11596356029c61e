//! Starts a Kubernetes, in the order that keeps the network isolation of boxes intact.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::plan::Plan;

use super::SuperviseError;
use super::cluster_processes::ClusterProcesses;
use super::probe::probe;
use super::process_group::{ProcessGroup, ready_or};
use super::state_file::StateFile;
use crate::cluster_paths::ClusterPaths;
use crate::containerd::cri::Cri;
use crate::image::Images;
use crate::kubernetes::api::Api;
use crate::kubernetes::{
    FELIX_PORT, Kubernetes, KubernetesError, NODE_CONTAINERD, ProgramSpecs, build, metrics_server,
    node, registry,
};

const PROXY_PORT: u16 = 10_256;
/// The deadline of each program. A busy machine needs most of it.
const START_DEADLINE: Duration = Duration::from_secs(90);

pub(super) async fn start(
    layout: &Layout,
    plan: &Plan,
    processes: &mut ClusterProcesses,
    paths: ClusterPaths,
    images: &Images,
) -> Result<Kubernetes, SuperviseError> {
    let ClusterProcesses {
        kubelet,
        containerd: node,
        control_plane,
    } = processes;
    let state_file = node.state_file().clone();
    let programs = build::provide(&cache_directory(), |step| state_file.log_step(&step))
        .await
        .map_err(KubernetesError::from)?;
    let registry = layout.registry();
    let cluster = Kubernetes::prepare(paths, &plan.boxd, images, &registry, programs).await?;
    let holder = start_node(layout, node, &cluster).await?;

    let specs = cluster.program_specs(layout, holder);
    control_plane.supervise(specs.etcd(), None);
    control_plane.supervise(specs.api_server(), None);
    node.supervise(specs.containerd(), None);
    control_plane.supervise(specs.registry(), None);
    let api = wait_for_api(control_plane, &cluster).await?;
    state_file.log_step("the API server is ready");
    start_control_plane(control_plane, &specs, &api, &cluster).await?;
    start_network(control_plane, &specs, &cluster).await?;
    state_file.log_step("network policies are in force");

    start_kubelet(node, kubelet, &specs, &api, &cluster, images).await?;
    start_extensions(control_plane, &api, &cluster).await?;
    state_file.log_step("kubernetes is ready");
    Ok(cluster)
}

/// Starts the process that holds the node's namespaces, and connects the node to the bridge.
/// Returns the pid of the process.
async fn start_node(
    layout: &Layout,
    node: &mut ProcessGroup,
    cluster: &Kubernetes,
) -> Result<u32, SuperviseError> {
    let state_file = node.state_file().clone();
    node.supervise(node::holder(&cluster.paths, layout.log("node")), None);
    node.wait_ready("node", Duration::from_secs(20), || async {
        let is_ready = holder_pid(&state_file).is_some_and(node::is_ready);
        ready_or(is_ready, "its namespaces are not set up yet")
    })
    .await?;
    let holder = holder_pid(&state_file).ok_or(KubernetesError::NoNode)?;
    node::connect(holder, &cluster.bridge(), &cluster.addresses)
        .await
        .map_err(KubernetesError::from)?;
    Ok(holder)
}

fn holder_pid(state_file: &StateFile) -> Option<u32> {
    state_file.read(|state| {
        let process = state.processes.get("node")?;
        process.identity.map(|identity| identity.pid)
    })
}

async fn wait_for_api(
    control_plane: &ProcessGroup,
    cluster: &Kubernetes,
) -> Result<Api, SuperviseError> {
    let kubeconfig = &cluster.endpoint.kubeconfig;
    control_plane
        .wait_ready("kube-apiserver", START_DEADLINE, || async {
            match Api::connect(kubeconfig).await {
                Ok(api) => api.is_ready().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    Ok(Api::connect(kubeconfig)
        .await
        .map_err(KubernetesError::from)?)
}

/// Starts the controllers and kube-proxy, and creates the objects that they need.
async fn start_control_plane(
    control_plane: &mut ProcessGroup,
    specs: &ProgramSpecs<'_>,
    api: &Api,
    cluster: &Kubernetes,
) -> Result<(), KubernetesError> {
    control_plane.supervise(specs.controllers(), None);
    control_plane.supervise(specs.scheduler(), None);
    api.create_node(&cluster.addresses).await?;
    control_plane.supervise(specs.proxy(), None);
    control_plane.supervise(specs.metrics_server(), None);
    let crds = cluster.programs.calico_crds();
    api.set_up_calico(&crds, &cluster.addresses).await?;
    api.set_up_namespace().await?;
    api.set_up([registry::secret(&cluster.paths.run())?])
        .await?;
    api.set_up_runtime_classes().await?;
    api.set_up_admission(&cluster.paths.deployment).await?;
    Ok(())
}

/// Waits for kube-proxy, then starts Felix: the order of their rules matters.
async fn start_network(
    control_plane: &mut ProcessGroup,
    specs: &ProgramSpecs<'_>,
    cluster: &Kubernetes,
) -> Result<(), SuperviseError> {
    let http = reqwest::Client::new();
    let url = |port: u16, path: &str| format!("http://{}:{port}/{path}", cluster.addresses.node);
    control_plane
        .wait_ready("kube-proxy", START_DEADLINE, || {
            // Not `healthz`, which also requires the node: the kubelet is started later.
            probe(&http, url(PROXY_PORT, "livez"))
        })
        .await?;
    control_plane.supervise(specs.felix(), None);
    control_plane
        .wait_ready("calico-felix", START_DEADLINE, || {
            probe(&http, url(FELIX_PORT, "readiness"))
        })
        .await?;
    Ok(())
}

/// Imports the images into the node's containerd, then starts the kubelet.
async fn start_kubelet(
    node: &ProcessGroup,
    kubelet: &mut ProcessGroup,
    specs: &ProgramSpecs<'_>,
    api: &Api,
    cluster: &Kubernetes,
    images: &Images,
) -> Result<(), SuperviseError> {
    let socket = cluster.paths.socket();
    node.wait_ready(NODE_CONTAINERD, START_DEADLINE, || async {
        match Cri::connect(&socket).await {
            Ok(cri) => cri.ready().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    // containerd's database still contains the Pods of a supervisor that was killed.
    Cri::connect(&socket).await?.remove_all().await?;
    let archives = images.archives.iter().chain([&cluster.boxd]);
    crate::containerd::import(&specs.ctr(), &cluster.paths, archives).await?;
    kubelet.supervise(specs.kubelet(), None);
    kubelet
        .wait_ready("kubelet", START_DEADLINE, || async {
            api.node_is_ready().await.map_err(|error| error.to_string())
        })
        .await?;
    Ok(())
}

/// Waits for metrics-server and the registry, and registers metrics-server.
async fn start_extensions(
    control_plane: &ProcessGroup,
    api: &Api,
    cluster: &Kubernetes,
) -> Result<(), SuperviseError> {
    let connects = |address: SocketAddr| async move {
        let connected = tokio::net::TcpStream::connect(address).await;
        connected.map(drop).map_err(|error| error.to_string())
    };
    let metrics_server = (cluster.addresses.node, metrics_server::PORT).into();
    control_plane
        .wait_ready("metrics-server", START_DEADLINE, || {
            connects(metrics_server)
        })
        .await?;
    // Only when it listens: an unreachable extension delays the deletion of every namespace.
    api.set_up(metrics_server::objects(&cluster.addresses))
        .await
        .map_err(KubernetesError::from)?;
    let registry = cluster.addresses.registry();
    control_plane
        .wait_ready("registry", START_DEADLINE, || connects(registry))
        .await?;
    Ok(())
}
