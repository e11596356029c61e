//! Gives a warm box to its owner, without containerd.
//!
//! * I1. The claim is recorded before anything changes, with the owner and the policy. Another claim is
//!   refused from then on, and a killed call is completed by the next one or by `ensure`.
//! * I2. The rules of the owner's network policy are in force before boxd has the command.
//! * I3. Only the holder of the box's lock claims it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{BoxSpec, Observed, RuntimeError, claim_of, configure_claimed};
use chrono::Utc;
use tokio::net::TcpStream;

use crate::box_state::{BoxLock, BoxState, Warm};
use crate::context::Context;
use crate::error::io_failure;
use crate::output;
use crate::phase::{self, Observation, ObservedContainer};

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
        let Some(warm) = state.warm.clone() else {
            return Err(not_claimable("it was not created warm"));
        };
        let claim = claim_of(spec, Some(&warm.entrypoint))?;
        if warm.is_configured && warm.claim.as_ref() == Some(&claim) {
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
        if warm.claim.as_ref().is_some_and(|held| *held != claim) {
            return Err(not_claimable("another claim has it"));
        }
        state.warm = Some(Warm {
            claim: Some(claim),
            ..warm.clone()
        });
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
        let directory = self.output_directory(id);
        let recorded = async { output::claim(&directory) };
        let within = self.claim_deadline();
        let entrypoint = Some(warm.entrypoint.as_slice());
        configure_claimed(connection, prepared, recorded, spec, entrypoint, within).await?;
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
