//! `/health`, `/health/live`, `/health/ready` while all is well. What they say when it is
//! not: `outages`.

use serde_json::json;

use crate::support::caller::Caller;
use crate::support::system::shared;

#[tokio::test]
async fn the_guides_answer_needs_no_credential() {
    let system = shared().await;
    let nobody = Caller::of(system);
    for caller in [nobody.clone(), nobody.with("a token that is none")] {
        let body = caller.get("/health").await.is(200);
        assert_eq!(body["status"], "healthy");
        assert!(!body["version"].as_str().unwrap().is_empty());
        assert_eq!(body["kubernetes"]["connected"], true);
        assert!(!body["kubernetes"]["version"].as_str().unwrap().is_empty());
        assert_eq!(body["capacity"]["total_nodes"], 1);
        for field in ["available_cpu", "available_memory"] {
            assert!(body["capacity"][field].is_string(), "{body}");
        }
        assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
    }
}

#[tokio::test]
async fn each_replica_says_that_it_lives_and_is_ready() {
    let nobody = Caller::of(shared().await);
    for gateway in 0..nobody.gateways() {
        for path in ["/health/live", "/health/ready"] {
            let body = nobody.get_on(gateway, path).await.is(200);
            assert_eq!(body, json!({"status": "ok"}), "{path}");
        }
    }
}

#[tokio::test]
async fn metrics_are_on_a_port_of_their_own() {
    let system = shared().await;
    let nobody = Caller::of(system);
    nobody.get("/metrics").await.is_error(404, "not_found");
    nobody.get_on(0, "/health").await.is(200);
    let admin = system.admin_url("api-gateway", 0).unwrap();
    let metrics = reqwest::get(format!("{admin}/metrics")).await.unwrap();
    let text = metrics.text().await.unwrap();
    // By route, never by path: no id is a label.
    assert!(text.contains("/api/v1/health"), "{text}");
    assert!(!text.contains("env-"), "{text}");
}
