//! boxd's gRPC service, the server side of `box.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::call_span::SPAN_METADATA;
use agentbox_box_protocol::claim;
use agentbox_box_protocol::proto::boxd_server::Boxd;
use agentbox_box_protocol::proto::{self, run_input, run_output};
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::executions::{ExecutionInput, ExecutionOutput};
use agentbox_contracts::files::{FileInput, FileOutput, file_input};
use agentbox_contracts::ports::{PortInput, PortList, PortOutput, port_input};
use futures::{Stream, stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::environment::Environment;
use crate::executions::Executions;
use crate::files::Files;
use crate::logs::Log;
use crate::main_command::{MainCommand, Phase};
use crate::ports::Ports;
use crate::process::{Starter, arguments, variables};
use crate::run::{Reader, RegistryError, Run, RunId, RunSpec, Runs, Started, apply_inputs};
use crate::status::with_code;
use crate::trace::Trace;
use crate::usage::UsageSampler;
use crate::user::User;

/// The deadline for the first input of a `Run` or `Files` call.
const FIRST_INPUT_DEADLINE: Duration = Duration::from_secs(10);

type Outputs<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves the calls of all connections.
pub struct Service {
    pub starter: Arc<Starter>,
    pub runs: Arc<Runs>,
    pub executions: Arc<Executions>,
    pub main: Arc<MainCommand>,
    pub files: Files,
    pub environment: Arc<Environment>,
    pub log: Arc<Log>,
    pub sampler: Arc<UsageSampler>,
    pub ports: Ports,
    pub token: BoxToken,
    /// Held while a warm box is configured.
    pub configuring: Mutex<()>,
}

#[tonic::async_trait]
impl Boxd for Service {
    type RunStream = Outputs<proto::RunOutput>;
    type LogsStream = Outputs<proto::LogsReply>;
    type ExecutionsStream = Outputs<ExecutionOutput>;
    type FilesStream = Outputs<FileOutput>;
    type ConnectStream = Outputs<PortOutput>;

    async fn run(
        &self,
        request: Request<Streaming<proto::RunInput>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let trace = Trace::from_metadata(request.metadata());
        let mut inputs = request.into_inner();
        let first = timeout(FIRST_INPUT_DEADLINE, inputs.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first input did not arrive in time"))??;
        let (run, from) = match first.and_then(|message| message.input) {
            Some(run_input::Input::Start(start)) => match self.start(start, trace).await? {
                Started::Running(run) => (run, None),
                Started::Failed(error) => {
                    if let Some(code) = error.code {
                        return Err(with_code(Code::InvalidArgument, code, &error.message));
                    }
                    let exited = proto::Exited {
                        exit_code: error.exit_code,
                        start_error: error.message,
                        spans: trace.map_or_else(Vec::new, |trace| trace.failed_start_spans()),
                        ..Default::default()
                    };
                    let exited = Some(run_output::Output::Exited(exited));
                    let only = proto::RunOutput {
                        sequence: 0,
                        output: exited,
                    };
                    return Ok(Response::new(Box::pin(stream::iter([Ok(only)]))));
                }
            },
            Some(run_input::Input::Resume(resume)) => {
                let run = self.find(resume.run_id).await?;
                (run, Some(resume.from_sequence))
            }
            _ => {
                return Err(Status::invalid_argument(
                    "the first input must be start or resume",
                ));
            }
        };
        let reader = Reader::attach(Arc::clone(&run), from)?;
        self.starter
            .tasks
            .spawn(apply_inputs(run, inputs, reader.detached()));
        Ok(Response::new(Box::pin(reader.into_stream())))
    }

    async fn control(
        &self,
        request: Request<proto::ControlRequest>,
    ) -> Result<Response<proto::ControlReply>, Status> {
        let request = request.into_inner();
        self.find(request.run_id).await?.control(request.control)?;
        Ok(Response::new(proto::ControlReply {}))
    }

    async fn executions(
        &self,
        request: Request<Streaming<ExecutionInput>>,
    ) -> Result<Response<Self::ExecutionsStream>, Status> {
        let trace = Trace::from_metadata(request.metadata());
        self.check_configured()?;
        let outputs = self.executions.serve(request.into_inner()).await?;
        Ok(accepted(trace, outputs))
    }

    async fn logs(
        &self,
        request: Request<proto::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Ok(Response::new(Box::pin(self.log.stream(request.get_ref())?)))
    }

    async fn files(
        &self,
        request: Request<Streaming<FileInput>>,
    ) -> Result<Response<Self::FilesStream>, Status> {
        let trace = Trace::from_metadata(request.metadata());
        let mut inputs = request.into_inner();
        let first = timeout(FIRST_INPUT_DEADLINE, inputs.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first input did not arrive in time"))??;
        let Some(file_input::Input::Request(request)) = first.and_then(|message| message.input)
        else {
            return Err(Status::invalid_argument(
                "the first input must be the request",
            ));
        };
        let outputs = self.files.perform(request, inputs).await?;
        Ok(accepted(trace, Box::pin(outputs)))
    }

    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureReply>, Status> {
        let request = request.into_inner();
        let claim = claim::identify(&self.token, &request);
        let _configuring = self.configuring.lock().await;
        match self.main.claim() {
            Some(held) if held == claim => return Ok(Response::new(proto::ConfigureReply {})),
            Some(_) => {
                return Err(Status::failed_precondition(
                    "the box was configured with another request",
                ));
            }
            None if self.main.phase() != Phase::Unconfigured => {
                return Err(Status::failed_precondition("the box is not warm"));
            }
            None => {}
        }
        let argv = arguments(request.command).map_err(|error| error.status())?;
        let added = variables(request.env).map_err(|error| error.status())?;
        let user = match request.run_as_user {
            Some(uid) => User::with_uid(uid)
                .map_err(|error| Status::failed_precondition(error.to_string()))?,
            None => None,
        };
        if let Some(user) = user {
            self.environment
                .replace_home(&User::own_home(), &user.home());
            user.give_to_box();
        }
        self.environment.extend(added);
        self.starter.slots.restart_idle();
        self.sampler.restart();
        // Now, because the same request again is answered without waiting for the task.
        self.main.begin(claim);
        // In a task of its own: a caller that disconnects must not leave it half done.
        let main = Arc::clone(&self.main);
        let started = self
            .starter
            .tasks
            .spawn(async move { main.start(argv).await });
        started
            .await
            .map_err(|_| Status::internal("the main command was not started"))?;
        Ok(Response::new(proto::ConfigureReply {}))
    }

    async fn usage(
        &self,
        _: Request<proto::UsageRequest>,
    ) -> Result<Response<proto::UsageReply>, Status> {
        Ok(Response::new(self.sampler.read()))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        let (main, exit_code) = match self.main.phase() {
            Phase::Idle => ("idle", 0),
            Phase::Unconfigured => ("unconfigured", 0),
            Phase::Starting | Phase::Running(_) => ("running", 0),
            Phase::Exited(code) => ("exited", code),
        };
        let slots = &self.starter.slots;
        let runs = u32::try_from(slots.in_use()).unwrap_or(u32::MAX);
        let idle_ms = slots.idle().map_or(0, |idle| {
            u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1)
        });
        Ok(Response::new(proto::StatusReply {
            main: main.to_owned(),
            exit_code,
            runs,
            idle_ms,
        }))
    }

    async fn connect(
        &self,
        request: Request<Streaming<PortInput>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let trace = Trace::from_metadata(request.metadata());
        let mut inputs = request.into_inner();
        let first = timeout(FIRST_INPUT_DEADLINE, inputs.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first input did not arrive in time"))??;
        let Some(port_input::Input::Connect(wanted)) = first.and_then(|first| first.input) else {
            return Err(Status::invalid_argument("the first input must be connect"));
        };
        let connection = self.ports.connect(wanted.port, inputs).await?;
        Ok(accepted(trace, Box::pin(connection.into_stream())))
    }

    async fn ports(&self, _: Request<proto::PortsRequest>) -> Result<Response<PortList>, Status> {
        Ok(Response::new(self.ports.list().await?))
    }

    async fn end(
        &self,
        _: Request<proto::EndRequest>,
    ) -> Result<Response<proto::EndReply>, Status> {
        // Takes the same path as the runtime's own signal.
        kill(Pid::this(), Signal::SIGTERM)
            .map_err(|errno| Status::internal(format!("sending the signal failed: {errno}")))?;
        Ok(Response::new(proto::EndReply {}))
    }
}

/// The response of an accepted call, with its span if the call is recorded.
fn accepted<T>(trace: Option<Trace>, outputs: T) -> Response<T> {
    let mut response = Response::new(outputs);
    if let Some(trace) = trace
        && let Ok(span) = MetadataValue::<Ascii>::try_from(trace.accepted().to_string())
    {
        response.metadata_mut().insert(SPAN_METADATA, span);
    }
    response
}

impl Service {
    /// A warm box starts no commands before it is configured.
    fn check_configured(&self) -> Result<(), Status> {
        if self.main.phase() == Phase::Unconfigured {
            return Err(Status::failed_precondition("the box is not configured yet"));
        }
        Ok(())
    }

    /// Starts a run in a task of its own: when the caller disconnects meanwhile, the run is
    /// registered and later killed as an orphan.
    async fn start(
        &self,
        start: proto::StartCommand,
        trace: Option<Trace>,
    ) -> Result<Started, Status> {
        self.check_configured()?;
        let spec = RunSpec {
            trace,
            ..RunSpec::try_from(start).map_err(|error| error.status())?
        };
        let runs = Arc::clone(&self.runs);
        let started = self
            .starter
            .tasks
            .spawn(async move { runs.start(spec).await });
        started
            .await
            .map_err(|_| Status::internal("the command was not started"))?
            .map_err(registry_status)
    }

    async fn find(&self, id: String) -> Result<Arc<Run>, Status> {
        let id =
            RunId::try_from(id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.runs.registry.find(&id).await.map_err(registry_status)
    }
}

fn registry_status(error: RegistryError) -> Status {
    let message = error.to_string();
    match error {
        RegistryError::Exists(_) => Status::already_exists(message),
        RegistryError::Full(_) => Status::resource_exhausted(message),
        RegistryError::Unknown(_) => Status::not_found(message),
        RegistryError::Closed => Status::unavailable(message),
    }
}
