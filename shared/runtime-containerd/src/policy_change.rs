//! Replaces the network policy of a running box.
//!
//! * I1. The policy is recorded before its rules are installed: when this process is killed in
//!   between, a restored box has the new policy, and the scheduler repeats the call.

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxSpec, PolicyApplication, RuntimeError};

use crate::context::Context;

fn not_running(id: &EnvironmentId) -> RuntimeError {
    RuntimeError::Cluster {
        operation: "network policy",
        message: format!("the box {id} does not run"),
    }
}

impl Context {
    /// Installs the rules of the spec's policy. They are in force when this returns, for packets of
    /// open connections too.
    pub async fn apply_network_policy(
        &self,
        spec: &BoxSpec,
        generation: i64,
    ) -> Result<PolicyApplication, RuntimeError> {
        let id = &spec.id;
        let lock = self.states.lock(id, self.lock_deadline()).await?;
        let Some(mut state) = self.states.load(id).await? else {
            lock.discard();
            return Err(not_running(id));
        };
        if state.generation > generation {
            return Err(RuntimeError::Fenced {
                given: generation,
                held: state.generation,
            });
        }
        let is_running = self.objects(id).await?.is_running();
        let Some(network) = state.network.clone().filter(|_| is_running) else {
            return Err(not_running(id));
        };
        let policy = spec.network_policy(self.config.default_allow_internet);
        state.generation = generation;
        state.policy = Some(policy.clone());
        self.states.save(&lock, id, &state).await?;
        self.firewall.install(id, &network, &policy).await?;
        Ok(PolicyApplication::Confirmed)
    }
}
