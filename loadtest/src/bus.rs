//! Connections to the NATS of a system.

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::ids::InstanceId;
use agentbox_testing::System;
use anyhow::Context as _;

/// Connects with the rights of one of its users.
///
/// # Errors
/// When the system has no NATS, or it does not accept the connection.
pub async fn connect(system: &System, user: &str) -> anyhow::Result<Bus> {
    let nats = system.nats.as_ref().context("a system without NATS")?;
    let password = nats.passwords.get(user).cloned().unwrap_or_default();
    let config = BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: user.to_owned(),
        password,
        service: "api-gateway",
        instance: InstanceId::random(),
    };
    Ok(Bus::connect(config).await?)
}
