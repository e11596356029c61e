//! Webhooks: sends the events of environments to the URLs that their owners have chosen.
//!
//! Owns webhooks and their deliveries, in Postgres schema `webhooks`. Its NATS credential reads events,
//! answers the gateway, and asks auth whether a user exists. It has no credential of a cluster.
//!
//! * I1. An event is acknowledged after its deliveries are stored, so each is attempted at least once.
//! * I2. A delivery ends: it is delivered, or dead after its last attempt. The user can repeat both.
//! * I3. A connection uses an address that was checked after the resolution of the name. No redirect is
//!   followed.
//! * I4. The key of a webhook's signatures is stored encrypted, and shown once.

mod config;
mod delivery;
mod handlers;
mod health;
mod ingest;
mod metrics;
mod migrations;
mod store;
mod sweep;
mod target;
mod webhook;

use std::sync::Arc;

use agentbox_database::Leases;
use agentbox_database::secret::MasterSecret;
use agentbox_service::{Context, ServiceFuture};
use anyhow::Context as _;
use tokio::sync::Notify;

pub use config::Config;

use store::Store;

const SCHEMA: &str = "webhooks";

/// Brings the schema up to date, sends events, and answers on the bus until the context's shutdown.
///
/// # Errors
/// When Postgres cannot be reached, or a configured value is invalid.
pub fn run(config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(config, context))
}

async fn start(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    // Not parsed by clap, whose errors would show the value.
    let secret: MasterSecret = config
        .webhooks_secret
        .parse()
        .context("AGENTBOX_WEBHOOKS_SECRET")?;
    let database =
        agentbox_database::connect(&config.database_url, SCHEMA, config.database_connections)
            .await?;
    agentbox_database::migrate::<migrations::Migrator>(&database, SCHEMA).await?;
    context
        .bus
        .wait_for_streams("webhooks")
        .await
        .context("the streams do not exist")?;
    let guard = Arc::new(target::Guard::new(config.allowed_networks.clone()));
    let store = Store::new(database.clone(), secret);
    let sender = delivery::send::Sender::new(guard.clone(), config.attempt_timeout())
        .context("the machine has no certificates of authorities")?;
    let due = Arc::new(Notify::new());

    let Context {
        bus,
        shutdown,
        tasks,
        readiness,
        ..
    } = context;
    let (lag, stopping) = (bus.clone(), shutdown.clone());
    tasks.spawn("events-lag", async move {
        lag.measure_event_lag(stopping).await;
        Ok(())
    });
    let connections = agentbox_database::report_connections(database.clone(), shutdown.clone());
    tasks.spawn("database-connections", async move {
        connections.await;
        Ok(())
    });
    let ingest = ingest::Ingest {
        queue: bus.event_queue(),
        store: store.clone(),
        max_pending: config.max_pending,
        due: due.clone(),
    };
    tasks.spawn("events", ingest.run(shutdown.clone()));
    let worker = delivery::worker::Worker {
        store: store.clone(),
        sender: Arc::new(sender),
        retries: config.retries(),
        lease: delivery::worker::lease(config.attempt_timeout()),
        due: due.clone(),
    };
    tasks.spawn("deliveries", worker.run(shutdown.clone()));
    let sweeper = sweep::Sweeper {
        leases: Leases::new(database.clone(), bus.instance().clone()),
        store: store.clone(),
        bus: bus.clone(),
        interval: config.sweep_interval(),
        retention: config.retention(),
    };
    tasks.spawn("sweep", sweeper.run(shutdown.clone()));
    tasks.spawn(
        "health",
        health::watch(database, readiness.component("database"), shutdown.clone()),
    );
    let webhooks = Arc::new(webhook::Webhooks { store, guard, due });
    let server = handlers::register(bus.serve("webhooks"), &webhooks)
        .listen()
        .await?;
    tasks.spawn("requests", async move { Ok(server.run(shutdown).await?) });
    Ok(())
}
