//! The chart with stores and secrets from outside: Postgres and NATS run outside the cluster.

use std::net::{Ipv4Addr, SocketAddr};

use agentbox_testing::{Components, Options, System};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, NAMESPACE, apply};
use crate::helm::chart;
use crate::load::Client;

const RELEASE: &str = "elsewhere";
const ADMIN_PASSWORD: &str = "brought-from-outside";

/// A TCP proxy on a port of this machine that the cluster's Pods can reach.
struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn to(at: Ipv4Addr, port: u16) -> Self {
        let listener = TcpListener::bind((at, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                    if let Ok(mut far) = far {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn port_of(url: &str) -> u16 {
    let authority = url.split("://").nth(1).unwrap().split('/').next().unwrap();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}

/// Installs a release with external stores and existing secrets, and uses it.
pub async fn release_uses_external_stores_and_secrets(cluster: &Cluster) {
    let stores = System::start(Options::components(Components {
        postgres: true,
        nats: true,
        ..Components::NONE
    }));
    let stores = stores.await.unwrap();
    let (nats, postgres) = (
        stores.nats.clone().unwrap(),
        stores.postgres.clone().unwrap(),
    );
    let gateway = cluster.kubernetes.endpoint.gateway().unwrap();
    let nats_proxy = Proxy::to(gateway, port_of(&nats.url)).await;
    let postgres_proxy = Proxy::to(gateway, postgres.port).await;

    let database_url = |service: &str| {
        let local = format!("127.0.0.1:{}", postgres.port);
        postgres.urls[service].replace(&local, &postgres_proxy.address.to_string())
    };
    let box_secret = "5a".repeat(32);
    let mut brought = json!({
        "api-gateway": {},
        "auth": {
            "auth-secret": "a5".repeat(32), "admin-password": ADMIN_PASSWORD,
            "database-url": database_url("auth"),
        },
        "scheduler": {
            "box-secret": box_secret, "scheduler-secret": "b6".repeat(32),
            "database-url": database_url("scheduler"),
        },
        "exec-proxy": { "box-secret": box_secret },
        "webhooks": {
            "webhooks-secret": "c7".repeat(32), "database-url": database_url("webhooks"),
        },
        "provisioner": {},
    });
    let secrets: Api<Secret> = cluster.api();
    for (service, data) in brought.as_object_mut().unwrap() {
        data["nats-password"] = json!(nats.passwords[service]);
        let name = format!("brought-{service}");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "stringData": data,
        });
        apply(&secrets, &name, &secret).await;
    }

    install(cluster, &nats_proxy, &postgres_proxy).await;
    let stateful: Api<StatefulSet> = cluster.api();
    let selected = ListParams::default().labels(&format!("app.kubernetes.io/instance={RELEASE}"));
    assert!(stateful.list(&selected).await.unwrap().items.is_empty());
    let made = secrets.list(&selected).await.unwrap().items;
    assert!(made.is_empty(), "the chart created a Secret: {made:?}");

    let url = cluster.url_of(&format!("{RELEASE}-agentbox")).await;
    let client = Client::login(&url, ADMIN_PASSWORD, true).await;
    let id = client.create("elsewhere", json!({})).await.unwrap();
    client.wait_for_status(&id, &["running"]).await.unwrap();
    client.exec(&id, "hello").await.unwrap();
    client.delete(&id).await.unwrap();
    client.wait_for_status(&id, &["terminated"]).await.unwrap();
    let words = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"];
    cluster.helm.succeeds(&words).await;
    stores.stop().await;
}

async fn install(cluster: &Cluster, nats: &Proxy, postgres: &Proxy) {
    let mut values = cluster.values();
    let own = |service: &str| json!({ "existingSecret": format!("brought-{service}") });
    values["services"] = json!({
        "apiGateway": own("api-gateway"), "auth": own("auth"),
        "scheduler": own("scheduler"), "execProxy": own("exec-proxy"),
        "webhooks": own("webhooks"), "provisioner": own("provisioner"),
    });
    values["nats"] = json!({ "enabled": false, "url": format!("nats://{}", nats.address) });
    values["postgres"] = json!({ "enabled": false });
    let open = |proxy: &Proxy| -> Value {
        json!({
            "to": [{ "ipBlock": { "cidr": format!("{}/32", proxy.address.ip()) } }],
            "ports": [{ "protocol": "TCP", "port": proxy.address.port() }],
        })
    };
    values["networkPolicy"] = json!({ "extraEgress": [open(nats), open(postgres)] });
    let values = cluster.helm.values("external.json", &values);
    let chart = chart().display().to_string();
    let words = [
        "install",
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--values",
        &values,
        "--wait",
        "--timeout",
        "3m",
    ];
    let output = cluster.helm.run(&words).await;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("helm {words:?}: {stderr}\n{}", cluster.report().await);
    }
}
