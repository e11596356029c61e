//! The only public face of AgentBox: REST, server-sent events, WebSocket.
//!
//! A request passes these steps: limits of the edge → authentication and rate limit, at the same
//! time → authorization (pure) → one call on the bus → answer. While the gateway holds a lease, it authenticates
//! most requests by what auth has confirmed before ([`principal`]).
//!
//! * I1. The gateway owns nothing durable; the route mirror is a hint.
//! * I2. Every route is authorized by [`authorize::authorize`], before its handler runs.
//! * I3. Every error has the same shape and carries neither a secret nor a user's bytes.
//! * I4. When a client disconnects, the exec or stream that it started ends. An execution does not.
//! * I5. Every wait has a deadline, and every buffer a bound.

mod api_keys;
mod attach;
mod audit;
mod auth;
mod authorize;
mod box_loss;
mod box_session;
mod clusters;
mod config;
mod dead_letters;
mod edge;
mod environments;
mod events;
mod exec;
mod executions;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
mod logs;
mod lookup;
mod memory;
mod metrics;
mod openapi;
mod pools;
mod ports;
mod previews;
mod principal;
mod rate_limit;
mod registries;
mod router;
mod shares;
mod state;
mod stream;
mod text;
mod tickets;
mod user_usage;
mod users;
mod webhooks;

use std::time::Duration;

use agentbox_service::{Component, Context, ServiceFuture};
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use router::document as openapi_document;

use edge::server;
use edge::slots::Slots;
use principal::lease;
use rate_limit::flood::FloodLimiter;
use state::{AppState, Gateway};

/// How often the readiness is updated from the state of the route mirror.
const MIRROR_CHECK: Duration = Duration::from_millis(100);
/// How long the close handshakes of WebSockets may take when the gateway stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// Starts the gateway's tasks; they run until `context` shuts down.
///
/// # Errors
/// When an address cannot be bound, a limit is zero, or a stream does not exist.
pub fn run(config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(config, context))
}

async fn start(config: Config, context: Context) -> Result<(), anyhow::Error> {
    let Context {
        bus,
        draining,
        shutdown,
        tasks,
        readiness,
        ..
    } = context;
    metrics::describe();
    let flood_limiter = FloodLimiter::new(config.flood_per_second, config.flood_burst)?;
    let listeners = server::bind(&config)?;
    bus.wait_for_streams("api-gateway").await?;
    let slots = Slots::new(&config);
    let mirror = bus.mirror_routes();
    let gateway = AppState::new(config, bus, mirror.table(), draining, shutdown.clone());

    let forgetting = lease::listen(&gateway).await?;
    let stop = shutdown.clone();
    tasks.spawn("credential-changes", async move {
        Ok(forgetting.run(stop).await?)
    });
    tasks.spawn("credential-lease", lease::run(gateway.clone()));
    let stop = shutdown.clone();
    tasks.spawn("routes", async move {
        mirror.run(stop).await;
        Ok(())
    });
    let component = readiness.component("routes");
    tasks.spawn("routes-ready", report_readiness(gateway.clone(), component));
    tasks.spawn("flood-limiter", flood_limiter.clone().run(shutdown.clone()));
    let router = router::router(gateway.clone(), &flood_limiter);
    for listener in listeners {
        let serving = server::serve(listener, router.clone(), gateway.clone(), slots.clone());
        tasks.spawn("http", serving);
    }
    tasks.spawn("draining-streams", gateway.clone().end_draining_streams());
    tasks.spawn("sockets", wait_for_sockets(gateway, shutdown));
    Ok(())
}

async fn report_readiness(gateway: Gateway, component: Component) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(MIRROR_CHECK);
    loop {
        tokio::select! {
            () = gateway.shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if gateway.routes.is_synced() {
            component.ready();
        } else {
            component.not_ready("the route table has not been read yet");
        }
    }
}

async fn wait_for_sockets(
    gateway: Gateway,
    shutdown: CancellationToken,
) -> Result<(), anyhow::Error> {
    shutdown.cancelled().await;
    gateway.sockets.close();
    gateway.results_in_flight.close();
    let ended = async {
        gateway.sockets.wait().await;
        gateway.results_in_flight.wait().await;
        gateway.reads.finish().await;
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, ended).await.is_err() {
        tracing::warn!(
            sockets = gateway.sockets.len(),
            results = gateway.results_in_flight.len(),
            "sockets, results and reads did not end in time"
        );
    }
    Ok(())
}
