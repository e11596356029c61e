//! Validation of a pool's definition. Pure; it follows the rules of a create request.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{EnvironmentRequest, ResourceRequest};
use agentbox_contracts::error::Error;
use agentbox_contracts::labels::is_dns_label;
use agentbox_contracts::pool::{MAX_READY, PoolSpec};

use crate::environment::request::{self, Quantities};

/// The name and the lifetime in [`environment_request`], which no box gets.
const NAME: &str = "warm";
const TIMEOUT_S: u64 = 1;

/// The request that a box of the pool would be created by.
#[must_use]
pub fn environment_request(pool: &PoolSpec) -> EnvironmentRequest {
    EnvironmentRequest {
        name: NAME.to_owned(),
        image: pool.image.clone(),
        resources: pool.resources.clone(),
        timeout_s: TIMEOUT_S,
        idle_timeout_s: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        command: None,
        use_entrypoint: false,
        labels: BTreeMap::new(),
        node_selector: pool.node_selector.clone(),
        tolerations: Vec::new(),
        isolation: pool.isolation.clone(),
    }
}

/// The parsed resources of a pool.
///
/// # Errors
/// `Validation`, naming the first field that breaks its rule.
pub fn quantities(pool: &PoolSpec) -> Result<Quantities, Error> {
    request::validate(&environment_request(pool))
}

/// Resources in their shortest notation, so that equal sizes are equal texts.
#[must_use]
pub fn canonical_resources(quantities: Quantities) -> ResourceRequest {
    ResourceRequest {
        cpu: quantities.cpu.to_string(),
        memory: quantities.memory.to_string(),
        storage: quantities.storage.to_string(),
    }
}

/// Checks a name and a definition; returns its parsed quantities.
///
/// # Errors
/// `Validation`, naming the first field that breaks its rule.
pub fn validate(name: &str, pool: &PoolSpec) -> Result<Quantities, Error> {
    if !is_dns_label(name) {
        return Err(Error::value(
            "name",
            "must be 1 to 63 characters of a-z, 0-9 and -, with a letter or digit at both ends",
            name,
        ));
    }
    if pool.max_ready > MAX_READY {
        return Err(Error::value(
            "max_ready",
            format_args!("must be at most {MAX_READY}"),
            pool.max_ready,
        ));
    }
    if pool.min_ready > pool.max_ready {
        return Err(Error::value(
            "min_ready",
            format_args!("must be at most max_ready, which is {}", pool.max_ready),
            pool.min_ready,
        ));
    }
    quantities(pool)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::Isolation;
    use agentbox_contracts::units::{Bytes, MilliCpu};

    use super::*;

    fn pool() -> PoolSpec {
        PoolSpec {
            image: "python:3.11-slim".into(),
            resources: ResourceRequest {
                cpu: "0.5".into(),
                memory: "0.5Gi".into(),
                storage: "1Gi".into(),
            },
            isolation: None,
            node_selector: BTreeMap::new(),
            cluster: None,
            min_ready: 0,
            max_ready: 2,
        }
    }

    #[test]
    fn valid_pool_gives_its_quantities() {
        let quantities = validate("python", &pool()).unwrap();
        assert_eq!(quantities.cpu, MilliCpu(500));
        assert_eq!(quantities.memory, Bytes(512 << 20));
        let canonical = canonical_resources(quantities);
        assert_eq!(
            (canonical.cpu.as_str(), canonical.memory.as_str()),
            ("500m", "512Mi")
        );
    }

    #[test]
    fn invalid_pool_returns_the_field() {
        let with = |change: fn(&mut PoolSpec)| {
            let mut pool = pool();
            change(&mut pool);
            pool
        };
        for (name, pool, field) in [
            ("Python", pool(), "name"),
            ("", pool(), "name"),
            ("python", with(|pool| pool.image = "a b".into()), "image"),
            (
                "python",
                with(|pool| pool.resources.cpu = "much".into()),
                "resources.cpu",
            ),
            ("python", with(|pool| pool.min_ready = 3), "min_ready"),
            (
                "python",
                with(|pool| pool.max_ready = MAX_READY + 1),
                "max_ready",
            ),
            (
                "python",
                with(|pool| {
                    pool.isolation = Some(Isolation {
                        runtime_class: Some("A B".into()),
                        ..Isolation::default()
                    });
                }),
                "isolation.runtime_class",
            ),
        ] {
            let error = validate(name, &pool).unwrap_err();
            assert!(error.message.starts_with(field), "{error}");
        }
    }
}
