//! Start-up and shutdown of the box.
//!
//! Start-up: boxd listens, then starts the main command, so that the server and the log
//! exist before the command's first line. Shutdown begins when the main command has ended,
//! or when an idle box gets a signal. Then callers' commands are killed, readers get the remaining
//! output within a deadline, and boxd exits with the main command's code. In a PID
//! namespace the kernel kills the processes that are left.

use std::ffi::OsString;
use std::fs::{Permissions, set_permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::client::{
    CONNECTION_WINDOW_BYTES, KEEP_ALIVE, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES,
    STREAMS_PER_CONNECTION,
};
use agentbox_box_protocol::output::WriteError;
use agentbox_box_protocol::proto::boxd_server::BoxdServer;
use agentbox_box_protocol::termination::Termination;
use agentbox_box_protocol::tls;
use agentbox_box_protocol::token::CheckToken;
use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::background_output::BackgroundOutput;
use crate::connections::{self, Connection};
use crate::environment::Environment;
use crate::executions::Executions;
use crate::files::Files;
use crate::identity;
use crate::logs::Log;
use crate::main_command::{MainCommand, Phase};
use crate::null_device::NullDevice;
use crate::ports::Ports;
use crate::process::{Slots, Starter};
use crate::reaper::Reaper;
use crate::run::{Registry, Runs};
use crate::service::Service;
use crate::settings::{Settings, SettingsError};
use crate::signals::{ForwardedSignals, stops_idle_box};
use crate::usage::UsageSampler;
use crate::{stderr, termination_file};

/// The deadline for killing commands and sending their remaining output.
const RUNS_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The deadline for the server to send its last bytes.
const SERVER_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("installing the signal handlers failed")]
    Signals(#[source] io::Error),
    #[error("preparing to start and reap commands failed")]
    Reaper(#[source] io::Error),
    #[error("opening /dev/null failed")]
    NullDevice(#[source] io::Error),
    #[error("the settings are invalid")]
    Settings(#[from] SettingsError),
    #[error("preparing TLS failed")]
    Tls(#[source] tokio_rustls::rustls::Error),
    #[error("creating the log failed")]
    Log(#[from] WriteError),
    #[error("listening on {address} failed")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the gRPC server ended unexpectedly")]
    Server,
}

/// Runs the box until it ends; returns its exit code.
///
/// # Errors
/// [`InitError`] when the box cannot start or its server fails.
pub async fn run(settings: Settings, command: Vec<OsString>) -> Result<u8, InitError> {
    if settings.renew_identity {
        // Nothing else runs in the box yet.
        identity::renew(Path::new("/"));
    }
    let mut signals = ForwardedSignals::listen().map_err(InitError::Signals)?;
    let (reaper, child_signals) = Reaper::new().map_err(InitError::Reaper)?;
    let null_device = Arc::new(NullDevice::open().map_err(InitError::NullDevice)?);
    let closing = CancellationToken::new();
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let background = TaskTracker::new();
    background.spawn(Arc::clone(&reaper).run(child_signals, stop.clone()));

    if let Some(directory) = &settings.output_dir {
        close_to_others(directory, 0o700);
    }
    if let Some(path) = &settings.termination_file
        && let Err(error) = Termination::reserve(path)
    {
        // The end may still be written later.
        stderr::line(&format!("boxd: {error}"));
    }
    if let Some(path) = &settings.termination_file {
        close_to_others(path, 0o600);
        match termination_file::open(path) {
            Ok(file) => {
                let reaper = Arc::clone(&reaper);
                drop(background.spawn(termination_file::bound(file, reaper, stop.clone())));
            }
            Err(error) => stderr::line(&format!("boxd: opening the termination file: {error}")),
        }
    }
    let slots = Slots::new(settings.max_running);
    let registry = Arc::new(Registry::new(slots.clone()));
    let environment = Arc::new(Environment::inherited());
    let log = Arc::new(Log::open(&settings)?);
    let sampler = Arc::new(UsageSampler::default());
    background.spawn(Arc::clone(&sampler).run(stop.clone()));
    background.spawn(Arc::clone(&registry).remove_expired(stop.clone()));
    let phase = match (command.is_empty(), settings.warm) {
        (false, _) => Phase::Starting,
        (true, true) => Phase::Unconfigured,
        (true, false) => Phase::Idle,
    };
    let main = Arc::new(MainCommand::new(
        Arc::clone(&reaper),
        Arc::clone(&environment),
        Arc::clone(&null_device),
        Arc::clone(&log),
        tasks.clone(),
        settings.termination_file.clone(),
        phase,
    ));
    let files = Files::new(Arc::clone(&reaper), tasks.clone(), closing.clone());
    let starter = Arc::new(Starter {
        reaper,
        environment: Arc::clone(&environment),
        null_device,
        background_output: Arc::new(BackgroundOutput::new(tasks.clone(), closing.clone())),
        slots,
        tasks: tasks.clone(),
        closing: closing.clone(),
    });
    let runs = Arc::new(Runs {
        starter: Arc::clone(&starter),
        registry: Arc::clone(&registry),
        ring_bytes: settings.ring_bytes,
    });
    let executions = Arc::new(Executions::new(
        Arc::clone(&starter),
        Arc::clone(&log),
        &settings,
    ));
    let token = settings.token()?;
    let service = Service {
        starter,
        runs,
        executions: Arc::clone(&executions),
        main: Arc::clone(&main),
        files,
        environment,
        log: Arc::clone(&log),
        sampler,
        ports: Ports::new(settings.listen, tasks.clone(), closing.clone()),
        token: token.clone(),
        configuring: Mutex::new(()),
    };
    let tls = tls::acceptor(&token).map_err(InitError::Tls)?;
    let incoming = connections::incoming(listen(settings.listen).await?, tls);
    let serving = serve(incoming, service, CheckToken::new(token), stop.clone());
    let mut server = background.spawn(serving);
    if phase == Phase::Starting {
        main.start(command).await;
    }

    let code = loop {
        tokio::select! {
            code = main.ended() => break code,
            _ = &mut server => return Err(InitError::Server),
            signal = signals.next() => {
                if !main.signal(signal) && stops_idle_box(signal) {
                    main.end_idle().await;
                    break 0;
                }
            }
        }
    };

    registry.close();
    executions.close();
    closing.cancel();
    log.end();
    tasks.close();
    // Runs that do not end in time end with this process.
    let _ = timeout(RUNS_SHUTDOWN_TIMEOUT, tasks.wait()).await;
    if let Some(directory) = &settings.output_dir {
        executions.save_output(directory);
    }
    stop.cancel();
    if timeout(SERVER_SHUTDOWN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    background.close();
    background.wait().await;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Closes boxd's own files to the box's other users. Only the owner may do so: a boxd that is not
/// root leaves the driver's mode, and all processes of its box have its user.
fn close_to_others(path: &Path, mode: u32) {
    match set_permissions(path, Permissions::from_mode(mode)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            stderr::line(&format!("boxd: closing {}: {error}", path.display()));
        }
        _ => {}
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, InitError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| InitError::Listen { address, source })
}

async fn serve(
    incoming: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    service: Service,
    token: CheckToken,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = BoxdServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(InterceptedService::new(service, token))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
