//! The document says what the routes do, and the copy in `docs/` says what the document does.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::authorize::Action;
use crate::router::{self, BASE};

fn value() -> Value {
    serde_json::to_value(document()).unwrap()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let described: BTreeSet<(String, String)> = value()["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let served: BTreeSet<(String, String)> = router::table()
        .iter()
        .map(|route| (route.method.to_string(), format!("{BASE}{}", route.path)))
        .collect();
    assert_eq!(described, served);
}

#[test]
fn what_needs_no_credential_says_so_and_all_else_does_not() {
    let document = value();
    for route in router::table() {
        let path = format!("{BASE}{}", route.path);
        let operation = &document["paths"][&path][route.method.as_str().to_lowercase()];
        let is_open = operation["security"] == serde_json::json!([{}]);
        let expected = matches!(route.action, Action::Public | Action::LogIn);
        assert_eq!(is_open, expected, "{} {path}", route.method);
    }
}

#[test]
fn every_answer_has_the_headers_of_every_answer() {
    let document = value();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for response in responses.values() {
                let response = match response["$ref"].as_str() {
                    Some(reference) => document.pointer(&reference[1..]).expect(reference),
                    None => response,
                };
                for (name, _, _) in HEADERS {
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
fn every_operation_has_a_name_of_its_own() {
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
fn every_error_that_a_caller_can_see_is_described() {
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
fn the_document_is_openapi_3_1_and_refers_to_nothing_that_is_not_there() {
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
fn the_copy_in_docs_is_in_step() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, written()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == written(),
        "docs/openapi.json is not what the code says; run \
         `UPDATE_OPENAPI=1 cargo test -p agentbox-api-gateway docs` and look at the difference"
    );
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_names_every_route() {
    let page = PAGE.as_str();
    for loaded in ["src=", "@import", "url(", "<link"] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    for route in router::table() {
        assert!(
            page.contains(&format!("{BASE}{}", route.path)),
            "{}",
            route.path
        );
    }
    for code in ErrorCode::ALL {
        assert!(page.contains(code.as_str()), "{}", code.as_str());
    }
}
