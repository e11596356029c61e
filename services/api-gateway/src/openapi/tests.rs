//! The document describes the routes, and `docs/openapi.json` is a copy of it.

mod texts;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::authorize::Action;
use crate::router::{self, Route};

fn value() -> Value {
    serde_json::to_value(router::document()).unwrap()
}

/// The method and path of each operation of a route.
fn operations(route: &Route) -> Vec<(String, String)> {
    let paths = serde_json::to_value(&route.operations.paths).unwrap();
    operations_of(&paths)
        .into_iter()
        .map(|(method, path)| (method, format!("{BASE}{path}")))
        .collect()
}

fn operations_of(paths: &Value) -> Vec<(String, String)> {
    let paths = paths.as_object().unwrap().iter();
    paths
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect()
}

#[test]
fn document_describes_every_route_and_nothing_else() {
    let described: BTreeSet<_> = operations_of(&value()["paths"]).into_iter().collect();
    let served: Vec<_> = router::table().iter().flat_map(operations).collect();
    assert_eq!(described, served.iter().cloned().collect());
    assert_eq!(described.len(), served.len(), "one route, one operation");
}

#[test]
fn open_routes_are_documented_without_security_and_all_others_with_it() {
    let document = value();
    for route in router::table() {
        for (method, path) in operations(&route) {
            let operation = &document["paths"][&path][method.to_lowercase()];
            let is_open = operation["security"] == serde_json::json!([{}]);
            let expected = matches!(route.action, Action::Public | Action::LogIn);
            assert_eq!(is_open, expected, "{method} {path}");
        }
    }
}

#[test]
fn every_response_documents_the_common_headers() {
    let document = value();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for response in responses.values() {
                let response = match response["$ref"].as_str() {
                    Some(reference) => document.pointer(&reference[1..]).expect(reference),
                    None => response,
                };
                for (name, ..) in HEADERS {
                    assert!(
                        response["headers"][name].is_object(),
                        "{method} {path}: {name}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_operation_id_is_unique() {
    let document = value();
    let mut names = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap().to_owned();
            assert!(names.insert(name.clone()), "{method} {path}: {name}");
        }
    }
}

#[test]
fn every_error_code_is_described() {
    let document = value();
    for code in ErrorCode::ALL {
        let described = document["components"]["responses"]
            .as_object()
            .unwrap()
            .values()
            .any(|answer| {
                let text = answer["description"].as_str().unwrap();
                text.contains(&format!("`{}`", code.as_str()))
            });
        assert!(described, "{}", code.as_str());
    }
}

#[test]
fn document_is_openapi_3_1_and_every_reference_resolves() {
    let document = value();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let (name, _) = reference.split_once('"').unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
}

#[test]
fn docs_openapi_json_matches_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let written = to_text(&router::document());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == written,
        "docs/openapi.json does not match the code; run \
         `UPDATE_OPENAPI=1 cargo test -p agentbox-api-gateway docs` and look at the difference"
    );
}

#[test]
fn reference_page_loads_only_its_own_script_and_names_every_route_and_error() {
    let page = page::render(&router::document());
    for loaded in ["@import", "url(", "<link", "<img", "<iframe", "://"] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    let sources: Vec<&str> = page.split("src=").skip(1).collect();
    assert_eq!(sources.len(), 1);
    assert!(sources[0].starts_with("\"docs/redoc.js\""));
    for (_, path) in router::table().iter().flat_map(operations) {
        assert!(page.contains(&path), "{path}");
    }
    for code in ErrorCode::ALL {
        assert!(page.contains(code.as_str()), "{}", code.as_str());
    }
}
