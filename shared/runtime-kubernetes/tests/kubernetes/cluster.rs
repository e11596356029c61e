//! The cluster that the tests of this program share, and clients of it.

use agentbox_runtime::conformance::{Differences, Subject, accounts};
use agentbox_runtime_kubernetes::{Config, Driver};
use agentbox_testing::TestKubernetes;
use serde_json::Value;
use tokio::sync::OnceCell;

static KUBERNETES: OnceCell<TestKubernetes> = OnceCell::const_new();

pub async fn kubernetes() -> &'static TestKubernetes {
    KUBERNETES
        .get_or_init(|| async { TestKubernetes::start().await.expect("Kubernetes starts") })
        .await
}

/// The clusters file's `kubernetes` object, as deploy/local writes it.
pub async fn config() -> Config {
    config_of(kubernetes().await)
}

pub fn config_of(kubernetes: &TestKubernetes) -> Config {
    let mut json = serde_json::to_value(&kubernetes.endpoint).expect("an endpoint is JSON");
    json["allowed_node_labels"] = serde_json::json!(["kubernetes.io/os", "disk"]);
    // Longer than a machine stalls: a claim that waits longer for its box fails.
    json["connect_deadline_ms"] = serde_json::json!(8_000);
    serde_json::from_value(json).expect("the driver reads what deploy/local writes")
}

/// A subject whose two drivers have connections of their own, like two processes.
pub async fn subject() -> Subject<Driver> {
    let differences = Differences {
        cluster_pids_limit: Some(kubernetes().await.endpoint.pod_pids_limit()),
        eviction_deletes_output: true,
        ignores_image_group: true,
        keeps_open_connections: true,
        measures_storage: true,
        shares_user_ids: true,
        refuses_entrypoint: true,
        matches_network_policy: true,
    };
    subject_with(&config().await).with_differences(differences)
}

/// A subject on a node with the images of accounts.
pub async fn subject_with_accounts() -> Subject<Driver> {
    static IMPORTED: OnceCell<()> = OnceCell::const_new();
    let import = || async {
        let images = accounts::images();
        let imported = kubernetes().await.import_accounts(&images).await;
        imported.expect("the images can be imported");
    };
    IMPORTED.get_or_init(import).await;
    subject().await
}

pub fn subject_with(config: &Config) -> Subject<Driver> {
    let driver = || Driver::connect(config.clone()).expect("the configuration is right");
    Subject::new(driver(), driver(), "busybox")
}

/// A client of the API server with an administrator's rights.
pub struct Kubectl(kube::Client);

pub async fn kubectl() -> Kubectl {
    kubectl_of(&config().await).await
}

pub async fn kubectl_of(config: &Config) -> Kubectl {
    let path = config.kubeconfig.as_ref().expect("a kubeconfig");
    let file = kube::config::Kubeconfig::read_from(path).expect("the kubeconfig can be read");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .expect("the kubeconfig is valid");
    Kubectl(kube::Client::try_from(config).expect("a client"))
}

impl Kubectl {
    /// Sends a request; returns the object, or the status of an error.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", kind)
            .body(
                body.map(|body| body.to_string().into_bytes())
                    .unwrap_or_default(),
            )
            .expect("a request");
        match self.0.request_text(request).await {
            Ok(text) => serde_json::from_str(&text).expect("JSON"),
            Err(kube::Error::Api(status)) => serde_json::to_value(status).expect("JSON"),
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).await
    }

    /// Reads a log.
    pub async fn text(&self, path: &str) -> String {
        let request = http::Request::get(path)
            .body(Vec::new())
            .expect("a request");
        self.0.request_text(request).await.expect("a log")
    }

    /// Applies a merge patch.
    pub async fn patch(&self, path: &str, fields: &Value) {
        let changed = self.call("PATCH", path, Some(fields)).await;
        assert!(changed["metadata"]["uid"].is_string(), "{path}: {changed}");
    }

    pub async fn post(&self, path: &str, object: &Value) -> Value {
        let made = self.call("POST", path, Some(object)).await;
        assert!(made["metadata"]["uid"].is_string(), "{path}: {made}");
        made
    }

    pub async fn delete(&self, path: &str) {
        self.call("DELETE", path, None).await;
    }
}
