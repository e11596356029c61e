//! Images of a registry: who may use them, and when they are removed.

use std::time::{Duration, SystemTime};

use agentbox_contracts::ids::UserId;
use agentbox_runtime::conformance::Subject;
use agentbox_runtime::{BoxPhase, BoxSpec, FailureReason, RegistryCredential, Runtime as _};
use agentbox_runtime_containerd::Driver;
use agentbox_testing::eventually;
use futures::StreamExt as _;

use crate::machine::{another_config, config, subject, subject_of};
use crate::registry::{Registry, login};

/// A box of a new owner.
fn spec(subject: &Subject<Driver>, image: &str, login: Option<RegistryCredential>) -> BoxSpec {
    let mut spec = subject.spec();
    spec.owner = UserId::random();
    image.clone_into(&mut spec.image);
    spec.image_credential = login;
    spec
}

/// Asserts that the box fails as one whose image does not exist.
async fn expect_refused(subject: &Subject<Driver>, spec: &BoxSpec) {
    let phase = subject.start(spec).await.unwrap().phase;
    let is_refused = matches!(
        &phase,
        BoxPhase::Failed { reason: FailureReason::ImagePull, message }
            if message.contains("requires a login")
    );
    assert!(is_refused, "{phase:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn private_image_on_the_machine_is_given_only_to_owners_with_access() {
    let registry = Registry::start(&config().await.deployment, true).await;
    let subject = subject().await;
    let image = registry.image();
    // Before anybody has pulled it.
    expect_refused(&subject, &spec(&subject, &image, None)).await;
    let owner = spec(&subject, &image, Some(login()));
    subject.run(&owner).await.unwrap();
    let wrong = RegistryCredential {
        password: "wrong".to_owned(),
        ..login()
    };
    for (image, credential) in [
        (image.clone(), None),
        (image.clone(), Some(wrong)),
        (registry.image_by_digest(), None),
    ] {
        expect_refused(&subject, &spec(&subject, &image, credential)).await;
    }
    let other = spec(&subject, &image, Some(login()));
    subject.run(&other).await.unwrap();
    // The owner's next box needs no request, and neither does one that runs.
    let requests = registry.requests();
    let mut again = spec(&subject, &image, Some(login()));
    again.owner.clone_from(&owner.owner);
    subject.run(&again).await.unwrap();
    let still = subject.first.ensure(&owner, 1).await.unwrap();
    assert!(matches!(still.phase, BoxPhase::Running { .. }), "{still:?}");
    assert_eq!(registry.requests(), requests);
    // Another process has no proofs, and the record.
    let mut later = spec(&subject, &image, None);
    later.owner.clone_from(&owner.owner);
    let refused = subject.second.ensure(&later, 1).await.unwrap();
    assert!(
        matches!(refused.phase, BoxPhase::Failed { .. }),
        "{refused:?}"
    );
    subject.clean().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn image_that_was_pulled_without_a_login_is_everybodys() {
    let registry = Registry::start(&config().await.deployment, false).await;
    let subject = subject().await;
    let image = registry.image();
    subject.run(&spec(&subject, &image, None)).await.unwrap();
    let requests = registry.requests();
    for credential in [None, Some(login())] {
        let box_spec = spec(&subject, &image, credential);
        subject.run(&box_spec).await.unwrap();
    }
    assert_eq!(registry.requests(), requests);
    subject.clean().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_image_is_removed_above_the_watermark_and_pulled_again() {
    let registry = Registry::start(&config().await.deployment, false).await;
    let mut config = another_config().await;
    (config.image_gc_high_percent, config.image_gc_low_percent) = (1, 0);
    // The records of other tests' images stay out of it.
    let records = config.state_dir.join("image-records");
    config.image_records_dir = Some(records.clone());
    let subject = subject_of(&config);
    let image = registry.image();
    let spec_of = || spec(&subject, &image, None);
    let first = spec_of();
    subject.run(&first).await.unwrap();
    // As if it was used long ago.
    let entries = std::fs::read_dir(records.join("pulled-images")).unwrap();
    let record = entries
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_to_string(path).unwrap() == image)
        .unwrap();
    let old = SystemTime::now() - Duration::from_secs(3_600);
    let file = std::fs::File::options().write(true).open(&record).unwrap();
    file.set_modified(old).unwrap();
    let mut changes = subject.first.watch().await.unwrap();
    let watch = async { while changes.next().await.is_some() {} };
    let check = async {
        // A running box keeps it.
        subject.first.remove(&first.id).await.unwrap();
        eventually(
            "the image and its record are removed",
            Duration::from_secs(90),
            async || !record.exists(),
        )
        .await;
    };
    assert!(record.exists());
    tokio::select! {
        () = check => {}
        () = watch => panic!("the watch ended"),
    }
    // An image without a record is pulled again only if the machine does not have it.
    let requests = registry.requests();
    subject.run(&spec_of()).await.unwrap();
    assert!(registry.requests() > requests);
    subject.clean().await.unwrap();
}
