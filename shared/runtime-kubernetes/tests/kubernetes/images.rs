//! Images of a registry that requires a login.

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::conformance::eventually;
use agentbox_runtime::{BoxPhase, FailureReason, RegistryCredential, Runtime as _};
use agentbox_testing::boxd;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use crate::cluster::{config, kubectl, kubernetes, subject, subject_with};

/// Pushes an image of boxd alone, without a shell, to the private registry; returns its name.
async fn push_private_image() -> String {
    // A new name, because the node does not pull an image that it already has.
    let name = format!("team/private:{}", EnvironmentId::random());
    let pushed = kubernetes().await.push_program(&boxd(), &name).await;
    pushed.unwrap()
}

#[tokio::test]
async fn private_image_needs_the_pull_secret() {
    let image = push_private_image().await;
    let (mut closed, open) = (config().await, config().await);
    // The login for boxd's image does not pull another image of the same registry.
    closed.shared_pull_secrets.clear();
    closed.image_pull_deadline_s = 1;
    let closed = subject_with(&closed);
    let mut spec = closed.spec();
    spec.image.clone_from(&image);
    let phase = closed.start(&spec).await.unwrap().phase;
    let names_cause = matches!(
        &phase,
        BoxPhase::Failed { reason: FailureReason::ImagePull, message } if message.contains("requires a login")
    );
    assert!(names_cause, "{phase:?}");
    closed.clean().await.unwrap();

    let open = subject_with(&open);
    let mut spec = open.spec();
    spec.image = image;
    spec.command = Some(vec!["/boxd".to_owned(), "--version".to_owned()]);
    let end = open.run_to_end(&spec).await.unwrap();
    assert_eq!(end.exit_code, 0, "{end:?}");
    open.clean().await.unwrap();
}

#[tokio::test]
async fn private_image_is_pulled_with_the_owners_credential_and_given_to_no_other_owner() {
    let image = push_private_image().await;
    let mut config = config().await;
    config.shared_pull_secrets.clear();
    config.image_pull_deadline_s = 1;
    let subject = subject_with(&config);
    let registry = kubernetes().await.endpoint.registry().unwrap().to_string();
    let secret = format!(
        "/api/v1/namespaces/{}/secrets/{}",
        config.system_namespace, config.image_pull_secrets[0]
    );
    let secret = kubectl().await.get(&secret).await;
    let secret: Secret = serde_json::from_value(secret).unwrap();
    let logins = &secret.data.unwrap()[".dockerconfigjson"].0;
    let logins: serde_json::Value = serde_json::from_slice(logins).unwrap();
    let login = |field: &str| {
        logins["auths"][&registry][field]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let credential = RegistryCredential {
        username: login("username"),
        password: login("password"),
    };
    let mut owner = subject.spec();
    owner.image.clone_from(&image);
    owner.command = Some(vec!["/boxd".to_owned(), "--version".to_owned()]);
    let mut stranger = owner.clone();
    (stranger.id, stranger.owner) = (EnvironmentId::random(), UserId::random());
    owner.image_credential = Some(credential);
    let end = subject.run_to_end(&owner).await.unwrap();
    assert_eq!(end.exit_code, 0, "{end:?}");
    // The node has the image now.
    let phase = subject.start(&stranger).await.unwrap().phase;
    let is_refused = matches!(
        &phase,
        BoxPhase::Failed { reason: FailureReason::ImagePull, message } if message.contains("requires a login")
    );
    assert!(is_refused, "{phase:?}");
    subject.first.remove(&stranger.id).await.unwrap();
    subject.clean().await.unwrap();
}

/// The kubelet's first attempt has no login, as when the kubelet has not seen a new pull secret
/// yet. The second attempt has the login, and the box starts.
#[tokio::test]
async fn login_added_after_the_first_refused_pull_starts_the_box() {
    let image = push_private_image().await;
    let kubectl = kubectl().await;
    let mut config = config().await;
    // A pull secret without a login, until the first pull was refused.
    let late = format!("late-{}", EnvironmentId::random());
    let login = std::mem::replace(&mut config.shared_pull_secrets, vec![late.clone()]);
    let secrets = format!("/api/v1/namespaces/{}/secrets", config.system_namespace);
    let no_login = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": late },
        "stringData": { ".dockerconfigjson": "{\"auths\":{}}" },
    });
    kubectl.post(&secrets, &no_login).await;
    // The node pulls boxd's image with the real login, unless it has the image already.
    let warm = subject().await;
    warm.run(&warm.spec()).await.unwrap();
    let late_login = subject_with(&config);
    let mut spec = late_login.spec();
    spec.image = image;
    spec.command = Some(vec!["/boxd".to_owned(), "--version".to_owned()]);
    let refused = late_login.first.ensure(&spec, 1);
    let seen_refused = eventually("the kubelet's first pull is refused", || async {
        let seen = late_login.second.get(&spec.id).await?;
        Ok(seen.map(|seen| seen.phase).filter(|phase| {
            matches!(phase, BoxPhase::Starting { message } if message.contains("trying again"))
                || matches!(phase, BoxPhase::Failed { .. })
        }))
    });
    let (_, seen_refused) = tokio::join!(refused, async {
        let seen = seen_refused.await;
        let real = kubectl.get(&format!("{secrets}/{}", login[0])).await;
        let copy = format!("/api/v1/namespaces/agentbox-{}/secrets/{late}", spec.id);
        kubectl.patch(&copy, &json!({ "data": real["data"] })).await;
        seen
    });
    let phase = seen_refused.unwrap();
    assert!(matches!(phase, BoxPhase::Starting { .. }), "{phase:?}");
    let end = late_login.run_to_end(&spec).await.unwrap();
    assert_eq!(end.exit_code, 0, "{end:?}");
    kubectl.delete(&format!("{secrets}/{late}")).await;
    late_login.clean().await.unwrap();
    warm.clean().await.unwrap();
}
