//! The document is complete and current, and the events of released versions are still decoded.

use std::collections::BTreeSet;

use super::*;
use crate::environment::EnvironmentEvent;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/asyncapi.json");
/// Events as they were published by version 1, one a line. Lines are added and never changed.
const RECORDED: &str = include_str!("recorded-1.jsonl");

/// `UPDATE_ASYNCAPI=1` writes the file.
#[test]
fn asyncapi_document_matches_contracts() {
    let document = document();
    if std::env::var_os("UPDATE_ASYNCAPI").is_some() {
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        std::fs::write(DOCUMENT, text).unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(DOCUMENT).unwrap()).unwrap();
    assert!(
        stored == document,
        "docs/asyncapi.json differs from the contracts; update it with UPDATE_ASYNCAPI=1"
    );
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn schema_describes_each_field_of_an_event() {
    let mut described = BTreeSet::new();
    for example in message()["examples"].as_array().unwrap() {
        let example = &example["payload"];
        let event: EnvironmentEvent = serde_json::from_value(example.clone()).unwrap();
        let encoded = serde_json::to_value(event).unwrap();
        assert_eq!(encoded, *example);
        described.append(&mut keys(&encoded));
    }
    assert_eq!(described, keys(&schema()["properties"]));
}

#[test]
fn schema_describes_each_field_of_an_execution() {
    let message = message();
    let example = &message["examples"][1]["payload"]["execution"];
    assert_eq!(keys(example), keys(&execution()["properties"]));
}

#[test]
fn recorded_events_are_still_decoded() {
    let schema = schema();
    for line in RECORDED.lines() {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let event: EnvironmentEvent = serde_json::from_str(line).unwrap();
        let encoded = serde_json::to_value(event).unwrap();
        for (field, value) in recorded.as_object().unwrap() {
            assert_eq!(&encoded[field], value, "{line}");
            let described = &schema["properties"][field];
            assert!(described.is_object(), "{field} is not described");
            if let Some(values) = described["enum"].as_array() {
                assert!(values.contains(value), "{field}: {value}");
            }
        }
        for field in schema["required"].as_array().unwrap() {
            let field = field.as_str().unwrap();
            assert!(recorded.get(field).is_some(), "{field} is not in {line}");
        }
    }
}

#[test]
fn event_of_a_newer_version_with_more_fields_is_decoded() {
    let mut newer: Value = serde_json::from_str(RECORDED.lines().next().unwrap()).unwrap();
    newer["region"] = json!("eu-1");
    let event: EnvironmentEvent = serde_json::from_value(newer).unwrap();
    assert_eq!(event.kind, EventKind::Created);
}
