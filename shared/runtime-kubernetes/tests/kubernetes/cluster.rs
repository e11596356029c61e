//! One Kubernetes for all tests of this program.

use agentbox_local::TestKubernetes;
use agentbox_runtime::conformance::{Differences, Subject};
use agentbox_runtime_kubernetes::{Config, Driver};
use serde_json::Value;
use tokio::sync::OnceCell;

static KUBERNETES: OnceCell<TestKubernetes> = OnceCell::const_new();

pub async fn kubernetes() -> &'static TestKubernetes {
    KUBERNETES
        .get_or_init(|| async { TestKubernetes::start().await.expect("Kubernetes starts") })
        .await
}

/// The clusters file's `kubernetes` object, as deploy/local writes it.
pub fn config_of(kubernetes: &TestKubernetes) -> Config {
    let json = serde_json::to_value(&kubernetes.endpoint).expect("an endpoint is JSON");
    serde_json::from_value(json).expect("the driver reads what deploy/local writes")
}

pub async fn config() -> Config {
    config_of(kubernetes().await)
}

/// Each driver has connections of its own, as two processes have.
pub async fn subject() -> Subject<Driver> {
    let config = config().await;
    let driver = || Driver::connect(config.clone()).expect("the configuration is right");
    let differences = Differences {
        pids_of_every_box: Some(kubernetes().await.endpoint.pids_of_a_pod()),
        eviction_takes_the_output: true,
    };
    Subject::new(driver(), driver(), "busybox").differing(differences)
}

/// The API server, as an administrator sees it.
pub struct Kubectl(kube::Client);

pub async fn kubectl() -> Kubectl {
    kubectl_of(config().await).await
}

pub async fn kubectl_of(config: Config) -> Kubectl {
    let path = config.kubeconfig.expect("a kubeconfig");
    let file = kube::config::Kubeconfig::read_from(path).expect("it can be read");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .expect("it is a kubeconfig");
    Kubectl(kube::Client::try_from(config).expect("a client"))
}

impl Kubectl {
    /// The object, or the status that was answered instead.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", content_type)
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

    pub async fn post(&self, path: &str, object: &Value) -> Value {
        let made = self.call("POST", path, Some(object)).await;
        assert!(made["metadata"]["uid"].is_string(), "{path}: {made}");
        made
    }

    /// A JSON merge patch.
    pub async fn patch(&self, path: &str, change: &Value) {
        let patched = self.call("PATCH", path, Some(change)).await;
        assert!(patched["metadata"]["uid"].is_string(), "{path}: {patched}");
    }

    pub async fn delete(&self, path: &str) {
        self.call("DELETE", path, None).await;
    }
}
