//! A Kubernetes that meets the chart's requirements: DNS, volumes, images.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use agentbox_local::addons::{self, Tools};
use agentbox_local::{Archive, build_program_image, build_services_image, build_store_images};
use agentbox_testing::{TestKubernetes, bin_dir, boxd};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod, Secret, Service};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::helm::Helm;

pub const NAMESPACE: &str = "agentbox-system";
pub const RELEASE: &str = "agentbox";
pub const SERVICES: [&str; 5] = ["auth", "scheduler", "exec-proxy", "webhooks", "api-gateway"];
/// The Secret with the login of the cluster's registry, for all images.
pub const PULL_SECRET: &str = "registry";
/// The consumer of environment events. Pods with its name as their label `app` may connect to NATS.
pub const EVENT_CONSUMER: &str = "billing";
/// The gateway's Secret, created outside the chart.
const OWN_SECRET: &str = "made-elsewhere";
const STORAGE_CLASS: &str = "node";

pub struct Cluster {
    pub kubernetes: TestKubernetes,
    pub client: Client,
    pub helm: Helm,
    services: Archive,
    boxd: Archive,
    nats: Archive,
    postgres: Archive,
    /// The directory of the images' archives.
    _images: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let tools = Tools::provide(|step| println!("{step}")).await.unwrap();
        let images = tempfile::tempdir().unwrap();
        let (programs, boxd_program) = (bin_dir(), boxd());
        let services = build_services_image(&programs, "agentbox.local/agentbox", images.path());
        let services = services.await.unwrap();
        let boxd =
            build_program_image(&boxd_program, "agentbox.local/agentbox-boxd", images.path());
        let boxd = boxd.await.unwrap();
        let (nats, postgres) = build_store_images(images.path()).await.unwrap();
        let kubernetes = TestKubernetes::start().await.unwrap();
        let endpoint = &kubernetes.endpoint;
        let stores = addons::import(endpoint, [&nats, &postgres]);
        stores.await.unwrap();
        // Tags that follow from the content, because the node keeps images.
        for image in [&services, &boxd] {
            let name = image.image.rsplit('/').next().unwrap();
            let name = format!("team/{name}");
            addons::push(endpoint, image, &name).await.unwrap();
        }
        let dns = addons::add_dns(endpoint, &tools, images.path());
        dns.await.unwrap();
        let file = Kubeconfig::read_from(&endpoint.kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        let cluster = Self {
            helm: Helm::new(&tools, &endpoint.kubeconfig),
            client: Client::try_from(config.unwrap()).unwrap(),
            kubernetes,
            services,
            boxd,
            nats,
            postgres,
            _images: images,
        };
        cluster.set_up().await;
        cluster
    }

