//! The same containerd over CRI, with the requests of a kubelet for a Pod with limits.
//!
//! A raw box is RunPodSandbox, CreateContainer and StartContainer with the same image, network,
//! namespaces and limits and the runtime's seccomp profile, but without a firewall, a disk of its own and
//! boxd. It has a user namespace too, if this containerd gives it one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, IdMapping,
    ImageSpec, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest,
    SecurityProfile, StartContainerRequest, StopPodSandboxRequest, UserNamespace,
    security_profile::ProfileType,
};
use tonic::transport::{Channel, Endpoint};

use super::{CONTAINER, DEADLINE, IMAGE, Names, Raw, RawBox};

/// The memory of a box in [`crate::environment::small`].
const MEMORY_BYTES: i64 = 64 << 20;
const CPU_PERIOD_US: i64 = 100_000;
/// The machine's first id of the user namespaces: below those of AgentBox's boxes.
const FIRST_ID: u32 = 0x6FFF_0000;
const IDS: u32 = 65_536;

fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}

/// Connects to a containerd.
///
/// # Errors
/// When it does not answer.
pub async fn channel(socket: &Path) -> anyhow::Result<Channel> {
    Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .connect_timeout(DEADLINE)
        .timeout(DEADLINE)
        .connect()
        .await
        .with_context(|| format!("connecting to {}", socket.display()))
}

/// The namespaces of a box.
fn namespaces(has_users: bool) -> NamespaceOption {
    let mapping = IdMapping {
        host_id: FIRST_ID,
        container_id: 0,
        length: IDS,
    };
    let users = || UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping],
        gids: vec![mapping],
    };
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        userns_options: has_users.then(users),
        ..Default::default()
    }
}

pub struct Containerd {
    cri: RuntimeServiceClient<Channel>,
    run: u32,
    /// Whether boxes have user namespaces.
    has_users: bool,
}

impl Containerd {
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let mut raw = Self {
            cri: RuntimeServiceClient::new(channel(socket).await?),
            run: std::process::id(),
            has_users: true,
        };
        if let Err(error) = raw.check_users().await {
            println!("the runtime alone is measured without user namespaces: {error:#}");
            raw.has_users = false;
        }
        Ok(raw)
    }

    /// Checks that a box has the ids of its user namespace: an older containerd ignores them.
    async fn check_users(&self) -> anyhow::Result<()> {
        let (raw_box, _) = self.create("bench-users", 1).await?;
        let map = self.output(&raw_box, &["cat", "/proc/self/uid_map"]).await;
        self.remove(raw_box).await;
        let map = map?;
        ensure!(
            map.split_whitespace().any(|id| id == FIRST_ID.to_string()),
            "the ids of a container are {}",
            map.trim()
        );
        Ok(())
    }

    /// Runs a command and gives its stdout.
    async fn output(&self, raw: &RawBox, command: &[&str]) -> anyhow::Result<String> {
        let request = ExecSyncRequest {
            container_id: raw.container.clone(),
            cmd: command.iter().map(|&part| part.to_owned()).collect(),
            timeout: 30,
        };
        let reply = self.cri.clone().exec_sync(request).await?.into_inner();
        ensure!(reply.exit_code == 0, "exit code {}", reply.exit_code);
        Ok(String::from_utf8_lossy(&reply.stdout).into_owned())
    }

    async fn start(
        &self,
        sandbox: &str,
        config: PodSandboxConfig,
        cpus: u32,
    ) -> anyhow::Result<String> {
        let mut cri = self.cri.clone();
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: CONTAINER.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
                ..Default::default()
            }),
            command: ["sleep", "900"].map(str::to_owned).to_vec(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_period: CPU_PERIOD_US,
                    cpu_quota: i64::from(cpus) * CPU_PERIOD_US,
                    memory_limit_in_bytes: MEMORY_BYTES,
                    memory_swap_limit_in_bytes: MEMORY_BYTES,
                    ..Default::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(self.has_users)),
                    no_new_privs: true,
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container_id = cri
            .create_container(create)
            .await?
            .into_inner()
            .container_id;
        let start = StartContainerRequest {
            container_id: container_id.clone(),
        };
        cri.start_container(start).await?;
        Ok(container_id)
    }

    async fn remove_sandbox(&self, sandbox: String) {
        let mut cri = self.cri.clone();
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        };
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        };
        let removed = async {
            cri.stop_pod_sandbox(stop).await?;
            cri.remove_pod_sandbox(remove).await
        };
        if let Err(status) = removed.await {
            println!("sandbox {sandbox} was not removed: {}", status.message());
        }
    }
}

#[async_trait]
impl Raw for Containerd {
    fn names(&self) -> Names {
        Names {
            create: match self.has_users {
                true => "raw sandbox and container, with user namespace",
                false => "raw sandbox and container",
            },
            exec: "raw ExecSync",
        }
    }

    async fn create(&self, name: &str, cpus: u32) -> anyhow::Result<(RawBox, Duration)> {
        let mut cri = self.cri.clone();
        let name = format!("{name}-{}", self.run);
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name,
                namespace: "bench-raw".to_owned(),
                attempt: 0,
            }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(self.has_users)),
                    readonly_rootfs: true,
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let started = Instant::now();
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let sandbox = cri.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        match self.start(&sandbox, config, cpus).await {
            Ok(container) => {
                let took = started.elapsed();
                let pod = sandbox;
                Ok((RawBox { pod, container }, took))
            }
            Err(error) => {
                self.remove_sandbox(sandbox).await;
                Err(error)
            }
        }
    }

    async fn exec(&self, raw: &RawBox) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.output(raw, &["true"]).await?;
        Ok(started.elapsed())
    }

    async fn remove(&self, raw: RawBox) {
        self.remove_sandbox(raw.pod).await;
    }
}
