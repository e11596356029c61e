//! Gateways that remember a credential while it is revoked, of which one does not run meanwhile.

use agentbox_testing::System;
use futures::future::join_all;

use super::Frozen;
use crate::support::access::Access;
use crate::support::caller::admin_of;
use crate::support::eventually;
use crate::support::system::{options, unlimited};

/// How many requests a gateway has answered for a caller that auth confirmed before.
async fn answers_from_memory(system: &System, gateway: usize) -> u64 {
    let url = system.admin_url("api-gateway", gateway).unwrap();
    let answer = reqwest::get(format!("{url}/metrics")).await.unwrap();
    let text = answer.text().await.unwrap();
    let lines = text.lines().filter(|line| {
        line.starts_with("agentbox_callers_identified_total") && line.contains("source=\"memory\"")
    });
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Repeats the request until a gateway answers it without asking auth.
async fn warm(system: &System, access: &Access, gateway: usize) {
    eventually("the credential is remembered", async || {
        let before = answers_from_memory(system, gateway).await;
        access.expect_granted(gateway).await;
        (answers_from_memory(system, gateway).await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn gateway_stopped_during_a_revocation_refuses_the_first_request_after_it() {
    let system = System::start(unlimited(options()).replicas(2)).await;
    let system = system.unwrap();
    let admin = admin_of(&system).await.patient();
    // Both gateways run and remember the credential.
    for access in Access::of_every_kind(&admin).await {
        for gateway in 0..admin.gateways() {
            warm(&system, &access, gateway).await;
        }
        access.revoke_on(1).await;
        for gateway in 0..admin.gateways() {
            access.expect_revoked(gateway).await;
        }
    }
    // All at once, so that all wait for the same lease.
    let accesses = Access::of_every_kind(&admin).await;
    for access in &accesses {
        warm(&system, access, 1).await;
        warm(&system, access, 0).await;
    }
    {
        let _frozen = Frozen::new(&system, "api-gateway");
        join_all(accesses.iter().map(|access| access.revoke_on(1))).await;
    }
    join_all(accesses.iter().map(|access| access.expect_revoked(0))).await;
    system.stop().await;
}
