//! Auth: users and their credentials.
//!
//! Owns users, passwords, logins and the keys that sign their tokens, API keys, stream
//! tickets, previews and the audit trail, all in Postgres schema `auth`. Has no data about environments,
//! and authorizes no route: the gateway does.
//!
//! * I1. Postgres holds all state: any replica may be killed at any line, and a credential
//!   that one replica revokes is refused by all, and by all gateways once the revocation is answered
//!   ([`gateway_lease`]).
//! * I2. No password, token, key or ticket is stored, logged or traced in the clear.

mod api_key;
mod audit;
mod authenticate;
mod config;
mod entity;
mod gateway_lease;
mod handlers;
mod health;
mod login;
mod metrics;
mod migrations;
mod password;
mod preview;
mod principal;
mod signing_key;
mod store;
mod sweep;
mod ticket;
mod user;

use std::sync::Arc;

use agentbox_database::Leases;
use agentbox_database::secret::MasterSecret;
use agentbox_service::{Context, ServiceFuture};
use anyhow::Context as _;
use tokio::sync::{Notify, Semaphore};

pub use config::Config;

const SCHEMA: &str = "auth";

/// Brings the schema up to date, creates the first administrator, and answers on the bus
/// until the context's shutdown.
///
/// # Errors
/// When Postgres cannot be reached, or a configured value is invalid.
pub fn run(config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(config, context))
}

async fn start(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    // Not parsed by clap, whose errors would show the value.
    let secret: MasterSecret = config.auth_secret.parse().context("AGENTBOX_AUTH_SECRET")?;
    let database =
        agentbox_database::connect(&config.database_url, SCHEMA, config.database_connections)
            .await?;
    let audit_key = audit::chain::ChainKey::derive(&secret);
    if config.verify_audit {
        audit::verify::run(&database, &context.bus, &audit_key)
            .await
            .context("the audit trail is not valid, or cannot be read")?;
        // The work of this process is done.
        context.draining.cancel();
        return Ok(());
    }
    agentbox_database::migrate::<migrations::Migrator>(&database, SCHEMA).await?;
    context
        .bus
        .wait_for_streams("auth")
        .await
        .context("the streams do not exist")?;
    let hasher = password::Hasher::new(
        config.hash_concurrency,
        config.hash_queue,
        config.hash_places_per_network,
    )
    .await?;
    let hasher = Arc::new(hasher);
    user::bootstrap::first_admin(&database, &hasher, &config)
        .await
        .context("the first administrator cannot be created")?;

    let keyring = signing_key::Keyring::load(
        database.clone(),
        secret.clone(),
        config.key_rotation(),
        config.token_ttl(),
    )
    .await?;
    let deleted = Arc::new(Notify::new());
    let last_used = Arc::new(api_key::last_used::LastUsed::new(database.clone()));
    let tickets = Arc::new(ticket::Tickets::new(
        database.clone(),
        secret.clone(),
        config.ticket_ttl(),
    ));
    let auth = Arc::new(handlers::Auth {
        database: database.clone(),
        authenticator: authenticate::Authenticator {
            database: database.clone(),
            secret: secret.clone(),
            keyring: keyring.clone(),
            tickets: tickets.clone(),
            last_used: last_used.clone(),
            verified_tokens: login::verified::VerifiedTokens::default(),
        },
        logins: login::Logins::new(
            database.clone(),
            hasher.clone(),
            keyring.clone(),
            config.token_ttl(),
        ),
        users: user::Users::new(database.clone(), hasher.clone(), deleted.clone()),
        api_keys: api_key::ApiKeys::new(database.clone(), secret.clone(), config.keys_per_user),
        tickets,
        previews: preview::Previews::new(database.clone(), secret),
        gateway_leases: gateway_lease::GatewayLeases::new(database.clone(), context.bus.clone()),
        changes: Semaphore::new(handlers::MAX_CHANGES),
        keyring: keyring.clone(),
    });

    let Context {
        bus,
        shutdown,
        tasks,
        readiness,
        ..
    } = context;
    tasks.spawn("signing-keys", keyring.run(shutdown.clone()));
    tasks.spawn(
        "password-memory",
        hasher.free_unused_memory(shutdown.clone()),
    );
    tasks.spawn("last-used", {
        let (last_used, shutdown) = (last_used.clone(), shutdown.clone());
        let interval = config.last_used_flush();
        async move { last_used.run(interval, shutdown).await }
    });
    let deletions = user::deletion::DeletionWorker {
        database: database.clone(),
        bus: bus.clone(),
        deleted,
    };
    tasks.spawn("user-deletions", deletions.run(shutdown.clone()));
    let leases = Leases::new(database.clone(), bus.instance().clone());
    let writer = audit::writer::Writer {
        database: database.clone(),
        bus: bus.clone(),
        leases: leases.clone(),
        key: audit_key.clone(),
        head_interval: config.audit_head_interval(),
    };
    tasks.spawn("audit-chain", writer.run(shutdown.clone()));
    let (lag, stopping) = (bus.clone(), shutdown.clone());
    tasks.spawn("audit-lag", async move {
        lag.measure_audit_lag(stopping).await;
        Ok(())
    });
    let connections = agentbox_database::report_connections(database.clone(), shutdown.clone());
    tasks.spawn("database-connections", async move {
        connections.await;
        Ok(())
    });
    let sweeper = sweep::Sweeper {
        leases,
        database,
        interval: config.sweep_interval(),
        key_retention: config.key_retention(),
        audit_retention: config.audit_retention(),
        audit_key,
    };
    tasks.spawn("sweep", sweeper.run(shutdown.clone()));
    tasks.spawn(
        "health",
        health::watch(
            auth.clone(),
            readiness.component("database"),
            shutdown.clone(),
        ),
    );
    let server = handlers::register(bus.serve("auth"), &auth)
        .listen()
        .await?;
    tasks.spawn("requests", async move {
        let served = server.run(shutdown).await;
        // After the last request, so that its use of an API key is written too.
        last_used.flush().await;
        Ok(served?)
    });
    Ok(())
}
