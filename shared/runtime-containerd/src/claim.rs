//! Gives a warm box to its owner, without containerd.
//!
//! * I1. The claim is recorded before anything changes, with the owner and the policy. Another claim is
//!   refused from then on, and a killed call is completed by the next one or by `ensure`.
//! * I2. The rules of the owner's network policy are in force before boxd has the command.
//! * I3. Only the holder of the box's lock claims it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{BoxSpec, Observed, RuntimeError, configure_claimed};
use chrono::Utc;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use crate::box_state::{BoxLock, BoxState, Warm};
use crate::context::Context;
use crate::error::io_failure;
use crate::phase::{self, Observation, ObservedContainer};

/// Identifies the claim of a spec: what boxd is given once. A digest, because variables are secret; it
/// begins with the box's token, so that nobody can try values. The network policy and the labels of an
/// environment may change later, and are no part of it.
fn claim_of(spec: &BoxSpec) -> Result<String, RuntimeError> {
    let given = (
        &spec.boxd_token,
        &spec.owner,
        &spec.command,
        spec.use_entrypoint,
        &spec.env,
    );
    let mut json = serde_json::to_vec(&given).map_err(|error| RuntimeError::Cluster {
        operation: "claim",
        message: error.to_string(),
    })?;
    let context = spec.isolation.security_context.as_ref();
    // Behind the others, so that a claim without it has the digest that earlier versions wrote.
    if let Some(user) = context.and_then(|context| context.run_as_user) {
        json.extend_from_slice(user.to_string().as_bytes());
    }
    Ok(hex::encode(Sha256::digest(json)))
}

fn not_claimable(reason: &str) -> RuntimeError {
    RuntimeError::NotClaimable(reason.to_owned())
}

impl Context {
    pub async fn claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        address: SocketAddr,
    ) -> Result<Observed, RuntimeError> {
        let id = &spec.id;
        let lock = self.states.lock(id, self.claim_deadline()).await?;
        let Some(mut state) = self.states.load(id).await? else {
            lock.discard();
            return Err(not_claimable("it does not exist"));
        };
        if let Some(network) = &state.network
            && IpAddr::V4(network.address) != address.ip()
        {
            return Err(RuntimeError::Unreachable(format!(
                "{address} is not the box's address"
            )));
        }
        self.finish_claim(spec, generation, &lock, &mut state)
            .await?;
        // Not asked of containerd: the next observation finds a box that has ended since.
        Ok(Observed {
            id: id.clone(),
            generation: state.generation,
            created_at: state.created_at,
            phase: phase::phase(&Observation {
                state: Some(state),
                container: ObservedContainer::Running,
                termination: None,
                out_of_memory: false,
            }),
        })
    }

    /// Records the claim, opens the network for its policy, and configures boxd. Each step may have been
    /// done by an earlier call; after the last one boxd is not asked again.
    pub async fn finish_claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        lock: &BoxLock,
        state: &mut BoxState,
    ) -> Result<(), RuntimeError> {
        let id = &spec.id;
        if state.generation > generation {
            return Err(RuntimeError::Fenced {
                given: generation,
                held: state.generation,
            });
        }
        let claim = claim_of(spec)?;
        let has_claim = |warm: &Warm| warm.is_configured && warm.claim.as_ref() == Some(&claim);
        if state.warm.as_ref().is_some_and(has_claim) {
            // Also when the command has ended since, and boxd with it.
            state.generation = generation;
            self.states.save(lock, id, state).await?;
            return Ok(());
        }
        let has_ended = state.failure.is_some() || state.ending.is_some();
        let network = state.network.clone();
        let Some(mut network) = network.filter(|_| state.ready_at.is_some() && !has_ended) else {
            return Err(not_claimable("it does not run"));
        };
        let policy = spec.network_policy(self.config.default_allow_internet);
        network.owner = Some(spec.owner.clone());
        let Some(warm) = state.warm.as_mut() else {
            return Err(not_claimable("it was not created warm"));
        };
        if warm.claim.as_ref().is_some_and(|held| *held != claim) {
            return Err(not_claimable("another claim has it"));
        }
        warm.claim = Some(claim);
        let entrypoint = warm.entrypoint.clone();
        state.generation = generation;
        state.network = Some(network.clone());
        state.policy = Some(policy.clone());
        self.states.save(lock, id, state).await?;
        let boxd = SocketAddr::new(network.address.into(), DEFAULT_PORT);
        let connection = async {
            let stream = TcpStream::connect(boxd)
                .await
                .map_err(|error| RuntimeError::Unreachable(format!("{boxd}: {error}")))?;
            // A caller waits for each frame.
            stream
                .set_nodelay(true)
                .map_err(|error| io_failure("connect", &error))?;
            Ok(stream)
        };
        let prepared = async {
            let replaced = self.firewall.replace(id, &network, &policy).await;
            replaced.map_err(RuntimeError::from)
        };
        let within = self.claim_deadline();
        configure_claimed(connection, prepared, spec, Some(&entrypoint), within).await?;
        if let Some(warm) = state.warm.as_mut() {
            warm.is_configured = true;
        }
        // The box of its owner runs since now.
        state.ready_at = Some(Utc::now());
        self.states.save(lock, id, state).await?;
        Ok(())
    }

    /// Of a claim: for the box's lock, and for the connection to boxd.
    fn claim_deadline(&self) -> Duration {
        Duration::from_millis(self.config.connect_deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::ids::UserId;
    use agentbox_runtime::conformance::example_spec;
    use agentbox_runtime::{NetworkPolicy, SecurityContext};

    use super::*;

    #[test]
    fn claim_is_identified_by_what_boxd_is_given() {
        let spec = example_spec(|_| {});
        let first = claim_of(&spec).unwrap();
        let changed = |change: &dyn Fn(&mut BoxSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            claim_of(&spec).unwrap()
        };
        assert_eq!(
            changed(&|spec| {
                spec.labels.insert("team".to_owned(), "ci".to_owned());
                spec.isolation.network_policy = Some(NetworkPolicy::default());
            }),
            first
        );
        for other in [
            changed(&|spec| spec.owner = UserId::random()),
            changed(&|spec| spec.command = Some(vec!["sh".to_owned()])),
            changed(&|spec| spec.use_entrypoint = true),
            changed(&|spec| drop(spec.env.insert("A".to_owned(), "1".to_owned()))),
            changed(&|spec| "other".clone_into(&mut spec.boxd_token)),
            changed(&|spec| {
                spec.isolation.security_context = Some(SecurityContext {
                    run_as_user: Some(1000),
                    ..Default::default()
                });
            }),
        ] {
            assert_ne!(other, first);
        }
    }
}
