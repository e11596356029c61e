//! Name resolution of boxes: by the cluster's DNS, or by the resolvers of the configuration.

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::eventually;

use super::hosts::{ANY, Listener, PRIVATE, remote_machine};
use super::probe::{Targets, name, reached_from_box, reached_from_pod, tcp, udp};
use super::{cluster_address, internet, wide_open};
use crate::cluster::{config, kubectl, kubernetes, subject_with};

const API: &str = "kubernetes.default.svc.cluster.local.";

#[tokio::test]
async fn cluster_dns_answers_only_boxes_with_internet_access() {
    let (mut config, kubectl) = (config().await, kubectl().await);
    config.dns_servers.clear();
    kubernetes().await.add_dns().await.unwrap();
    let pods = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns";
    let address = eventually("the DNS server is ready", || async {
        let pod = kubectl.get(pods).await["items"][0].clone();
        let is_ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        Ok(pod["status"]["podIP"]
            .as_str()
            .filter(|_| is_ready)
            .map(str::to_owned))
    })
    .await
    .unwrap();
    // The DNS Service and its Pod are open on port 53. Another port of the Pod is closed.
    let service = cluster_address(&config, 1024 + 10);
    let open = Targets::from([name(API), tcp(service, 53), tcp(&address, 53)]);
    let mut all = open.clone();
    all.insert(tcp(&address, 8181));
    assert_eq!(reached_from_pod("default", &all).await, all);
    let subject = subject_with(&config);
    let no_internet = NetworkPolicy {
        allow_internet: false,
        allow_cluster_internal: false,
        ..wide_open()
    };
    let boxes_only = NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    };
    for (policy, expected) in [
        (None, &open),
        (Some(internet()), &open),
        (Some(NetworkPolicy::default()), &Targets::new()),
        (Some(no_internet), &Targets::new()),
        (Some(boxes_only), &Targets::new()),
    ] {
        let reached = reached_from_box(&subject, policy.clone(), &all).await;
        assert_eq!(&reached, expected, "{policy:?}");
    }
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn configured_resolver_is_reachable_on_port_53_only() {
    let remote = remote_machine().await;
    let resolver = Listener::on(remote, PRIVATE, 53);
    let other = Listener::on(remote, ANY, 0);
    let open = Targets::from([tcp(PRIVATE, 53), udp(PRIVATE, 53)]);
    let mut all = open.clone();
    all.insert(tcp(PRIVATE, other.port));
    assert_eq!(reached_from_pod("default", &all).await, all);
    let mut config = config().await;
    config.dns_servers = vec![PRIVATE.parse().unwrap()];
    let subject = subject_with(&config);
    assert_eq!(reached_from_box(&subject, None, &all).await, open);
    let received = resolver.received();
    let closed = reached_from_box(&subject, Some(NetworkPolicy::default()), &all).await;
    assert_eq!((closed, resolver.received()), (Targets::new(), received));
    subject.clean().await.unwrap();
}
