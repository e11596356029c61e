//! The duration of a box's creation, compared with the duration of the same CRI calls alone.

use std::time::{Duration, Instant};

use agentbox_runtime::Runtime;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, PodSandboxConfig,
    PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopPodSandboxRequest,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::machine::{config, subject};

const RUNS: usize = 9;

async fn cri() -> RuntimeServiceClient<Channel> {
    let socket = config().await.socket;
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            tokio::net::UnixStream::connect(socket)
                .await
                .map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://containerd");
    RuntimeServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

/// Measures RunPodSandbox, CreateContainer and StartContainer alone.
async fn raw(mut cri: RuntimeServiceClient<Channel>, run: usize) -> Duration {
    let metadata = PodSandboxMetadata {
        name: format!("raw-{run}"),
        uid: format!("raw-{run}"),
        namespace: "raw".to_owned(),
        attempt: 0,
    };
    let sandbox = PodSandboxConfig {
        metadata: Some(metadata),
        ..Default::default()
    };
    let start = Instant::now();
    let request = RunPodSandboxRequest {
        config: Some(sandbox.clone()),
        ..Default::default()
    };
    let id = cri
        .run_pod_sandbox(request)
        .await
        .unwrap()
        .into_inner()
        .pod_sandbox_id;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "main".to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: "busybox".to_owned(),
            ..Default::default()
        }),
        command: ["sleep", "600"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(container),
        sandbox_config: Some(sandbox),
    };
    let container_id = cri
        .create_container(request)
        .await
        .unwrap()
        .into_inner()
        .container_id;
    cri.start_container(StartContainerRequest { container_id })
        .await
        .unwrap();
    let took = start.elapsed();
    cri.stop_pod_sandbox(StopPodSandboxRequest {
        pod_sandbox_id: id.clone(),
    })
    .await
    .unwrap();
    cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id })
        .await
        .unwrap();
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_box_start_takes_less_than_twice_containerds_time() {
    let s = subject().await;
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    let cri = cri().await;
    for run in 0..RUNS {
        raws.push(raw(cri.clone(), run).await);
        let spec = s.spec();
        let start = Instant::now();
        s.run(&spec).await.unwrap();
        ours.push(start.elapsed());
        s.first.remove(&spec.id).await.unwrap();
    }
    ours.sort();
    raws.sort();
    println!("ensure until boxd answers: {ours:?}");
    println!("containerd alone:          {raws:?}");
    // The design's goal is 1.3. Other tests share the machine, so this compares the medians of
    // alternating runs, with a margin.
    assert!(
        ours[RUNS / 2] < raws[RUNS / 2] * 2,
        "{ours:?} beside {raws:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_boxes_all_run_and_are_all_removed() {
    let s = subject().await;
    let specs: Vec<_> = (0..12).map(|_| s.spec()).collect();
    let start = Instant::now();
    let outcome = futures::future::try_join_all(specs.iter().map(|spec| s.run(spec))).await;
    println!("{} boxes at once: {:?}", specs.len(), start.elapsed());
    let removed =
        futures::future::try_join_all(specs.iter().map(|spec| s.first.remove(&spec.id))).await;
    let mut addresses = outcome.unwrap();
    removed.unwrap();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), specs.len());
}
