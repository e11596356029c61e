//! The start, health reporting and stop of every service.
//!
//! Start: configuration → telemetry → bus → the service's own `run`, which spawns its
//! tasks and returns. Stop (SIGTERM, SIGINT, a failed task or a fatal bus error): not
//! ready → after the configured delay tasks are cancelled and awaited → bus closed →
//! telemetry flushed. A second signal or a failure ends the delay.
//!
//! * I1. Every task is started through [`Tasks`], and none outlives [`main`].
//! * I2. A task that fails ends the process, and the supervisor restarts it. A service
//!   never runs without one of its tasks.
//! * I3. Stopping takes no longer than the configured grace.

mod admin;
mod allocator;
mod config;
pub mod configuration;
mod log_format;
mod metrics;
mod panics;
mod readiness;
pub mod shares;
mod tasks;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use anyhow::Context as _;
use futures::future::BoxFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use config::CommonConfig;
pub use readiness::{Component, Readiness};
pub use tasks::Tasks;
pub use telemetry::RelayedSpans;

/// The handles that [`main`] passes to a service.
#[derive(Clone)]
pub struct Context {
    pub bus: Bus,
    /// Cancelled when the service must stop. From then on it is not ready, and it still accepts
    /// work until `shutdown`. A service that has done all its work cancels it itself.
    pub draining: CancellationToken,
    /// Cancelled when the tasks of the service must end.
    pub shutdown: CancellationToken,
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub instance: InstanceId,
    exports: telemetry::Exports,
}

impl Context {
    /// Exports the finished spans of a program that cannot reach the trace collector itself,
    /// under the service name `agentbox-<program>`.
    ///
    /// # Errors
    /// When the exporter cannot be set up.
    pub fn relayed_spans(&self, program: &str) -> Result<RelayedSpans, anyhow::Error> {
        self.exports.relayed_spans(program)
    }
}

/// The work of a service, or one of its tasks.
///
/// It is boxed, so that a service is compiled in its own crate, and not again in each program that
/// awaits it.
pub type ServiceFuture = BoxFuture<'static, Result<(), anyhow::Error>>;

/// The `main` of a service: reads the configuration from flags and environment, runs `run`,
/// and waits for a signal to stop. Exits with 0 after an orderly stop, 1 after a failure,
/// and 2 on an invalid configuration.
pub fn main<C: clap::Parser + AsRef<CommonConfig>>(
    service: &'static str,
    run: fn(C, Context) -> ServiceFuture,
) -> ExitCode {
    let config = C::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            // Logging is not set up yet.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("cannot start the async runtime: {error}\n").as_bytes(),
            );
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(supervise(service, config, run))
}

/// Sets up telemetry, runs the service, and logs the outcome.
async fn supervise<C: AsRef<CommonConfig>>(
    service: &'static str,
    config: C,
    run: fn(C, Context) -> ServiceFuture,
) -> ExitCode {
    let common = config.as_ref().clone();
    let instance = InstanceId::random();
    let telemetry = match telemetry::start(service, &instance, &common) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("{service}: {error:#}\n").as_bytes(),
            );
            return ExitCode::from(2);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), replica = %common.replica, "starting");
    let outcome = serve(service, instance, &common, config, run, &telemetry).await;
    match &outcome {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::error!(error = %ErrorChain(&**error), "failed"),
    }
    telemetry.flush().await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the service until it is stopped or fails, and then stops its parts in order.
async fn serve<C>(
    service: &'static str,
    instance: InstanceId,
    common: &CommonConfig,
    config: C,
    run: fn(C, Context) -> ServiceFuture,
    telemetry: &telemetry::Telemetry,
) -> Result<(), anyhow::Error> {
    let mut stop_signals = StopSignals::listen()?;

    let draining = CancellationToken::new();
    let shutdown = CancellationToken::new();
    let tasks = Tasks::new(shutdown.clone());
    let readiness = Readiness::new();
    let bus_component = readiness.component("bus");
    bus_component.not_ready("connecting");
    let started = readiness.component("start");
    started.not_ready("starting");

    let admin_shutdown = CancellationToken::new();
    let admin = admin::Admin::bind(common.admin_listen, readiness.clone(), telemetry.metrics())
        .await?
        .serve(admin_shutdown.clone());
    let admin = tokio::task::spawn(admin);

    let work = async {
        if let Some(path) = &common.nats_tls_ca {
            config::check_certificates("AGENTBOX_NATS_TLS_CA", path)?;
        }
        let bus = tokio::select! {
            bus = Bus::connect(BusConfig {
                url: common.nats_url.clone(),
                tls_ca: common.nats_tls_ca.clone(),
                user: common.nats_user.clone(),
                password: common.nats_password.clone(),
                service,
                instance: instance.clone(),
            }) => bus.context("cannot connect to NATS")?,
            () = stop_signals.next() => return Ok(()),
        };
        tasks.spawn(
            "bus-readiness",
            readiness::watch_bus(bus.clone(), bus_component, shutdown.clone()),
        );

        let context = Context {
            bus: bus.clone(),
            draining: draining.clone(),
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
            readiness: readiness.clone(),
            instance,
            exports: telemetry.exports(),
        };
        let outcome = async {
            tokio::select! {
                outcome = run(config, context.clone()) => outcome?,
                () = stop_signals.next() => return Ok(()),
            }
            started.ready();
            tracing::info!("started");
            wait_for_stop(&context, common.shutdown_delay(), &mut stop_signals).await
        }
        .await;

        readiness.stop();
        draining.cancel();
        shutdown.cancel();
        tasks.finish(common.shutdown_grace()).await;
        bus.close().await;
        outcome
    };
    let outcome = work.await;
    admin_shutdown.cancel();
    if let Err(error) = admin.await {
        tracing::warn!(error = %ErrorChain(&error), "admin listener panicked");
    }
    outcome
}

/// Waits for a stop signal, makes the replica not ready, and waits for `delay` or a second signal.
/// Fails at once when a task fails or NATS refuses a permission.
async fn wait_for_stop(
    context: &Context,
    delay: Duration,
    stop_signals: &mut StopSignals,
) -> Result<(), anyhow::Error> {
    let failed = async {
        tokio::select! {
            violation = context.bus.violated() => {
                anyhow::anyhow!("NATS refused a permission that this service needs: {violation}")
            }
            failure = context.tasks.failed() => failure,
        }
    };
    tokio::pin!(failed);
    tokio::select! {
        () = stop_signals.next() => {}
        failure = &mut failed => return Err(failure),
        // A service whose work was one command has done it.
        () = context.draining.cancelled() => return Ok(()),
    }
    context.readiness.stop();
    context.draining.cancel();
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = stop_signals.next() => {}
        failure = &mut failed => return Err(failure),
    }
    Ok(())
}

/// SIGTERM and SIGINT, which stop the service.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> Result<Self, anyhow::Error> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    /// Waits for the next of the two signals.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
