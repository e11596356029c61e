//! Whether a warm box can become an environment. Pure.
//!
//! * I1. Everything that is fixed when a box is created is equal: image, resources, runtime class,
//!   security context, node selector. A claim gives `run_as_user` to a box whose boxd is root
//!   ([`gives_user`]). So is the network policy on a cluster that enforces it by
//!   objects of its own, because a claim creates none.
//! * I2. Of several pools with the image, the one that matches is chosen: first one with the user of the
//!   request, then by name. If none matches, the one that is closest explains the miss.

use agentbox_clusters::DriverKind;
use agentbox_contracts::environment::{
    EnvironmentRequest, Isolation, NetworkPolicy, SecurityContext,
};
use agentbox_contracts::pool::{MissReason, PoolSpec};
use agentbox_runtime::image_reference::complete;

use crate::cluster::registry::Cluster;
use crate::environment::request::Quantities;
use crate::environment::store::PoolRow;
use crate::pool::request::quantities;

/// The largest uid that a claim gives: with a user namespace a box has no larger one. A request for a
/// larger one starts cold, so that its cluster can refuse it.
const MAX_GIVEN_USER: u32 = 65_535;

/// The pool of a request, and why its boxes do not match, if they do not. `None`: no pool has the
/// image.
#[must_use]
pub fn best<'a>(
    request: &EnvironmentRequest,
    wanted: Quantities,
    pools: &'a [PoolRow],
) -> Option<(&'a PoolRow, Option<MissReason>)> {
    let image = complete(&request.image);
    pools
        .iter()
        .filter(|pool| complete(&pool.spec.image) == image)
        .map(|pool| (pool, mismatch(request, wanted, &pool.spec)))
        // The reasons are in the order of the checks: a later one is a closer pool.
        .min_by_key(|(pool, reason)| {
            let gives_user = gives_user(request, &pool.spec);
            (reason.map(std::cmp::Reverse), gives_user)
        })
}

/// The security context of a request or of a pool.
fn context(isolation: Option<&Isolation>) -> SecurityContext {
    let context = isolation.and_then(|isolation| isolation.security_context.clone());
    context.unwrap_or_default()
}

/// Whether the claim of a box of `pool` gives it the user of `request`. Only a box whose boxd is root can
/// get one.
#[must_use]
pub fn gives_user(request: &EnvironmentRequest, pool: &PoolSpec) -> bool {
    let asked = context(request.isolation.as_ref());
    let given = context(pool.isolation.as_ref());
    let can_be_root = given.run_as_user.is_none_or(|user| user == 0);
    let is_other = asked.run_as_user != given.run_as_user;
    let is_possible = asked.run_as_user.is_some_and(|user| user <= MAX_GIVEN_USER);
    let with_user = SecurityContext {
        run_as_user: asked.run_as_user,
        ..given
    };
    // A group, and the promise that no process is root, are fixed at the start of boxd.
    let is_user_only = with_user.run_as_group.is_none() && with_user == asked;
    is_other && is_possible && can_be_root && is_user_only
}

/// The first difference between a request and the boxes of a pool with its image.
#[must_use]
pub fn mismatch(
    request: &EnvironmentRequest,
    wanted: Quantities,
    pool: &PoolSpec,
) -> Option<MissReason> {
    let nothing = Isolation::default();
    let asked = request.isolation.as_ref().unwrap_or(&nothing);
    let given = pool.isolation.as_ref().unwrap_or(&nothing);
    let has_context = context(Some(asked)) == context(Some(given)) || gives_user(request, pool);
    if quantities(pool).ok() != Some(wanted) {
        Some(MissReason::Resources)
    } else if asked.runtime_class != given.runtime_class {
        Some(MissReason::RuntimeClass)
    } else if !has_context {
        Some(MissReason::SecurityContext)
    } else if request.node_selector != pool.node_selector {
        Some(MissReason::NodeSelector)
    } else if !request.tolerations.is_empty() {
        Some(MissReason::Tolerations)
    } else {
        None
    }
}

fn policy(isolation: Option<&Isolation>) -> Option<&NetworkPolicy> {
    isolation?.network_policy.as_ref()
}

/// Why a box of `pool` on a cluster with this driver cannot be given what `request` asks for. What is
/// given by objects of the cluster is fixed there.
#[must_use]
pub fn driver_mismatch(
    driver: DriverKind,
    request: &EnvironmentRequest,
    pool: &PoolSpec,
) -> Option<MissReason> {
    let asked = policy(request.isolation.as_ref());
    // The boxes of a pool have another owner than those that it would open the box to.
    let is_internal = asked.is_some_and(|policy| policy.allow_cluster_internal);
    match driver {
        DriverKind::Containerd => None,
        DriverKind::Kubernetes if request.use_entrypoint => Some(MissReason::Entrypoint),
        DriverKind::Kubernetes if is_internal || asked != policy(pool.isolation.as_ref()) => {
            Some(MissReason::NetworkPolicy)
        }
        DriverKind::Kubernetes => None,
    }
}

/// The names of the reachable clusters whose boxes of `pool` may be claimed. A cordoned cluster takes
/// no environment, in a warm box neither.
///
/// # Errors
/// Why there is none.
pub fn claimable_clusters<'a>(
    request: &EnvironmentRequest,
    pool: &PoolSpec,
    clusters: impl IntoIterator<Item = &'a Cluster>,
) -> Result<Vec<String>, MissReason> {
    let reachable = clusters.into_iter().filter(|cluster| {
        let is_named = |name: &String| *name == cluster.name;
        pool.cluster.as_ref().is_none_or(is_named)
            && cluster.scheduling().is_active()
            && cluster.registries.allow(&request.image)
            && cluster.runtime().is_some()
            && cluster.capacity.current().is_some()
    });
    let mut names = Vec::new();
    let mut refusal = MissReason::Empty;
    for cluster in reachable {
        match driver_mismatch(cluster.driver, request, pool) {
            None => names.push(cluster.name.clone()),
            Some(reason) => refusal = reason,
        }
    }
    if names.is_empty() {
        Err(refusal)
    } else {
        Ok(names)
    }
}

#[cfg(test)]
mod tests;
