//! Label selectors: a user sends them with a list.
//!
//! * An accepted selector that is written again is accepted, with the same requirements.
//! * Its terms select exactly the labels that its requirements match.
//! * An error is short.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use agentbox_contracts::selector::{Requirement, Selector, Terms};
use agentbox_fuzz::assert_input_error;
use libfuzzer_sys::fuzz_target;

type Labels = BTreeMap<String, String>;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let selector = match text.parse::<Selector>() {
        Ok(selector) => selector,
        Err(error) => return assert_input_error(&error.into()),
    };
    let written = written(&selector);
    assert!(written.len() <= text.len(), "{written}");
    assert_eq!(written.parse::<Selector>(), Ok(selector.clone()));
    let terms = selector.terms();
    for labels in samples(&selector) {
        let matches = selector.0.iter().all(|one| is_match(one, &labels));
        assert_eq!(is_selected(&terms, &labels), matches, "{labels:?}");
    }
});

/// The shortest form of a selector.
fn written(selector: &Selector) -> String {
    let one = |requirement: &Requirement| match requirement {
        Requirement::In { key, values } => with_values(key, "=", "in", values),
        Requirement::NotIn { key, values } => with_values(key, "!=", "notin", values),
        Requirement::Exists(key) => key.clone(),
        Requirement::Absent(key) => format!("!{key}"),
    };
    let all: Vec<String> = selector.0.iter().map(one).collect();
    all.join(",")
}

fn with_values(key: &str, sign: &str, word: &str, values: &BTreeSet<String>) -> String {
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    match values.as_slice() {
        [value] => format!("{key}{sign}{value}"),
        values => format!("{key} {word}({})", values.join(",")),
    }
}

/// No labels, and labels that each requirement names, with its first or its last value.
fn samples(selector: &Selector) -> [Labels; 3] {
    let mut samples = [Labels::new(), Labels::new(), Labels::new()];
    for requirement in &selector.0 {
        let (key, first, last) = match requirement {
            Requirement::In { key, values } | Requirement::NotIn { key, values } => {
                (key, values.first(), values.last())
            }
            Requirement::Exists(key) | Requirement::Absent(key) => (key, None, None),
        };
        for (sample, value) in [(1, first), (2, last)] {
            let value = value.cloned().unwrap_or_default();
            samples[sample].insert(key.clone(), value);
        }
    }
    samples
}

fn is_match(requirement: &Requirement, labels: &Labels) -> bool {
    let is_one_of = |key: &str, values: &BTreeSet<String>| {
        labels.get(key).is_some_and(|value| values.contains(value))
    };
    match requirement {
        Requirement::In { key, values } => is_one_of(key, values),
        Requirement::NotIn { key, values } => !is_one_of(key, values),
        Requirement::Exists(key) => labels.contains_key(key),
        Requirement::Absent(key) => !labels.contains_key(key),
    }
}

/// As the query of the list does with the table `environment_terms`.
fn is_selected(terms: &Terms, labels: &Labels) -> bool {
    let of_label = |(key, value): (&String, &String)| [key.clone(), format!("{key}={value}")];
    let has: BTreeSet<String> = labels.iter().flat_map(of_label).collect();
    let has_one = |group: &Vec<String>| group.iter().any(|term| has.contains(term));
    terms.any_of_each.iter().all(has_one) && !terms.none_of.iter().any(|term| has.contains(term))
}
