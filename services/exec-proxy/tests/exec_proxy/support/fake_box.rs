//! A box whose boxd is the test: it speaks boxd's protocol, and answers as its [`Behaviour`] does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agentbox_box_protocol::client::{MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES};
use agentbox_box_protocol::proto::boxd_server::{Boxd, BoxdServer};
use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::{proto, tls};
use agentbox_contracts::environment::Status as EnvironmentStatus;
use agentbox_contracts::exec::{Open, OpenKind};
use agentbox_contracts::executions::{ExecutionInput, ExecutionOutput};
use agentbox_contracts::files::{FileInput, FileOutput};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::ports::{PortInput, PortList, PortOutput};
use futures::stream::Empty;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::proxy;

/// Where a behaviour sends its outputs. It is closed when the call is cancelled.
pub type Outputs<T> = mpsc::Sender<Result<T, Status>>;

/// What a box does in a call. The calls that a test does not need are not implemented.
#[async_trait::async_trait]
pub trait Behaviour: Send + Sync + 'static {
    async fn run(&self, _inputs: Streaming<proto::RunInput>, outputs: Outputs<proto::RunOutput>) {
        let _ = outputs.send(Err(Status::unimplemented("run"))).await;
    }

    async fn files(&self, _inputs: Streaming<FileInput>, outputs: Outputs<FileOutput>) {
        let _ = outputs.send(Err(Status::unimplemented("files"))).await;
    }

    async fn executions(
        &self,
        _inputs: Streaming<ExecutionInput>,
        outputs: Outputs<ExecutionOutput>,
    ) {
        let _ = outputs.send(Err(Status::unimplemented("executions"))).await;
    }

    async fn connect(&self, _inputs: Streaming<PortInput>, outputs: Outputs<PortOutput>) {
        let _ = outputs.send(Err(Status::unimplemented("connect"))).await;
    }

    fn ports(&self) -> Result<PortList, Status> {
        Err(Status::unimplemented("ports"))
    }
}

pub struct FakeBox {
    pub id: EnvironmentId,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl FakeBox {
    pub async fn start(behaviour: impl Behaviour) -> Self {
        let id = EnvironmentId::random();
        let token = BoxToken::derive(&proxy::secret_bytes(), &id).unwrap();
        let acceptor = tls::acceptor(&token).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connections) = mpsc::channel(1);
        let service = BoxdServer::new(FakeBoxd(Arc::new(behaviour)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(connections));
        let accepting = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                tokio::spawn(async move {
                    let Ok(mut encrypted) = acceptor.accept(stream).await else {
                        return;
                    };
                    let (near, mut far) = tokio::io::duplex(64 * 1024);
                    if accepted.send(Ok::<_, std::io::Error>(near)).await.is_ok() {
                        let _ = tokio::io::copy_bidirectional(&mut encrypted, &mut far).await;
                    }
                });
            }
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                served = serving => served.unwrap(),
                () = accepting => {}
            }
        });
        Self { id, address, task }
    }

    /// The request for a session into this box.
    pub fn open(&self, kind: OpenKind) -> Open {
        self.open_at(self.address, kind)
    }

    /// The request for a session into this box, over a relay.
    pub fn open_at(&self, address: SocketAddr, kind: OpenKind) -> Open {
        Open {
            environment: self.id.clone(),
            owner: None,
            address: Some(address),
            status: EnvironmentStatus::Running,
            kind,
        }
    }
}

impl Drop for FakeBox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct FakeBoxd<B>(Arc<B>);

type Replies<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl<B: Behaviour> Boxd for FakeBoxd<B> {
    type RunStream = Replies<proto::RunOutput>;
    type LogsStream = Empty<Result<proto::LogsReply, Status>>;
    type FilesStream = Replies<FileOutput>;
    type ExecutionsStream = Replies<ExecutionOutput>;
    type ConnectStream = Replies<PortOutput>;

    async fn files(
        &self,
        request: Request<Streaming<FileInput>>,
    ) -> Result<Response<Self::FilesStream>, Status> {
        let (outputs, replies) = mpsc::channel(1);
        let behaviour = Arc::clone(&self.0);
        let inputs = request.into_inner();
        tokio::spawn(async move { behaviour.files(inputs, outputs).await });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn executions(
        &self,
        request: Request<Streaming<ExecutionInput>>,
    ) -> Result<Response<Self::ExecutionsStream>, Status> {
        let (outputs, replies) = mpsc::channel(1);
        let behaviour = Arc::clone(&self.0);
        let inputs = request.into_inner();
        tokio::spawn(async move { behaviour.executions(inputs, outputs).await });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn connect(
        &self,
        request: Request<Streaming<PortInput>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (outputs, replies) = mpsc::channel(1);
        let behaviour = Arc::clone(&self.0);
        let inputs = request.into_inner();
        tokio::spawn(async move { behaviour.connect(inputs, outputs).await });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn ports(&self, _: Request<proto::PortsRequest>) -> Result<Response<PortList>, Status> {
        self.0.ports().map(Response::new)
    }

    async fn run(
        &self,
        request: Request<Streaming<proto::RunInput>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let (outputs, replies) = mpsc::channel(1);
        let behaviour = Arc::clone(&self.0);
        let inputs = request.into_inner();
        tokio::spawn(async move { behaviour.run(inputs, outputs).await });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn control(
        &self,
        _: Request<proto::ControlRequest>,
    ) -> Result<Response<proto::ControlReply>, Status> {
        Err(Status::unimplemented("control"))
    }

    async fn logs(
        &self,
        _: Request<proto::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("logs"))
    }

    async fn configure(
        &self,
        _: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureReply>, Status> {
        Err(Status::unimplemented("configure"))
    }

    async fn usage(
        &self,
        _: Request<proto::UsageRequest>,
    ) -> Result<Response<proto::UsageReply>, Status> {
        Err(Status::unimplemented("usage"))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        Err(Status::unimplemented("status"))
    }

    async fn end(
        &self,
        _: Request<proto::EndRequest>,
    ) -> Result<Response<proto::EndReply>, Status> {
        Err(Status::unimplemented("end"))
    }
}
