//! A box created by CRI requests, without the driver.

use std::path::Path;
use std::time::Duration;

use agentbox_testing::ContainerdEndpoint;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, DnsConfig, ExecSyncRequest,
    ExecSyncResponse, ImageSpec, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata,
    PullImageRequest, RunPodSandboxRequest, StartContainerRequest,
};
use tonic::transport::{Channel, Endpoint};

pub async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix:{}", socket.display()))
        .unwrap()
        .timeout(Duration::from_secs(180))
        .connect()
        .await
        .unwrap()
}

/// The names of the sandboxes of the driver in containerd.
pub async fn sandboxes(containerd: &ContainerdEndpoint) -> Vec<String> {
    let mut client = RuntimeServiceClient::new(connect(&containerd.socket).await);
    let all = client
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap()
        .into_inner();
    all.items
        .into_iter()
        .map(|sandbox| sandbox.metadata.unwrap_or_default().name)
        .collect()
}

pub struct Pod {
    client: RuntimeServiceClient<Channel>,
    container: String,
}

impl Pod {
    pub async fn start(containerd: &ContainerdEndpoint, image: &str) -> Self {
        let mut client = RuntimeServiceClient::new(connect(&containerd.socket).await);
        let sandbox = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "pod".to_owned(),
                uid: format!("{:016x}", rand::random::<u64>()),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: "pod".to_owned(),
            dns_config: Some(DnsConfig {
                servers: containerd
                    .dns_servers
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                ..DnsConfig::default()
            }),
            linux: Some(k8s_cri::v1::LinuxPodSandboxConfig {
                // With the prefix of the instance's name, as the driver does.
                cgroup_parent: format!("/agentbox-{}/pod", containerd.deployment),
                ..k8s_cri::v1::LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let run = RunPodSandboxRequest {
            config: Some(sandbox.clone()),
            runtime_handler: String::new(),
        };
        let pod_sandbox_id = client
            .run_pod_sandbox(run)
            .await
            .unwrap()
            .into_inner()
            .pod_sandbox_id;
        let create = CreateContainerRequest {
            pod_sandbox_id,
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: "main".to_owned(),
                    attempt: 0,
                }),
                image: Some(ImageSpec {
                    image: image.to_owned(),
                    ..ImageSpec::default()
                }),
                command: vec!["sleep".to_owned(), "3600".to_owned()],
                linux: Some(k8s_cri::v1::LinuxContainerConfig::default()),
                ..ContainerConfig::default()
            }),
            sandbox_config: Some(sandbox),
        };
        let container = client
            .create_container(create)
            .await
            .unwrap()
            .into_inner()
            .container_id;
        let start = StartContainerRequest {
            container_id: container.clone(),
        };
        client.start_container(start).await.unwrap();
        Self { client, container }
    }

    pub async fn exec(&self, script: &str) -> ExecSyncResponse {
        let exec = ExecSyncRequest {
            container_id: self.container.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 170,
        };
        self.client
            .clone()
            .exec_sync(exec)
            .await
            .unwrap()
            .into_inner()
    }

    /// The standard output of a script; fails the test unless the script exits with 0.
    pub async fn output(&self, script: &str) -> String {
        let response = self.exec(script).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert_eq!(
            response.exit_code,
            0,
            "{script}: {} {}",
            text(&response.stdout),
            text(&response.stderr)
        );
        text(&response.stdout)
    }
}

/// Pulls an image; gives the message of an error.
pub async fn pull(containerd: &ContainerdEndpoint, image: &str) -> Result<(), String> {
    let mut client = ImageServiceClient::new(connect(&containerd.socket).await);
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        }),
        ..PullImageRequest::default()
    };
    match client.pull_image(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(status.message().to_owned()),
    }
}
