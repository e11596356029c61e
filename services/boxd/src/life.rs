//! The box from its first instruction to its last.
//!
//! Start: listen, then the main command, so that its first line finds a log and its
//! caller a server. End: when the main command has ended, or an idle box is told to. Then
//! runs are killed, readers get what they were promised (bounded), and boxd exits with
//! the main command's code; in a PID namespace the kernel takes whatever is left.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::client::{
    CONNECTION_WINDOW_BYTES, KEEP_ALIVE, MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES,
    STREAMS_PER_CONNECTION,
};
use agentbox_box_protocol::output::WriteError;
use agentbox_box_protocol::proto::boxd_server::BoxdServer;
use agentbox_box_protocol::token::CheckToken;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::environment::Environment;
use crate::logs::Log;
use crate::main_command::{MainCommand, Phase};
use crate::reaper::Reaper;
use crate::run::{Registry, Starter};
use crate::service::Service;
use crate::settings::{Settings, SettingsError};
use crate::signals::{Forwarded, ends_an_idle_box};
use crate::usage::Meter;

/// For runs to be killed and their readers to be told.
const RUNS_END_WITHIN: Duration = Duration::from_secs(2);
/// For the last bytes to leave.
const SERVER_ENDS_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    #[error("signals cannot be handled")]
    Signals(#[source] io::Error),
    #[error("the settings are not valid")]
    Settings(#[from] SettingsError),
    #[error("the log cannot be kept")]
    Log(#[from] WriteError),
    #[error("{address} cannot be listened on")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the server ended by itself")]
    Server,
}

/// Lives the box's life; answers the exit code.
///
/// # Errors
/// [`LifeError`] when there cannot be a box.
pub async fn live(settings: Settings, command: Vec<OsString>) -> Result<u8, LifeError> {
    let mut signals = Forwarded::listen().map_err(LifeError::Signals)?;
    let (reaper, child_signals) = Reaper::new().map_err(LifeError::Signals)?;
    let closing = CancellationToken::new();
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let background = TaskTracker::new();
    background.spawn(Arc::clone(&reaper).work(child_signals, stop.clone()));

    let registry = Arc::new(Registry::default());
    let environment = Arc::new(Environment::inherited());
    let log = Arc::new(Log::open(&settings)?);
    let meter = Arc::new(Meter::default());
    background.spawn(Arc::clone(&meter).work(Arc::clone(&registry), stop.clone()));
    let phase = match (command.is_empty(), settings.warm) {
        (false, _) => Phase::Starting,
        (true, true) => Phase::Unconfigured,
        (true, false) => Phase::Idle,
    };
    let main = Arc::new(MainCommand::new(
        Arc::clone(&reaper),
        Arc::clone(&environment),
        Arc::clone(&log),
        tasks.clone(),
        settings.termination_file.clone(),
        phase,
    ));
    let starter = Arc::new(Starter {
        registry: Arc::clone(&registry),
        reaper,
        environment: Arc::clone(&environment),
        tasks: tasks.clone(),
        closing: closing.clone(),
        ring_bytes: settings.ring_bytes,
    });
    let service = Service {
        starter,
        main: Arc::clone(&main),
        environment,
        log: Arc::clone(&log),
        meter,
        configured: Mutex::new(None),
    };
    let listener = listen(settings.listen).await?;
    let token = CheckToken::new(settings.token()?);
    let mut server = background.spawn(serve(listener, service, token, stop.clone()));
    if phase == Phase::Starting {
        main.start(command).await;
    }

    let code = loop {
        tokio::select! {
            code = main.ended() => break code,
            _ = &mut server => return Err(LifeError::Server),
            signal = signals.next() => {
                if !main.signal(signal) && ends_an_idle_box(signal) {
                    break 0;
                }
            }
        }
    };

    registry.close();
    closing.cancel();
    log.end();
    tasks.close();
    // What does not end in time ends with this process.
    let _ = timeout(RUNS_END_WITHIN, tasks.wait()).await;
    stop.cancel();
    if timeout(SERVER_ENDS_WITHIN, &mut server).await.is_err() {
        server.abort();
    }
    background.close();
    background.wait().await;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, LifeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| LifeError::Listen { address, source })
}

async fn serve(
    listener: TcpListener,
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
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(InterceptedService::new(service, token))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await
}
