//! `/openapi.json` and `/docs`.

use reqwest::Method;

use crate::support::answer::header;
use crate::support::caller::{Caller, send};
use crate::support::system::shared;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");

#[tokio::test]
async fn served_document_is_docs_openapi_json_also_at_the_root() {
    let anonymous = Caller::without_token_on(shared().await);
    for gateway in 0..anonymous.gateways() {
        let answer = anonymous.get_on(gateway, "/openapi.json").await;
        assert_eq!(answer.header("content-type"), "application/json");
        // `assert_eq!` would print both documents.
        assert!(answer.text == DOCUMENT, "the served document differs");
        let root = format!("http://{}/openapi.json", anonymous.host(gateway));
        let text = reqwest::get(root).await.unwrap().text().await.unwrap();
        assert!(text == DOCUMENT, "the document at the root differs");
    }
}

#[tokio::test]
async fn every_documented_operation_is_served_and_requires_a_credential_as_documented() {
    let anonymous = Caller::without_token_on(shared().await);
    let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
    let mut count = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1").unwrap();
        let path = path.replace("{id}", "env-0000000000000000");
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = send(anonymous.request(method.clone(), &path)).await;
            let is_open = operation["security"] == serde_json::json!([{}]);
            if is_open {
                assert!(
                    !matches!(answer.status, 401 | 404 | 405),
                    "{method} {path} {answer:?}"
                );
            } else {
                answer.expect_error(401, "unauthorized");
            }
            count += 1;
        }
    }
    assert!(count > 25, "{count}");
}

#[tokio::test]
async fn reference_page_names_every_path_and_loads_its_own_script_only() {
    let anonymous = Caller::without_token_on(shared().await);
    let host = anonymous.host(0);
    for base in ["", "/api/v1"] {
        let page = format!("http://{host}{base}/docs");
        let response = reqwest::get(&page).await.unwrap();
        let content_type = header(response.headers(), "content-type")
            .unwrap()
            .to_owned();
        assert!(content_type.starts_with("text/html"), "{content_type}");
        let policy = header(response.headers(), "content-security-policy")
            .unwrap()
            .to_owned();
        assert!(policy.contains("default-src 'none'"), "{policy}");
        assert!(policy.contains("script-src 'self'"), "{policy}");
        for (name, expected) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(header(response.headers(), name), Some(expected));
        }
        for external in ["http", "*", "unsafe"] {
            assert!(!policy.contains(external), "{policy}");
        }
        let text = response.text().await.unwrap();
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        for path in document["paths"].as_object().unwrap().keys() {
            assert!(text.contains(path.as_str()), "{path}");
        }
        // The page's links are relative: the script and the document are beside it.
        let scripts: Vec<&str> = text.split("<script ").skip(1).collect();
        assert_eq!(scripts.len(), 1, "{scripts:?}");
        assert!(scripts[0].starts_with("src=\"docs/redoc.js\">"));
        let script = reqwest::get(format!("{page}/redoc.js")).await.unwrap();
        assert_eq!(script.status(), 200);
        assert_eq!(header(script.headers(), "content-encoding"), Some("gzip"));
        assert_eq!(
            header(script.headers(), "content-type"),
            Some("text/javascript")
        );
        assert!(script.bytes().await.unwrap().starts_with(b"\x1f\x8b"));
    }
}

#[tokio::test]
async fn attach_close_codes_are_documented() {
    let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
    let attach = &document["paths"]["/api/v1/environments/{id}/attach"]["get"]["description"];
    for code in [1000, 1001, 1009, 1011, 4401, 4404, 4408, 4409, 4502, 4503] {
        assert!(
            attach.as_str().unwrap().contains(&code.to_string()),
            "{code}"
        );
    }
}
