//! Images of a registry that wants a login.

use agentbox_contracts::ids::EnvironmentId;
use agentbox_local::{boxd, of_program};
use agentbox_runtime::{BoxPhase, FailureReason};

use crate::cluster::{config, kubernetes, subject_with};

/// A program that ends by itself, without a shell beside it.
async fn pushed() -> String {
    let directory = tempfile::tempdir().unwrap();
    let boxd = boxd();
    let program = of_program(&boxd, "agentbox.local/private:1", directory.path());
    let archive = program.await.unwrap();
    let endpoint = &kubernetes().await.endpoint;
    // The node keeps images, and what it has it does not ask for.
    let name = format!("team/private:{}", EnvironmentId::random());
    endpoint.push(&archive, &name).await.unwrap()
}

#[tokio::test]
async fn a_private_image_comes_with_the_login_and_says_so_without() {
    let image = pushed().await;
    let (mut closed, open) = (config().await, config().await);
    closed.image_pull_secrets.clear();
    closed.image_pull_deadline_s = 1;
    let closed = subject_with(&closed);
    let mut spec = closed.spec();
    spec.image.clone_from(&image);
    let phase = closed.start(&spec).await.unwrap().phase;
    let says_why = matches!(
        &phase,
        BoxPhase::Failed { reason: FailureReason::ImagePull, message } if message.contains("authorization")
    );
    assert!(says_why, "{phase:?}");
    closed.clean().await.unwrap();

    let open = subject_with(&open);
    let mut spec = open.spec();
    spec.image = image;
    spec.command = Some(vec!["/boxd".to_owned(), "--version".to_owned()]);
    let end = open.run_to_end(&spec).await.unwrap();
    assert_eq!(end.exit_code, 0, "{end:?}");
    open.clean().await.unwrap();
}
