//! The only public face of AgentBox: REST, server-sent events, WebSocket.
//!
//! A request's way is straight: limits of the edge → credential, and rate at the same
//! time → authorize (pure) → one call on the bus → answer.
//!
//! * I1. Nothing durable is owned here; the route mirror is a hint.
//! * I2. Every route authorizes through [`authorize::authorize`], before its handler.
//! * I3. Every error has the one shape, and no error carries a secret or a user's bytes.
//! * I4. A client that goes takes with it what it had begun.
//! * I5. No wait is without a deadline, and no buffer without a bound.

mod api_keys;
mod attach;
mod auth;
mod authorize;
mod config;
mod edge;
mod environments;
mod events;
mod exec;
mod health;
mod logs;
mod lookup;
mod lost;
mod metrics;
mod openapi;
mod principal;
mod rate_limit;
mod router;
mod state;
mod stream;
mod text;
mod tickets;
mod users;

use std::time::Duration;

use agentbox_service::{Component, Context};
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use edge::client_address::{Cidr, InvalidCidr};
pub use openapi::document as openapi_document;

use edge::server;
use rate_limit::shield::Shield;
use state::Gateway;

/// How often it is looked whether the route mirror is whole.
const MIRROR_CHECK: Duration = Duration::from_millis(100);
/// How long WebSockets may take to say goodbye when the gateway stops.
const GOODBYE: Duration = Duration::from_secs(8);

/// # Errors
/// When an address cannot be listened on, a limit makes no sense, or the bus refuses.
pub async fn run(config: Config, context: Context) -> Result<(), anyhow::Error> {
    let Context {
        bus,
        leaving,
        shutdown,
        tasks,
        readiness,
        ..
    } = context;
    let shield = Shield::new(config.flood_per_second, config.flood_burst)?;
    let listeners = server::bind(&config)?;
    bus.ensure_streams_of("api-gateway").await?;
    let slots = server::Slots::new(config.max_connections);
    let routes = bus.mirror_routes();
    let gateway = Gateway::new(config, bus, routes.clone(), leaving, shutdown.clone());

    let stop = shutdown.clone();
    tasks.spawn("routes", async move {
        routes.run(stop).await;
        Ok(())
    });
    let component = readiness.component("routes");
    tasks.spawn("routes-ready", tell_readiness(gateway.clone(), component));
    tasks.spawn("flood-shield", shield.clone().run(shutdown.clone()));
    let router = router::router(gateway.clone(), &shield);
    for listener in listeners {
        let served = server::serve(listener, router.clone(), gateway.clone(), slots.clone());
        tasks.spawn("http", served);
    }
    tasks.spawn("old-streams", gateway.clone().end_old_streams());
    tasks.spawn("sockets", wait_for_sockets(gateway, shutdown));
    Ok(())
}

async fn tell_readiness(gateway: Gateway, component: Component) -> Result<(), anyhow::Error> {
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
    if tokio::time::timeout(GOODBYE, gateway.sockets.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            sockets = gateway.sockets.len(),
            "sockets did not close in time"
        );
    }
    Ok(())
}
