//! The choice of a cluster for a request. Pure.
//!
//! * I1. The same candidates give the same choice, whatever their order.
//! * I2. A cluster is chosen only if a box of that size fits it when it is empty.

use std::collections::BTreeMap;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::Capacity;

use crate::cluster::config::Overcommit;
use crate::cluster::registries::AllowedRegistries;
use crate::environment::request::Quantities;

/// A reachable cluster.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub registries: AllowedRegistries,
    pub capacity: Capacity,
}

/// The entries of a `node_selector` whose keys the cluster's own labels lack: a node of the
/// cluster must match them. `None`: the cluster's labels contradict the selector.
#[must_use]
pub fn unmatched_selector(
    selector: &BTreeMap<String, String>,
    cluster_labels: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    let mut rest = BTreeMap::new();
    for (key, value) in selector {
        match cluster_labels.get(key) {
            Some(held) if held == value => {}
            Some(_) => return None,
            None => {
                rest.insert(key.clone(), value.clone());
            }
        }
    }
    Some(rest)
}

/// How much of a cluster may be reserved at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocatable {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub storage: Bytes,
}

impl Allocatable {
    /// Nothing is checked.
    pub const UNLIMITED: Self = Self {
        cpu: MilliCpu(u64::MAX),
        memory: Bytes(u64::MAX),
        storage: Bytes(u64::MAX),
    };
}

/// The allocatable resources of a cluster: its total times the overcommit. `u64::MAX` where
/// the overcommit is 0, which switches the check off, and for storage that the cluster does not report.
#[must_use]
pub fn allocatable(capacity: &Capacity, overcommit: Overcommit) -> Allocatable {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a budget, not a count: a rounding error of a byte does not matter, and `as` saturates"
    )]
    let scaled = |total: u64, ratio: f64| {
        if ratio == 0.0 {
            u64::MAX
        } else {
            (total as f64 * ratio) as u64
        }
    };
    Allocatable {
        cpu: MilliCpu(scaled(capacity.total_cpu.0, overcommit.cpu)),
        memory: Bytes(scaled(capacity.total_memory.0, overcommit.memory)),
        storage: match total_storage(capacity) {
            u64::MAX => Bytes(u64::MAX),
            total => Bytes(scaled(total, overcommit.storage)),
        },
    }
}

/// The bytes of a cluster's storage; `u64::MAX` if it does not report them.
fn total_storage(capacity: &Capacity) -> u64 {
    match capacity.total_storage.0 {
        0 => u64::MAX,
        total => total,
    }
}

/// The free share of a cluster, in millionths. Memory decides, because it runs out first and
/// cannot be shared.
fn free_memory_ratio(capacity: &Capacity) -> u64 {
    let free = u128::from(capacity.available_memory.0) * 1_000_000;
    u64::try_from(free / u128::from(capacity.total_memory.0.max(1))).unwrap_or(u64::MAX)
}

/// A selector as text, no longer than a message may be.
fn display_selector(selector: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("`{key}={value}`"))
        .collect();
    labels
        .join(" and ")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
}