    async fn set_up(&self) {
        // The services and stores must run under the strictest Pod Security Standard.
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": NAMESPACE, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
            }},
        });
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        apply(&namespaces, NAMESPACE, &namespace).await;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        for name in ["one", "two"] {
            let path = self.kubernetes.endpoint.shared_directory().join(name);
            std::fs::create_dir_all(&path).unwrap();
            let open = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(&path, open).unwrap();
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
                "spec": {
                    "capacity": { "storage": "10Gi" }, "accessModes": ["ReadWriteOnce"],
                    "storageClassName": STORAGE_CLASS, "hostPath": { "path": path },
                },
            });
            apply(&volumes, name, &volume).await;
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": OWN_SECRET },
            "stringData": { "nats-password": "fromOutside1" },
        });
        apply(&self.api::<Secret>(), OWN_SECRET, &secret).await;
    }

    /// The objects of a kind in the release's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The values for this cluster.
    pub fn values(&self) -> Value {
        let endpoint = &self.kubernetes.endpoint;
        let registry = format!("{}/team", endpoint.registry().unwrap());
        let tag_of = |archive: &Archive| archive.image.rsplit(':').next().unwrap().to_owned();
        let storage = json!({ "className": STORAGE_CLASS, "size": "10Gi" });
        // Small requests: two replicas of each service, a third during restarts, and boxes.
        let small = json!({ "requests": { "cpu": "50m", "memory": "32Mi" } });
        let unlimited: serde_json::Map<String, Value> =
            ["AUTH", "FAILED_LOGIN", "CREATE", "EXEC", "OTHER"]
                .iter()
                .map(|of| (format!("AGENTBOX_RATE_LIMIT_{of}"), json!(1_000_000)))
                .collect();
        json!({
            "image": {
                "registry": registry, "tag": tag_of(&self.services), "pullSecrets": [PULL_SECRET],
                "sharedPullSecrets": [PULL_SECRET],
            },
            "boxdImage": { "tag": tag_of(&self.boxd) },
            "cluster": {
                "cidrs": endpoint.cluster_cidrs,
                "settings": { "dns_servers": endpoint.dns_servers, "present_images": "kubelet" },
            },
            "defaults": { "replicas": 2, "resources": small },
            "services": { "apiGateway": { "env": unlimited, "existingSecret": OWN_SECRET } },
            "service": { "type": "NodePort" },
            "eventConsumers": [{
                "name": EVENT_CONSUMER,
                "from": [{ "podSelector": { "matchLabels": { "app": EVENT_CONSUMER } } }],
            }],
            "nats": { "image": self.nats.image, "storage": storage },
            "postgres": { "image": self.postgres.image, "storage": storage },
        })
    }

    /// The URL of the gateway's Service from this machine.
    pub async fn url(&self) -> String {
        self.url_of(RELEASE).await
    }

    /// The URL of a Service with a NodePort.
    pub async fn url_of(&self, name: &str) -> String {
        let service = self.api::<Service>().get(name).await.unwrap();
        let port = service.spec.unwrap().ports.unwrap()[0].node_port.unwrap();
        let node = self.kubernetes.endpoint.node().unwrap();
        format!("http://{node}:{port}")
    }

    /// The bootstrap administrator's password, read as NOTES.txt describes.
    pub async fn password(&self) -> String {
        let secret = self.api::<Secret>().get("agentbox-auth").await.unwrap();
        let password = secret.data.unwrap().remove("admin-password").unwrap();
        String::from_utf8(password.0).unwrap()
    }

    /// Restarts a service and waits, like `kubectl rollout restart` and `kubectl rollout status`.
    pub async fn restart(&self, service: &str) {
        let name = format!("{RELEASE}-{service}");
        let deployments = self.api::<Deployment>();
        let before = self.pods(service).await;
        assert_eq!(before.len(), 2, "{service}: {before:?}");
        deployments.restart(&name).await.unwrap();
        self.wait_until(&format!("{service} is restarted"), async || {
            let deployment = deployments.get(&name).await.unwrap();
            let (wanted, status) = (deployment.metadata.generation, deployment.status.unwrap());
            let all = Some(2);
            let is_out = status.observed_generation >= wanted
                && status.updated_replicas == all
                && status.available_replicas == all
                && status.replicas == all;
            // The old Pods no longer exist.
            is_out && {
                let now = self.pods(service).await;
                now.len() == 2 && now.iter().all(|pod| !before.contains(pod))
            }
        })
        .await;
    }

    /// Deletes the Pod of a store, as a drain of its node does, and waits for the next one.
    pub async fn restart_store(&self, store: &str) {
        let name = format!("{RELEASE}-{store}-0");
        let pods = self.api::<Pod>();
        let uid = pods.get(&name).await.unwrap().metadata.uid;
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        self.wait_until(&format!("{store} is ready again"), async || {
            let Some(pod) = pods.get_opt(&name).await.unwrap() else {
                return false;
            };
            let conditions = pod.status.and_then(|status| status.conditions);
            let mut conditions = conditions.unwrap_or_default().into_iter();
            pod.metadata.uid != uid
                && conditions.any(|one| one.type_ == "Ready" && one.status == "True")
        })
        .await;
    }

    pub async fn pods(&self, service: &str) -> Vec<String> {
        let selector = format!("app.kubernetes.io/component={service}");
        let selected = ListParams::default().labels(&selector);
        let pods = self.api::<Pod>().list(&selected).await.unwrap();
        pods.items
            .into_iter()
            .filter_map(|pod| pod.metadata.name)
            .collect()
    }

    /// The status and the last log lines of the Pods in the release's namespace.
    pub async fn report(&self) -> String {
        let pods = self.api::<Pod>();
        let mut report = String::new();
        for pod in pods.list(&ListParams::default()).await.unwrap() {
            let name = pod.metadata.name.unwrap();
            let status = pod.status.unwrap_or_default();
            let states = status.container_statuses.unwrap_or_default();
            let states = states
                .iter()
                .map(|one| (one.ready, one.restart_count, &one.state));
            let states: Vec<_> = states.collect();
            let conditions = status.conditions.unwrap_or_default();
            let why = conditions.iter().filter_map(|one| one.message.as_ref());
            let why: Vec<_> = why.collect();
            report += &format!("== {name} {:?} {why:?} {states:?}\n", status.phase);
            for previous in [true, false] {
                let last = LogParams {
                    previous,
                    tail_lines: Some(100),
                    ..LogParams::default()
                };
                report += &pods.logs(&name, &last).await.unwrap_or_default();
            }
        }
        report
    }

    pub async fn wait_until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !condition().await {
            assert!(
                begun.elapsed() < Duration::from_secs(180),
                "not reached: {what}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn stop(self) {
        self.kubernetes.system.stop().await;
    }
}

pub async fn apply<K>(api: &Api<K>, name: &str, object: &Value)
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let parameters = PatchParams::apply("operator").force();
    api.patch(name, &parameters, &Patch::Apply(object))
        .await
        .unwrap();
}
