//! Claims on Kubernetes: without the API server, and the objects afterwards.

use agentbox_runtime::conformance::{Violation, eventually};
use agentbox_runtime::{BoxConnector as _, NetworkPolicy, Runtime as _, RuntimeError};
use agentbox_runtime_kubernetes::Driver;
use serde_json::{Value, json};

use crate::cluster::{config, kubectl, subject};

const OWNER: &str = "agentbox.dev/owner";
const WARM: &str = "agentbox.dev/warm";

#[tokio::test]
async fn claim_needs_no_api_server_and_ensure_completes_the_objects() {
    let (s, kubectl) = (subject().await, kubectl().await);
    let empty = tempfile::NamedTempFile::new().unwrap();
    let mut without_api_server = config().await;
    without_api_server.kubeconfig = Some(empty.path().to_owned());
    let driver = Driver::connect(without_api_server).unwrap();
    let mut spec = s.script("echo \"for $WHO\"; exec sleep 600");
    spec.env.insert("WHO".to_owned(), "me".to_owned());
    spec.labels.insert("team".to_owned(), "ci".to_owned());
    let address = s.run_warm(&spec).await.unwrap();
    let digest = s.second.image_digest(&spec.image).await.unwrap();
    let is_digest = |digest: &String| digest.starts_with("sha256:") && digest.len() == 71;
    assert!(digest.as_ref().is_some_and(is_digest), "{digest:?}");
    let unused = s.second.image_digest("busybox:unused").await.unwrap();
    assert_eq!(unused, None);
    let at = format!("/api/v1/namespaces/agentbox-{}", spec.id);
    let main = format!("{at}/pods/main");
    for path in [&at, &main] {
        let object = kubectl.get(path).await;
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"][OWNER], Value::Null, "{path}");
        assert_eq!(metadata["annotations"][WARM], "true", "{path}");
    }

    // The control: this driver reaches no API server.
    assert!(driver.get(&spec.id).await.is_err());
    driver.claim(&spec, 1, address).await.unwrap();
    let printed = eventually("the command prints", || async {
        let lines = s.second.last_output(&spec.id, 1_000).await?;
        Ok(lines.first().map(|entry| entry.line.clone()))
    });
    assert_eq!(printed.await.unwrap(), b"for me");

    s.second.ensure(&spec, 1).await.unwrap();
    let namespace = kubectl.get(&at).await;
    let pod = kubectl.get(&main).await;
    for object in [&namespace, &pod] {
        let owner = &object["metadata"]["labels"][OWNER];
        assert_eq!(*owner, json!(spec.owner.to_string()), "{object}");
    }
    assert_eq!(namespace["metadata"]["annotations"][WARM], Value::Null);
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["user.agentbox.dev/team"], "ci");
    s.clean().await.unwrap();
}

#[tokio::test]
async fn policy_that_opens_the_owners_boxes_is_left_to_ensure() {
    let s = subject().await;
    let claims = async {
        let mut spec = s.spec();
        spec.isolation.network_policy = Some(NetworkPolicy {
            allow_cluster_internal: true,
            ..NetworkPolicy::default()
        });
        let address = s.run_warm(&spec).await?;
        let refused = s.first.claim(&spec, 1, address).await;
        assert!(
            matches!(refused, Err(RuntimeError::NotClaimable(_))),
            "{refused:?}"
        );
        s.run(&spec).await?;
        // boxd has the first claim.
        let mut other = spec.clone();
        other.env.insert("A".to_owned(), "1".to_owned());
        other.isolation.network_policy = Some(NetworkPolicy::default());
        let refused = s.second.claim(&other, 1, address).await;
        assert!(
            matches!(refused, Err(RuntimeError::NotClaimable(_))),
            "{refused:?}"
        );
        Ok(())
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}