/// The clusters that may pull `image`.
///
/// # Errors
/// `Validation` when none of those that match the selector may.
pub fn allowing_image(
    image: &str,
    selector: &BTreeMap<String, String>,
    candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, Error> {
    let matches = |candidate: &Candidate| unmatched_selector(selector, &candidate.labels).is_some();
    let (allowing, refusing): (Vec<Candidate>, Vec<Candidate>) = candidates
        .into_iter()
        .partition(|candidate| candidate.registries.allow(image));
    match refusing.iter().find(|candidate| matches(candidate)) {
        Some(refusing) if !allowing.iter().any(matches) => Err(refusing.registries.refusal(image)),
        _ => Ok(allowing),
    }
}

/// Refuses a quantity that is larger than that of every cluster.
fn check_largest(quantities: Quantities, clusters: &[Candidate]) -> Result<(), Error> {
    let largest = |total: fn(&Capacity) -> u64| {
        let totals = clusters.iter().map(|cluster| total(&cluster.capacity));
        totals.max().unwrap_or(0)
    };
    let refused = |field: &str, most: String| {
        let rule = format!("must be at most {most}, the size of the largest cluster");
        Err(Error::field(field, rule))
    };
    let cpu = largest(|capacity| capacity.total_cpu.0);
    if quantities.cpu.0 > cpu {
        return refused("resources.cpu", MilliCpu(cpu).to_string());
    }
    let memory = largest(|capacity| capacity.total_memory.0);
    if quantities.memory.0 > memory {
        return refused("resources.memory", Bytes(memory).to_string());
    }
    let storage = largest(total_storage);
    if quantities.storage.0 > storage {
        return refused("resources.storage", Bytes(storage).to_string());
    }
    Ok(())
}

/// The clusters that could run a box of `quantities`, the largest share of free memory first.
///
/// # Errors
/// `Validation` when no cluster matches the selector, or none is large enough.
pub fn rank(
    selector: &BTreeMap<String, String>,
    quantities: Quantities,
    candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, Error> {
    let mut matching: Vec<Candidate> = candidates
        .into_iter()
        .filter(|candidate| unmatched_selector(selector, &candidate.labels).is_some())
        .collect();
    if matching.is_empty() {
        return Err(Error::field(
            "node_selector",
            format!("no cluster has {}", display_selector(selector)),
        ));
    }
    check_largest(quantities, &matching)?;
    matching.retain(|candidate| {
        quantities.cpu <= candidate.capacity.total_cpu
            && quantities.memory <= candidate.capacity.total_memory
            && quantities.storage.0 <= total_storage(&candidate.capacity)
    });
    if matching.is_empty() {
        return Err(Error::field(
            "resources",
            "no single cluster has so much CPU, memory and storage; ask for less of one of them",
        ));
    }
    matching.sort_by(|a, b| {
        free_memory_ratio(&b.capacity)
            .cmp(&free_memory_ratio(&a.capacity))
            .then_with(|| a.name.cmp(&b.name))
    });
    Ok(matching)
}

/// The error for a request that no reachable cluster accepts: their refusal, or
/// `Unavailable` when one of the `unreachable` clusters (name and labels) may accept it.
#[must_use]
pub fn retryable_if_unreachable<'a>(
    refusal: Error,
    selector: &BTreeMap<String, String>,
    unreachable: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
) -> Error {
    let mut possible = unreachable
        .into_iter()
        .filter(|(_, labels)| unmatched_selector(selector, labels).is_some());
    match possible.next() {
        Some((name, _)) if refusal.code == ErrorCode::Validation => Error::new(
            ErrorCode::Unavailable,
            format!(
                "cluster `{name}` may run it but is unreachable; try again. Other clusters: {}",
                refusal.message
            ),
        ),
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::LimitEnforcement;

    use super::*;

    fn candidate(name: &str, region: &str, cpu: u64, memory: u64, free: u64) -> Candidate {
        Candidate {
            name: name.into(),
            labels: BTreeMap::from([("region".into(), region.into())]),
            registries: AllowedRegistries::default(),
            capacity: Capacity {
                version: String::new(),
                nodes: 1,
                total_cpu: MilliCpu(cpu),
                total_memory: Bytes(memory),
                available_cpu: MilliCpu(cpu),
                available_memory: Bytes(free),
                available_storage: Bytes(0),
                total_storage: Bytes(0),
                labels: BTreeMap::new(),
                runtime_classes: vec![],
                enforcement: LimitEnforcement::default(),
            },
        }
    }

    fn quantities(cpu: u64, memory: u64) -> Quantities {
        Quantities {
            cpu: MilliCpu(cpu),
            memory: Bytes(memory),
            storage: Bytes(1),
        }
    }

    fn selector(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect()
    }

    fn names(ranked: Result<Vec<Candidate>, Error>) -> Vec<String> {
        ranked
            .unwrap()
            .into_iter()
            .map(|candidate| candidate.name)
            .collect()
    }

    #[test]
    fn candidates_in_any_order_rank_by_free_memory() {
        let three = || {
            vec![
                candidate("b", "eu", 4_000, 100, 50),
                candidate("a", "eu", 4_000, 100, 50),
                candidate("c", "eu", 4_000, 10_000, 9_000),
            ]
        };
        let mut reversed = three();
        reversed.reverse();
        for candidates in [three(), reversed] {
            assert_eq!(
                names(rank(&selector(&[]), quantities(1, 1), candidates)),
                ["c", "a", "b"]
            );
        }
    }

    #[test]
    fn selector_of_a_cluster_label_chooses_that_cluster() {
        let two = vec![candidate("a", "eu", 1, 1, 1), candidate("b", "us", 1, 1, 1)];
        assert_eq!(
            names(rank(
                &selector(&[("region", "us")]),
                quantities(1, 1),
                two.clone()
            )),
            ["b"]
        );
        let error = rank(&selector(&[("region", "mars")]), quantities(1, 1), two).unwrap_err();
        assert_eq!(error.message, "node_selector: no cluster has `region=mars`");
    }

    #[test]
    fn image_is_placed_only_where_its_registry_is_allowed() {
        let two = || {
            let mut own = candidate("b", "us", 1, 1, 1);
            own.registries = vec!["registry.example".to_owned()].try_into().unwrap();
            vec![candidate("a", "eu", 1, 1, 1), own]
        };
        let none = selector(&[]);
        let own = "registry.example/a:1";
        assert_eq!(names(allowing_image(own, &none, two())), ["b"]);
        assert_eq!(names(allowing_image("busybox", &none, two())), ["a"]);
        for (image, region) in [(own, "eu"), ("busybox", "us"), ("localhost/a", "eu")] {
            let selector = selector(&[("region", region)]);
            let error = allowing_image(image, &selector, two()).unwrap_err();
            assert!(error.message.starts_with("image: must be from"), "{error}");
        }
        // The selector is refused later.
        let nowhere = selector(&[("region", "mars")]);
        assert_eq!(names(allowing_image(own, &nowhere, two())), ["b"]);
    }

    #[test]
    fn selector_without_a_cluster_label_is_left_for_the_nodes() {
        let labels = selector(&[("region", "eu")]);
        assert_eq!(
            unmatched_selector(&selector(&[("region", "eu"), ("disk", "ssd")]), &labels),
            Some(selector(&[("disk", "ssd")]))
        );
        assert_eq!(
            unmatched_selector(&selector(&[("region", "us")]), &labels),
            None
        );
    }

    #[test]
    fn request_larger_than_any_cluster_is_refused_with_the_largest_size() {
        let two = || {
            vec![
                candidate("a", "eu", 1_000, 900, 0),
                candidate("b", "eu", 2_000, 10, 0),
            ]
        };
        let error = rank(&selector(&[]), quantities(2_001, 1), two()).unwrap_err();
        assert_eq!(
            error.message,
            "resources.cpu: must be at most 2, the size of the largest cluster"
        );
        assert!(rank(&selector(&[]), quantities(1, 901), two()).is_err());
        assert!(rank(&selector(&[]), quantities(1_500, 500), two()).is_err());
        assert_eq!(
            names(rank(&selector(&[]), quantities(1_500, 5), two())),
            ["b"]
        );
    }

    #[test]
    fn request_that_an_unreachable_cluster_may_accept_is_retryable() {
        let refused = || Error::field("node_selector", "no cluster has `region=us`");
        let (eu, us) = (selector(&[("region", "eu")]), selector(&[("region", "us")]));
        let error = retryable_if_unreachable(refused(), &us, [("a", &eu), ("b", &us)]);
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.message.contains("`b`"), "{error}");
        assert_eq!(
            retryable_if_unreachable(refused(), &us, [("a", &eu)]),
            refused()
        );
        let down = || Error::new(ErrorCode::Unavailable, "down");
        assert_eq!(retryable_if_unreachable(down(), &us, [("b", &us)]), down());
    }

    #[test]
    fn allocatable_is_total_times_overcommit_and_zero_is_unlimited() {
        let mut capacity = candidate("a", "eu", 2_000, 1_000, 0).capacity;
        let overcommit = Overcommit {
            cpu: 1.5,
            memory: 0.0,
            storage: 2.0,
        };
        for (total, storage) in [(0, u64::MAX), (500, 1_000)] {
            capacity.total_storage = Bytes(total);
            let expected = Allocatable {
                cpu: MilliCpu(3_000),
                memory: Bytes(u64::MAX),
                storage: Bytes(storage),
            };
            assert_eq!(allocatable(&capacity, overcommit), expected);
        }
    }

    #[test]
    fn storage_larger_than_any_cluster_is_refused_where_clusters_report_it() {
        let mut known = candidate("a", "eu", 1, 1, 1);
        known.capacity.total_storage = Bytes(1_024);
        let unknown = candidate("b", "us", 1, 1, 1);
        let mut wanted = quantities(1, 1);
        wanted.storage = Bytes(1_025);
        let none = selector(&[]);
        let error = rank(&none, wanted, vec![known.clone()]).unwrap_err();
        assert_eq!(
            error.message,
            "resources.storage: must be at most 1Ki, the size of the largest cluster"
        );
        assert_eq!(names(rank(&none, wanted, vec![known, unknown])), ["b"]);
    }
}
