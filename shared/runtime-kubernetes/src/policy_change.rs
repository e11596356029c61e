//! Replaces the network policy of a running box, and probes whether it is in force.
//!
//! Kubernetes does not report when a node enforces a NetworkPolicy. So the new object also opens a
//! port of the box that the old one did not, to our services alone. Once that port answers, by a
//! connection or by a refusal of the box's kernel, the node has the new object. A second port, which
//! neither object opens, shows that closed ports do not answer: with a network plugin that refuses
//! connections, or without one that enforces policies, the probe proves nothing.
//!
//! * I1. The policy is recorded before it is applied, with its generation. A caller with an older
//!   generation does not replace it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxSpec, NetworkPolicy, PolicyApplication, RuntimeError};
use k8s_openapi::api::networking::v1::NetworkPolicy as PolicyObject;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::box_state::StateChange;
use crate::config::Reach;
use crate::context::Context;
use crate::{objects, policy};

/// How long the probe waits for the policy.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How long one connection may take. A box answers within milliseconds.
const ATTEMPT: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(100);
/// The first port of the probes, and the number of pairs. The chart opens these ports of boxes to the
/// scheduler (`templates/network.yaml`).
const FIRST_PORT: u16 = 20_000;
const PAIRS: u16 = 4_096;

fn failure(id: &EnvironmentId, problem: &str) -> RuntimeError {
    RuntimeError::Cluster {
        operation: "network policy",
        message: format!("the box {id} {problem}"),
    }
}

/// The ports of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbePorts {
    /// Opened by the new object alone.
    open: u16,
    closed: u16,
}

impl ProbePorts {
    /// The ports of a generation. No policy of `policies` opens one of them, and the generation before
    /// has others.
    fn choose(generation: i64, policies: &[&NetworkPolicy]) -> Option<Self> {
        let is_opened = |port: u16| {
            let mut ports = policies.iter().flat_map(|p| &p.allowed_ingress_ports);
            ports.any(|opened| opened.get() == port)
        };
        let first = u16::try_from(generation.rem_euclid(i64::from(PAIRS))).ok()?;
        (0..PAIRS)
            .map(|n| {
                let open = FIRST_PORT + 2 * ((first + n) % PAIRS);
                Self {
                    open,
                    closed: open + 1,
                }
            })
            .find(|ports| !is_opened(ports.open) && !is_opened(ports.closed))
    }
}

/// Whether a connection is accepted, or refused by the box's kernel, within [`ATTEMPT`].
async fn answers(address: SocketAddr) -> bool {
    match timeout(ATTEMPT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// Probes until the open port answers and the closed one does not.
async fn probe(ip: IpAddr, ports: ProbePorts) -> PolicyApplication {
    let deadline = Instant::now() + PROBE_DEADLINE;
    let at = |port| answers(SocketAddr::new(ip, port));
    loop {
        if let (true, false) = tokio::join!(at(ports.open), at(ports.closed)) {
            return PolicyApplication::Confirmed;
        }
        if Instant::now() >= deadline {
            return PolicyApplication::Unconfirmed;
        }
        sleep(PAUSE).await;
    }
}

impl Context {
    /// Replaces the policy, and probes it for at most [`PROBE_DEADLINE`].
    pub async fn apply_network_policy(
        &self,
        spec: &BoxSpec,
        generation: i64,
    ) -> Result<PolicyApplication, RuntimeError> {
        let id = &spec.id;
        let new = spec.network_policy(self.config.default_allow_internet);
        let Some(before) = self.box_state(id).await? else {
            return Err(failure(id, "does not exist"));
        };
        let change = StateChange::Policy(generation, new.clone());
        let Some(state) = self.record(id, &change).await? else {
            return Err(failure(id, "does not exist"));
        };
        let fenced = |held| RuntimeError::Fenced {
            given: generation,
            held,
        };
        if state.generation > generation {
            return Err(fenced(state.generation));
        }
        if state.is_terminating() {
            return Err(failure(id, "is being removed"));
        }
        let old = before.policy.unwrap_or_default();
        let ports = ProbePorts::choose(generation, &[&old, &new]);
        self.replace_policy(spec, &new, ports).await?;
        // A newer caller may have recorded its policy, and applied it before this one.
        if let Some(now) = self.box_state(id).await?
            && now.generation > generation
        {
            self.apply_policy(id).await?;
            return Err(fenced(now.generation));
        }
        let ip = self
            .pod(id)
            .await?
            .and_then(|pod| pod.status?.pod_ip)
            .and_then(|ip| ip.parse::<IpAddr>().ok());
        match (ip, ports) {
            // Through the API server no packet passes the policy.
            (Some(ip), Some(ports)) if self.config.reach == Reach::PodIp => {
                Ok(probe(ip, ports).await)
            }
            _ => Ok(PolicyApplication::Unconfirmed),
        }
    }

    /// Applies the policy, with the port that a probe opens.
    pub(crate) async fn replace_policy(
        &self,
        spec: &BoxSpec,
        new: &NetworkPolicy,
        ports: Option<ProbePorts>,
    ) -> Result<(), RuntimeError> {
        let (config, id) = (&self.config, &spec.id);
        let nodes = self.unlisted_nodes().await?;
        let mut manifest = objects::network_policy(config, id, Some(&spec.owner), new, &nodes);
        if let Some(rules) = manifest["spec"]["ingress"].as_array_mut()
            && let Some(ports) = ports
        {
            rules.push(policy::open_to_services(config, ports.open));
        }
        let policies = self.cluster.box_objects::<PolicyObject>(id).await?;
        self.cluster.apply(&policies, &manifest).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::IngressPort;

    use super::*;

    #[test]
    fn probe_ports_differ_from_those_of_the_policies_and_of_the_generation_before() {
        let none = NetworkPolicy::default();
        let first = ProbePorts::choose(1, &[&none, &none]).unwrap();
        assert_eq!((first.open, first.closed), (20_002, 20_003));
        for port in [first.open, first.closed] {
            let opened = NetworkPolicy {
                allowed_ingress_ports: vec![IngressPort::try_from(port).unwrap()],
                ..NetworkPolicy::default()
            };
            let other = ProbePorts::choose(1, &[&none, &opened]).unwrap();
            assert_eq!((other.open, other.closed), (20_004, 20_005));
        }
        let last = ProbePorts::choose(i64::MAX, &[]).unwrap();
        assert!((20_000..28_192).contains(&last.closed), "{last:?}");
        assert_ne!(ProbePorts::choose(i64::MAX - 1, &[]), Some(last));
    }
}
