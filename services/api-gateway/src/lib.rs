//! The only public face of AgentBox: REST, server-sent events, WebSocket.
//!
//! A request's way is straight: limits of the edge → credential → rate limit and auth, at
//! the same time → authorize (pure) → one call on the bus → answer.
//!
//! * I1. Nothing durable is owned here; the route mirror is a hint.
//! * I2. Every route authorizes through [`authorize::authorize`].
//! * I3. Every error has the one shape, and no error carries a secret or a user's bytes.
//! * I4. A client that goes takes with it what it had begun.

mod api_keys;
mod attach;
mod authorize;
mod config;
mod edge;
mod environments;
mod events;
mod exec;
mod health;
mod identity;
mod logs;
mod lookup;
mod metrics;
mod openapi;
mod principal;
mod rate_limit;
mod router;
mod server;
mod state;
mod stream;

use agentbox_service::Context;

pub use config::Config;
pub use openapi::document as openapi_document;

use state::Gateway;

/// # Errors
/// When an address cannot be listened on or the bus refuses.
pub async fn run(config: Config, context: Context) -> Result<(), anyhow::Error> {
    context.bus.ensure_streams_of("api-gateway").await?;
    let listeners = server::bind(&config)?;
    let routes = context.bus.mirror_routes();
    let ready = context.readiness.component("routes");
    let gateway = Gateway::new(
        config,
        context.bus.clone(),
        routes.clone(),
        context.shutdown.clone(),
    );

    let shutdown = context.shutdown.clone();
    let mirror = routes.clone();
    context.tasks.spawn("routes", async move {
        mirror.run(shutdown).await;
        Ok(())
    });
    context.tasks.spawn(
        "routes-ready",
        server::until_synced(routes, ready, context.shutdown.clone()),
    );
    let router = router::router(gateway.clone());
    for listener in listeners {
        context.tasks.spawn(
            "http",
            server::serve(listener, router.clone(), gateway.clone()),
        );
    }
    Ok(())
}
