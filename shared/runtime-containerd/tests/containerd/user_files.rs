//! Images whose user files are no ordinary files.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime::{BoxPhase, FailureReason};
use agentbox_runtime_containerd::Driver;
use agentbox_testing::eventually;

use crate::machine::{import_accounts, subject};

const IMAGE: &str = "agentbox.local/user-files";
const CASES: [(&str, &str); 7] = [
    ("passwd-fifo", "its passwd file is not a regular file"),
    ("passwd-device", "its passwd file is not a regular file"),
    ("passwd-directory", "its passwd file is not a regular file"),
    (
        "passwd-loop",
        "its passwd file is a link that leads to no file of the image",
    ),
    (
        "passwd-link",
        "its passwd file is a link that leads to no file of the image",
    ),
    ("passwd-large", "its passwd file is larger than 1 MiB"),
    ("group-device", "its group file is not a regular file"),
];

#[tokio::test(flavor = "multi_thread")]
async fn image_whose_user_file_is_no_ordinary_file_fails_at_once_and_leaves_no_mount() {
    let image = |tag: &str| (format!("{IMAGE}:{tag}"), "{}".to_owned());
    let mut images: Vec<_> = CASES.iter().map(|(tag, _)| image(tag)).collect();
    images.push(image("control"));
    import_accounts(images).await;
    let s = subject().await;
    let outcome = run(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
    let left = views();
    let expected = format!("each view is unmounted: {left:?}");
    eventually(&expected, Duration::from_secs(30), async || {
        views().is_disjoint(&left)
    })
    .await;
}

/// The mounts of views. Other tests' drivers have some too, for a moment.
fn views() -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let views = mounts.lines().filter(|line| line.contains("agentbox-view"));
    views.map(str::to_owned).collect()
}

async fn run(s: &Subject<Driver>) -> Result<(), Violation> {
    let spec = |tag: &str| {
        let mut spec = s.spec();
        spec.image = format!("{IMAGE}:{tag}");
        spec.command = Some(vec!["/ids".to_owned()]);
        spec
    };
    let end = s.run_to_end(&spec("control")).await?;
    check(end.exit_code == 0, || format!("{end:?}"))?;
    for (tag, cause) in CASES {
        let spec = spec(tag);
        let begun = Instant::now();
        let phase = s.start(&spec).await?.phase;
        let took = begun.elapsed();
        // A refusal for an unknown reason fails a box after a minute.
        check(took < Duration::from_secs(50), || {
            format!("{tag}: {took:?}")
        })?;
        let is_expected = matches!(
            &phase,
            BoxPhase::Failed { reason: FailureReason::ImageInvalid, message } if message.contains(cause)
        );
        check(is_expected, || format!("{tag}: {phase:?}"))?;
    }
    Ok(())
}
