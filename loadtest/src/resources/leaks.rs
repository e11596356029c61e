//! Decides which resources a load has leaked.
//!
//! Both readings are of an idle system: the first after a shorter load, so that pools of connections and
//! caches are full, the second after the load, when its environments have ended.

use super::{Kind, Resource};

/// How much more than before is no leak: a part, and an amount.
const fn allowance(kind: Kind) -> (f64, f64) {
    match kind {
        Kind::Memory => (0.25, 16.0),
        Kind::Descriptors => (0.10, 16.0),
        Kind::Connections => (0.10, 4.0),
        Kind::Objects => (0.0, 0.0),
    }
}

/// The most of a resource that is no leak.
fn bound(before: &Resource) -> f64 {
    let (part, amount) = allowance(before.kind);
    before.value * (1.0 + part) + amount
}

/// Whether nothing has leaked.
pub fn is_clean(before: &[Resource], after: &[Resource]) -> bool {
    find(before, after).is_empty()
}

/// A sentence for each resource that has leaked.
pub fn find(before: &[Resource], after: &[Resource]) -> Vec<String> {
    let leak = |after: &Resource| {
        let before = before.iter().find(|before| before.name == after.name)?;
        let bound = bound(before);
        (after.value > bound).then(|| {
            format!(
                "leak: {}: {:.1} before the load, {:.1} after it; at most {bound:.1} are expected",
                after.name, before.value, after.value
            )
        })
    };
    after.iter().filter_map(leak).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: Kind, value: f64) -> Vec<Resource> {
        vec![Resource::new("r", kind, value)]
    }

    #[test]
    fn growth_within_the_allowance_is_no_leak() {
        for (kind, before, after) in [
            (Kind::Memory, 40.0, 66.0),
            (Kind::Descriptors, 100.0, 126.0),
            (Kind::Connections, 20.0, 26.0),
            (Kind::Objects, 7.0, 7.0),
            (Kind::Objects, 7.0, 3.0),
        ] {
            assert!(is_clean(&one(kind, before), &one(kind, after)), "{kind:?}");
        }
    }

    #[test]
    fn growth_beyond_the_allowance_is_a_leak_with_its_numbers() {
        for (kind, before, after) in [
            (Kind::Memory, 40.0, 67.0),
            (Kind::Descriptors, 100.0, 127.0),
            (Kind::Connections, 20.0, 27.0),
            (Kind::Objects, 7.0, 8.0),
        ] {
            let leaks = find(&one(kind, before), &one(kind, after));
            assert_eq!(leaks.len(), 1, "{kind:?}");
            assert!(
                leaks[0].contains(&format!("{before:.1} before")),
                "{leaks:?}"
            );
        }
    }

    #[test]
    fn resource_without_a_first_reading_is_not_judged() {
        assert!(is_clean(&[], &one(Kind::Objects, 9.0)));
    }
}
