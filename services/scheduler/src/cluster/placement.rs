//! Which cluster takes a request. Pure.
//!
//! * I1. The same candidates give the same choice, in whatever order they come.
//! * I2. A cluster is only chosen if one box of that size fits it when it is empty.

use std::collections::BTreeMap;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::Capacity;

use crate::cluster::config::Overcommit;
use crate::environment::request::Quantities;

/// A cluster that answers.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub capacity: Capacity,
}

/// The part of a `node_selector` that a cluster's own labels do not settle, for its
/// nodes to match. `None`: the cluster's labels contradict the selector.
#[must_use]
pub fn rest_of_selector(
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

/// How much of a cluster may be promised at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// The room of a cluster. `u64::MAX` where nothing is checked.
#[must_use]
pub fn room(capacity: &Capacity, overcommit: Overcommit) -> Room {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a budget, not a count: a rounding error of a byte does not matter, and `as` saturates"
    )]
    let times = |total: u64, ratio: f64| {
        if ratio == 0.0 {
            u64::MAX
        } else {
            (total as f64 * ratio) as u64
        }
    };
    Room {
        cpu: MilliCpu(times(capacity.total_cpu.0, overcommit.cpu)),
        memory: Bytes(times(capacity.total_memory.0, overcommit.memory)),
    }
}

fn share_free(capacity: &Capacity) -> u64 {
    // In millionths; memory is what runs out first and cannot be shared.
    let free = u128::from(capacity.available_memory.0) * 1_000_000;
    u64::try_from(free / u128::from(capacity.total_memory.0.max(1))).unwrap_or(u64::MAX)
}

/// A selector in words, no longer than a message may be.
fn shown(selector: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("`{key}={value}`"))
        .collect();
    let shown = labels.join(" and ");
    shown
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
}

/// The order in which clusters are asked: those with most of their memory free first.
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
        .filter(|candidate| rest_of_selector(selector, &candidate.labels).is_some())
        .collect();
    if matching.is_empty() {
        return Err(Error::field(
            "node_selector",
            format!("no cluster has {}", shown(selector)),
        ));
    }
    let most = |of: fn(&Capacity) -> u64| {
        matching
            .iter()
            .map(|candidate| of(&candidate.capacity))
            .max()
            .unwrap_or(0)
    };
    let (cpu, memory) = (most(|c| c.total_cpu.0), most(|c| c.total_memory.0));
    if quantities.cpu.0 > cpu {
        let rule = format!("no cluster has so much; the largest has {}", MilliCpu(cpu));
        return Err(Error::field("resources.cpu", rule));
    }
    if quantities.memory.0 > memory {
        let rule = format!("no cluster has so much; the largest has {}", Bytes(memory));
        return Err(Error::field("resources.memory", rule));
    }
    matching.retain(|candidate| {
        quantities.cpu <= candidate.capacity.total_cpu
            && quantities.memory <= candidate.capacity.total_memory
    });
    if matching.is_empty() {
        return Err(Error::field(
            "resources",
            "no cluster has so much CPU and memory at once",
        ));
    }
    matching.sort_by(|a, b| {
        share_free(&b.capacity)
            .cmp(&share_free(&a.capacity))
            .then_with(|| a.name.cmp(&b.name))
    });
    Ok(matching)
}

/// What to answer when no cluster that answers takes a request: what they refused it with,
/// or to try again when one of those `away` (name and labels) may take it.
#[must_use]
pub fn unless_away<'a>(
    refusal: Error,
    selector: &BTreeMap<String, String>,
    away: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
) -> Error {
    let mut possible = away
        .into_iter()
        .filter(|(_, labels)| rest_of_selector(selector, labels).is_some());
    match possible.next() {
        Some((name, _)) if refusal.code == ErrorCode::Validation => Error::new(
            ErrorCode::Unavailable,
            format!(
                "cluster `{name}` may take it and is away, try again; elsewhere: {}",
                refusal.message
            ),
        ),
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, region: &str, cpu: u64, memory: u64, free: u64) -> Candidate {
        Candidate {
            name: name.into(),
            labels: BTreeMap::from([("region".into(), region.into())]),
            capacity: Capacity {
                version: String::new(),
                nodes: 1,
                total_cpu: MilliCpu(cpu),
                total_memory: Bytes(memory),
                available_cpu: MilliCpu(cpu),
                available_memory: Bytes(free),
                available_storage: Bytes(0),
                labels: BTreeMap::new(),
                runtime_classes: vec![],
            },
        }
    }

    fn wanted(cpu: u64, memory: u64) -> Quantities {
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
    fn the_cluster_with_most_of_its_memory_free_comes_first_in_any_order() {
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
                names(rank(&selector(&[]), wanted(1, 1), candidates)),
                ["c", "a", "b"]
            );
        }
    }

    #[test]
    fn a_selector_that_names_a_clusters_label_chooses_by_it() {
        let two = vec![candidate("a", "eu", 1, 1, 1), candidate("b", "us", 1, 1, 1)];
        assert_eq!(
            names(rank(
                &selector(&[("region", "us")]),
                wanted(1, 1),
                two.clone()
            )),
            ["b"]
        );
        let error = rank(&selector(&[("region", "mars")]), wanted(1, 1), two).unwrap_err();
        assert_eq!(error.message, "node_selector: no cluster has `region=mars`");
    }

    #[test]
    fn what_a_clusters_labels_do_not_settle_is_left_for_its_nodes() {
        let labels = selector(&[("region", "eu")]);
        assert_eq!(
            rest_of_selector(&selector(&[("region", "eu"), ("disk", "ssd")]), &labels),
            Some(selector(&[("disk", "ssd")]))
        );
        assert_eq!(
            rest_of_selector(&selector(&[("region", "us")]), &labels),
            None
        );
    }

    #[test]
    fn what_no_cluster_could_ever_hold_is_refused_with_the_largest() {
        let two = || {
            vec![
                candidate("a", "eu", 1_000, 900, 0),
                candidate("b", "eu", 2_000, 10, 0),
            ]
        };
        let error = rank(&selector(&[]), wanted(2_001, 1), two()).unwrap_err();
        assert_eq!(
            error.message,
            "resources.cpu: no cluster has so much; the largest has 2"
        );
        assert!(rank(&selector(&[]), wanted(1, 901), two()).is_err());
        assert!(rank(&selector(&[]), wanted(1_500, 500), two()).is_err());
        assert_eq!(names(rank(&selector(&[]), wanted(1_500, 5), two())), ["b"]);
    }

    #[test]
    fn what_a_cluster_that_is_away_may_take_is_not_called_wrong() {
        let refused = || Error::field("node_selector", "no cluster has `region=us`");
        let (eu, us) = (selector(&[("region", "eu")]), selector(&[("region", "us")]));
        let told = unless_away(refused(), &us, [("a", &eu), ("b", &us)]);
        assert_eq!(told.code, ErrorCode::Unavailable);
        assert!(told.message.contains("`b`"), "{told}");
        assert_eq!(unless_away(refused(), &us, [("a", &eu)]), refused());
        let down = || Error::new(ErrorCode::Unavailable, "down");
        assert_eq!(unless_away(down(), &us, [("b", &us)]), down());
    }

    #[test]
    fn room_is_the_total_times_the_overcommit_and_zero_checks_nothing() {
        let capacity = candidate("a", "eu", 2_000, 1_000, 0).capacity;
        let room_of = |cpu, memory| room(&capacity, Overcommit { cpu, memory });
        assert_eq!(
            room_of(1.5, 0.0),
            Room {
                cpu: MilliCpu(3_000),
                memory: Bytes(u64::MAX)
            }
        );
    }
}
