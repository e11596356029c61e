//! `/health`, `/health/live`, `/health/ready` of a healthy system. `outages` tests the others.

use serde_json::json;

use crate::support::caller::Caller;
use crate::support::system::shared;

#[tokio::test]
async fn health_has_the_documented_fields_without_a_credential() {
    let system = shared().await;
    let anonymous = Caller::without_token_on(system);
    for caller in [anonymous.clone(), anonymous.with_token("an invalid token")] {
        let body = caller.get("/health").await.expect_status(200);
        assert_eq!(body["status"], "healthy");
        assert!(!body["version"].as_str().unwrap().is_empty());
        assert_eq!(body["kubernetes"]["connected"], true);
        assert!(!body["kubernetes"]["version"].as_str().unwrap().is_empty());
        for limit in [
            "storage",
            "image_volumes",
            "user_namespaces",
            "bandwidth",
            "connections",
            "block_io",
        ] {
            let enforcement = &body["kubernetes"]["enforcement"][limit];
            assert!(enforcement.is_string(), "{limit}: {body}");
        }
        assert_eq!(body["capacity"]["total_nodes"], 1);
        for field in ["available_cpu", "available_memory"] {
            assert!(body["capacity"][field].is_string(), "{body}");
        }
        assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
    }
}

#[tokio::test]
async fn healthy_replica_is_live_and_ready() {
    let anonymous = Caller::without_token_on(shared().await);
    for gateway in 0..anonymous.gateways() {
        for path in ["/health/live", "/health/ready"] {
            let body = anonymous.get_on(gateway, path).await.expect_status(200);
            assert_eq!(body, json!({"status": "ok"}), "{path}");
        }
    }
}

#[tokio::test]
async fn metrics_are_served_on_the_admin_port_only() {
    let system = shared().await;
    let anonymous = Caller::without_token_on(system);
    anonymous
        .get("/metrics")
        .await
        .expect_error(404, "not_found");
    anonymous.get_on(0, "/health").await.expect_status(200);
    let admin = system.admin_url("api-gateway", 0).unwrap();
    let metrics = reqwest::get(format!("{admin}/metrics")).await.unwrap();
    let text = metrics.text().await.unwrap();
    // Labels have the route's template, never an id.
    assert!(text.contains("/api/v1/health"), "{text}");
    assert!(!text.contains("env-"), "{text}");
}
