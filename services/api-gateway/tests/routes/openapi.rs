//! `/openapi.json` and `/docs`.

use reqwest::Method;

use crate::support::answer::header;
use crate::support::caller::{Caller, send};
use crate::support::system::shared;

const WRITTEN: &str = include_str!("../../../../docs/openapi.json");

#[tokio::test]
async fn what_is_served_is_the_document_of_the_repository_also_at_the_root() {
    let nobody = Caller::of(shared().await);
    for gateway in 0..nobody.gateways() {
        let answer = nobody.get_on(gateway, "/openapi.json").await;
        assert_eq!(answer.header("content-type"), "application/json");
        // Both are too long to be shown.
        assert!(answer.text == WRITTEN, "they differ");
        let root = format!("http://{}/openapi.json", nobody.host(gateway));
        let text = reqwest::get(root).await.unwrap().text().await.unwrap();
        assert!(text == WRITTEN, "they differ");
    }
}

#[tokio::test]
async fn every_operation_of_the_document_is_there_and_asks_for_a_credential_as_it_says() {
    let nobody = Caller::of(shared().await);
    let document: serde_json::Value = serde_json::from_str(WRITTEN).unwrap();
    let mut count = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1").unwrap();
        let path = path.replace("{id}", "env-0000000000000000");
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = send(nobody.request(method.clone(), &path)).await;
            let is_open = operation["security"] == serde_json::json!([{}]);
            if is_open {
                assert!(
                    !matches!(answer.status, 401 | 404 | 405),
                    "{method} {path} {answer:?}"
                );
            } else {
                answer.is_error(401, "unauthorized");
            }
            count += 1;
        }
    }
    assert!(count > 25, "{count}");
}

#[tokio::test]
async fn the_page_is_readable_without_scripts_and_names_every_path() {
    let nobody = Caller::of(shared().await);
    let response = nobody.request(Method::GET, "/docs").send().await.unwrap();
    let content_type = header(response.headers(), "content-type")
        .unwrap()
        .to_owned();
    assert!(content_type.starts_with("text/html"), "{content_type}");
    let page = response.text().await.unwrap();
    assert!(!page.contains("<script"));
    let document: serde_json::Value = serde_json::from_str(WRITTEN).unwrap();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.contains(path.as_str()), "{path}");
    }
}

#[tokio::test]
async fn the_close_codes_of_a_terminal_are_documented() {
    let document: serde_json::Value = serde_json::from_str(WRITTEN).unwrap();
    let attach = &document["paths"]["/api/v1/environments/{id}/attach"]["get"]["description"];
    for code in [1000, 1001, 1009, 1011, 4401, 4404, 4408, 4409, 4502, 4503] {
        assert!(
            attach.as_str().unwrap().contains(&code.to_string()),
            "{code}"
        );
    }
}
