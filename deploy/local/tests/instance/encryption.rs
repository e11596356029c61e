//! An instance whose connections to NATS are encrypted, and what the environment of a service shows.

use agentbox_testing::{Options, System};

use crate::api::Api;

#[tokio::test]
async fn services_work_with_an_encrypted_nats_and_without_the_password_in_their_environment() {
    let system = System::start(Options::default().nats_tls()).await.unwrap();
    let nats = system.nats.clone().unwrap();
    assert!(nats.url.starts_with("tls://"), "{}", nats.url);
    for service in ["api-gateway", "auth", "scheduler", "exec-proxy"] {
        let pid = system.pids(service)[&0];
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("AGENTBOX_NATS_TLS_CA="), "{service}");
        assert!(!environment.contains(&system.admin.password), "{service}");
    }
    let api = Api::of(&system).await;
    let created = api.create("encrypted").await;
    let id = created["id"].as_str().unwrap();
    api.wait_for_status(id, "running").await;
    assert_eq!(api.exec(id, "echo hello").await["stdout"], "hello\n");
    api.delete(id).await;
    system.stop().await;
}
