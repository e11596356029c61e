//! Starts a Kubernetes, in the order that keeps its boxes in.

use std::net::SocketAddr;
use std::time::Duration;

use super::SuperviseError;
use super::cluster::Layers;
use super::layer::ready;
use super::probe::answers;
use crate::containerd::Paths;
use crate::containerd::cri::Cri;
use crate::image::Images;
use crate::kubernetes::api::Api;
use crate::kubernetes::{
    FELIX_PORT, Kubernetes, KubernetesError, NODE_CONTAINERD, build, measure, node, registry,
};
use crate::plan::{Layout, Plan, cache_directory};

const PROXY_PORT: u16 = 10_256;
/// A machine that is busy with something else needs its time.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) async fn start(
    layout: &Layout,
    plan: &Plan,
    layers: &mut Layers,
    paths: Paths,
    images: &Images,
) -> Result<Kubernetes, SuperviseError> {
    let Layers {
        kubelet,
        containerd: machine,
        control,
    } = layers;
    let board = machine.board().clone();
    let cache = cache_directory();
    let programs = build::provide(&cache, |step| board.say(&step))
        .await
        .map_err(KubernetesError::from)?;
    let registry = layout.registry();
    let cluster = Kubernetes::prepare(paths, &plan.boxd, images, &registry, programs).await?;

    machine.keep(node::keeper(&cluster.paths, layout.log("node")), None);
    let keeper_of = || {
        board.read(|state| {
            let process = state.processes.get("node")?;
            process.identity.map(|identity| identity.pid)
        })
    };
    machine
        .until_ready("node", Duration::from_secs(20), || async {
            let is_ready = keeper_of().is_some_and(node::is_ready);
            ready(is_ready, "its namespaces are not set up yet")
        })
        .await?;
    let keeper = keeper_of().ok_or(KubernetesError::NoNode)?;
    node::connect(keeper, &cluster.bridge(), &cluster.addresses)
        .await
        .map_err(KubernetesError::from)?;

    let launches = cluster.launches(layout, keeper);
    control.keep(launches.etcd(), None);
    control.keep(launches.api_server(), None);
    machine.keep(launches.containerd(), None);
    control.keep(launches.registry(), None);
    let kubeconfig = &cluster.endpoint.kubeconfig;
    control
        .until_ready("kube-apiserver", PATIENCE, || async {
            let api = Api::connect(kubeconfig).await;
            let answer = match api {
                Ok(api) => api.is_ready().await,
                Err(error) => Err(error),
            };
            answer.map_err(|error| error.to_string())
        })
        .await?;
    board.say("the API server is ready");
    let api = Api::connect(kubeconfig)
        .await
        .map_err(KubernetesError::from)?;
    control.keep(launches.controllers(), None);
    control.keep(launches.scheduler(), None);
    api.announce_node(&cluster.addresses)
        .await
        .map_err(KubernetesError::from)?;
    control.keep(launches.proxy(), None);
    control.keep(launches.metrics_server(), None);
    let kinds = cluster.programs.calico_kinds();
    api.set_up_calico(&kinds, &cluster.addresses)
        .await
        .map_err(KubernetesError::from)?;
    api.set_up_namespace()
        .await
        .map_err(KubernetesError::from)?;
    let login = registry::secret(&cluster.paths.run()).map_err(KubernetesError::from)?;
    api.set_up([login]).await.map_err(KubernetesError::from)?;
    api.set_up_runtime_classes()
        .await
        .map_err(KubernetesError::from)?;
    let http = reqwest::Client::new();
    let at = |port: u16, path: &str| format!("http://{}:{port}/{path}", cluster.addresses.node);
    control
        .until_ready("kube-proxy", PATIENCE, || {
            // `healthz` also wants the node, which comes last.
            answers(&http, at(PROXY_PORT, "livez"))
        })
        .await?;
    control.keep(launches.felix(), None);
    control
        .until_ready("calico-felix", PATIENCE, || {
            answers(&http, at(FELIX_PORT, "readiness"))
        })
        .await?;
    board.say("the network's policies are in force");

    let socket = cluster.paths.socket();
    machine
        .until_ready(NODE_CONTAINERD, PATIENCE, || async {
            match Cri::connect(&socket).await {
                Ok(cri) => cri.ready().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    // The Pods of a run that was killed are still in its database.
    Cri::connect(&socket).await?.remove_all().await?;
    let archives = images.archives.iter().chain([&cluster.boxd]);
    crate::containerd::import(&launches.ctr(), &cluster.paths, archives).await?;
    kubelet.keep(launches.kubelet(), None);
    kubelet
        .until_ready("kubelet", PATIENCE, || async {
            api.node_is_ready().await.map_err(|error| error.to_string())
        })
        .await?;
    let is_up = |address: SocketAddr| async move {
        let connected = tokio::net::TcpStream::connect(address).await;
        connected.map(drop).map_err(|error| error.to_string())
    };
    // Announced before it listens, it would hold up every removal of a namespace.
    let measures = (cluster.addresses.node, measure::PORT).into();
    control
        .until_ready("metrics-server", PATIENCE, || is_up(measures))
        .await?;
    api.set_up(measure::objects(&cluster.addresses))
        .await
        .map_err(KubernetesError::from)?;
    let registry = registry::address(&cluster.addresses);
    control
        .until_ready("registry", PATIENCE, || is_up(registry))
        .await?;
    board.say("kubernetes is ready");
    Ok(cluster)
}
