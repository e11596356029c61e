//! A client of one containerd, over CRI v1. Each call has a deadline, and its error is a
//! [`CriError`].
//!
//! Never decides anything. Retries only the removal of a busy sandbox; callers retry the rest.

mod error;
mod images;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerConfig, ContainerFilter, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStatusRequest, PodSandboxStatusResponse,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest, VersionResponse,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

pub use error::CriError;
use error::ignore_not_found;

/// The pause before a busy sandbox is removed again.
const BUSY_POLL: Duration = Duration::from_millis(10);
/// The size limit of an answer, in bytes. A list of a few thousand boxes is some MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A client span for one call. Without a current trace, as in the periodic checks, there is none.
fn call_span(operation: &'static str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let service = match operation {
        "ImageStatus" | "ImageFsInfo" | "ListImages" | "PullImage" | "RemoveImage" => {
            "runtime.v1.ImageService"
        }
        _ => "runtime.v1.RuntimeService",
    };
    tracing::info_span!(
        "cri",
        otel.name = format!("{service}/{operation}"),
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = operation,
        rpc.grpc.status_code = Empty,
        peer.service = "containerd",
    )
}

/// Runs a call in its span, within its deadline. The answer is boxed, because tonic's futures are
/// large and many callers' futures contain them.
fn call<T>(
    operation: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>> + Send,
) -> impl Future<Output = Result<T, CriError>> + Send {
    let answer = Box::pin(answer);
    async move {
        let span = call_span(operation);
        let outcome = tokio::time::timeout(after, answer)
            .instrument(span.clone())
            .await;
        let outcome = match outcome {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                span.record("rpc.grpc.status_code", i32::from(status.code()));
                Err(CriError::from_status(operation, &status))
            }
            Err(_) => Err(CriError::Deadline { operation, after }),
        };
        // A missing object is not an error of the call.
        if outcome.as_ref().is_err_and(|error| !error.is_not_found()) {
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }
}

/// The client of one containerd. It connects at the first call, and again when the connection broke.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
    deadline: Duration,
}

impl Cri {
    pub fn new(socket: &Path, deadline: Duration) -> Self {
        let socket = socket.to_owned();
        // HTTP/2 needs an authority; the socket does not use it.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            channel,
            deadline,
        }
    }

    /// For containerd's own services on the same socket.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub async fn version(&self) -> Result<VersionResponse, CriError> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        call(
            "Version",
            self.deadline,
            self.runtime.clone().version(request),
        )
        .await
    }

    /// containerd's configuration in JSON, from its verbose status.
    pub async fn configuration(&self) -> Result<String, CriError> {
        let request = StatusRequest { verbose: true };
        let mut answer = call(
            "Status",
            self.deadline,
            self.runtime.clone().status(request),
        )
        .await?;
        Ok(answer.info.remove("config").unwrap_or_default())
    }

    /// Whether a runtime handler supports user namespaces, by containerd's status; `handler` is empty
    /// for the default one. containerd 1.6 supports none and reports nothing.
    pub async fn supports_user_namespaces(&self, handler: &str) -> Result<bool, CriError> {
        let request = StatusRequest { verbose: false };
        let answer = call(
            "Status",
            self.deadline,
            self.runtime.clone().status(request),
        )
        .await?;
        let known = answer.runtime_handlers.iter();
        Ok(known
            .filter(|known| known.name == handler)
            .filter_map(|known| known.features)
            .any(|features| features.user_namespaces))
    }

    pub async fn sandboxes(
        &self,
        labels: std::collections::HashMap<String, String>,
    ) -> Result<Vec<PodSandbox>, CriError> {
        let filter = PodSandboxFilter {
            label_selector: labels,
            ..Default::default()
        };
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let mut client = self.runtime.clone();
        Ok(call(
            "ListPodSandbox",
            self.deadline,
            client.list_pod_sandbox(request),
        )
        .await?
        .items)
    }

    pub async fn containers(
        &self,
        labels: std::collections::HashMap<String, String>,
    ) -> Result<Vec<Container>, CriError> {
        let filter = ContainerFilter {
            label_selector: labels,
            ..Default::default()
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let mut client = self.runtime.clone();
        Ok(call(
            "ListContainers",
            self.deadline,
            client.list_containers(request),
        )
        .await?
        .containers)
    }

    pub async fn run_sandbox(
        &self,
        config: PodSandboxConfig,
        runtime_handler: String,
        deadline: Duration,
    ) -> Result<String, CriError> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler,
        };
        let mut client = self.runtime.clone();
        Ok(
            call("RunPodSandbox", deadline, client.run_pod_sandbox(request))
                .await?
                .pod_sandbox_id,
        )
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse, CriError> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        call(
            "PodSandboxStatus",
            self.deadline,
            self.runtime.clone().pod_sandbox_status(request),
        )
        .await
    }

    /// Kills the sandbox's processes, releases its network, and removes it. Waits for an interrupted
    /// call that is still changing it.
    pub async fn remove_sandbox(&self, id: &str, within: Duration) -> Result<(), CriError> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            match self.try_remove_sandbox(id, within).await {
                Err(error) if error.is_busy() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_POLL).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_remove_sandbox(&self, id: &str, deadline: Duration) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        ignore_not_found(
            call("StopPodSandbox", deadline, client.stop_pod_sandbox(stop))
                .await
                .map(|_| ()),
        )?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        ignore_not_found(
            call(
                "RemovePodSandbox",
                deadline,
                client.remove_pod_sandbox(remove),
            )
            .await
            .map(|_| ()),
        )
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let mut client = self.runtime.clone();
        let answer = call(
            "CreateContainer",
            self.deadline,
            client.create_container(request),
        )
        .await?;
        Ok(answer.container_id)
    }

    pub async fn start_container(&self, id: &str, deadline: Duration) -> Result<(), CriError> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.runtime.clone();
        call("StartContainer", deadline, client.start_container(request))
            .await
            .map(|_| ())
    }

    /// SIGTERM, then SIGKILL after `grace`; zero: SIGKILL at once.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let mut client = self.runtime.clone();
        let deadline = self.deadline + Duration::from_secs(seconds);
        ignore_not_found(
            call("StopContainer", deadline, client.stop_container(request))
                .await
                .map(|_| ()),
        )
    }

    pub async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>, CriError> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let mut client = self.runtime.clone();
        match call(
            "ContainerStatus",
            self.deadline,
            client.container_status(request),
        )
        .await
        {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
