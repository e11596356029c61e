//! Which policies open which addresses outside the cluster. A driver's tests create the addresses,
//! and show that each answers a client that is not a box.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::network_around;
use crate::address_ranges::{EVERYWHERE, networks};
use crate::conformance::{Subject, Violation, check};
use crate::{BoxConnector, NetworkPolicy, Runtime};

/// Attempts for each policy: on a busy machine an allowed connection may take too long. A denied
/// one never succeeds.
const ATTEMPTS: u32 = 3;

/// Addresses that accept TCP connections.
#[derive(Clone, Debug)]
pub struct Destinations {
    /// A public address.
    pub public: SocketAddr,
    /// A public address in the deployment's `blocked_egress_cidrs`.
    pub blocked: SocketAddr,
    /// A private address, the only one in its /24.
    pub private: SocketAddr,
    /// Private addresses in other ranges.
    pub other_private: Vec<SocketAddr>,
    /// The link-local address of metadata services.
    pub metadata: SocketAddr,
}

impl Destinations {
    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        let mut all = vec![self.public, self.blocked, self.private, self.metadata];
        all.extend(&self.other_private);
        all
    }
}

/// A script that prints the addresses that answer.
fn probe_script(at: &[SocketAddr]) -> String {
    let each = at
        .iter()
        .map(|at| format!("{},{}", at.ip(), at.port()))
        .collect::<Vec<_>>()
        .join(" ");
    format!(
        "for u in {each}; do \
         (timeout 8 nc -w 4 ${{u%,*}} ${{u#*,}} < /dev/null > /dev/null && \
         echo ${{u%,*}}:${{u#*,}}) & \
         done; wait; exit 0"
    )
}

/// The addresses that a box with the policy reaches.
async fn reached<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    at: &Destinations,
    policy: Option<&NetworkPolicy>,
) -> Result<BTreeSet<SocketAddr>, Violation> {
    let mut spec = s.script(&probe_script(&at.all()));
    spec.isolation.network_policy = policy.cloned();
    let end = s.run_to_end(&spec).await?;
    check(end.exit_code == 0, || format!("{end:?}"))?;
    s.first.remove(&spec.id).await?;
    let lines = end.output.lines();
    Ok(lines.filter_map(|at| at.parse().ok()).collect())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn destinations_are_open_to_exactly_the_allowing_policies<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    at: &Destinations,
) -> Result<(), Violation> {
    let cidrs = |networks: Vec<IpNet>| NetworkPolicy {
        allowed_egress_cidrs: networks,
        ..Default::default()
    };
    let everything = NetworkPolicy {
        allow_internet: true,
        allow_cluster_internal: true,
        ..cidrs(
            networks(&EVERYWHERE)
                .filter(|all| all.addr().is_ipv4())
                .collect(),
        )
    };
    let mut private = at.other_private.clone();
    private.extend([at.private, at.public]);
    for (policy, open) in [
        (None, vec![at.public]),
        (Some(NetworkPolicy::default()), vec![]),
        (
            Some(NetworkPolicy {
                allow_internet: true,
                ..Default::default()
            }),
            vec![at.public],
        ),
        (
            Some(cidrs(vec![network_around(at.private.ip(), 24)])),
            vec![at.private],
        ),
        (Some(cidrs(vec![at.blocked.ip().into()])), vec![]),
        (Some(everything), private),
    ] {
        let open = BTreeSet::from_iter(open);
        for attempt in 1.. {
            let reached = reached(s, at, policy.as_ref()).await?;
            if reached == open {
                break;
            }
            check(attempt < ATTEMPTS && reached.is_subset(&open), || {
                format!("{policy:?} opens {reached:?} instead of {open:?}")
            })?;
        }
    }
    Ok(())
}
