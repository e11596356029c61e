//! The images of a containerd, and the access of its boxes to the network.

use std::time::{Duration, Instant};

use agentbox_testing::TestContainerd;

use crate::pod::{Pod, pull};
use crate::remote_machine::{NAME, RemoteMachine};

#[tokio::test]
async fn python_image_has_the_programs_and_environment_of_the_official_one() {
    let remote = RemoteMachine::start().await;
    let containerd = TestContainerd::start().await.unwrap();
    let endpoint = remote.resolver_of(&containerd.endpoint);
    let pod = Pod::start(&endpoint, "python:3.11-slim").await;
    let version = pod
        .output("python --version; command -v python; command -v pip")
        .await;
    assert!(version.starts_with("Python 3.11."), "{version}");
    assert!(version.contains("/usr/local/bin/python\n/usr/local/bin/pip"));
    assert_eq!(pod.output("echo $LANG; id -u").await, "C.UTF-8\n0");
    pod.output("bash -c true; python -m venv /tmp/v && /tmp/v/bin/pip --version")
        .await;
    let authorities = "import ssl; stats = ssl.create_default_context().cert_store_stats(); \
                       print(stats['x509_ca'] > 0)";
    let authorities = pod.output(&format!("python -c \"{authorities}\"")).await;
    assert_eq!(authorities, "True");
    // Needs name resolution, access to the network and the image's CA certificates.
    let install = format!("pip install --quiet --retries 0 --index-url https://{NAME}/ requests");
    let refused = pod.exec(&install).await;
    assert_eq!(refused.exit_code, 1, "{refused:?}");
    let certificate = remote.certificate();
    pod.output(&format!(
        "printf %s '{certificate}' > /usr/local/share/ca-certificates/remote.crt && \
         update-ca-certificates"
    ))
    .await;
    pod.output(&install).await;
    let imported = pod
        .output("python -c 'import requests; print(requests.__name__)'")
        .await;
    assert_eq!(imported, "requests");
    containerd.system.stop().await;
}

#[tokio::test]
async fn busybox_image_has_applets_and_a_shell() {
    let containerd = TestContainerd::start().await.unwrap();
    let pod = Pod::start(&containerd.endpoint, "busybox").await;
    assert_eq!(pod.output("echo a b | awk '{print $2}'").await, "b");
    assert_eq!(pod.output("/usr/bin/env true; ls -d /tmp").await, "/tmp");
    assert_eq!(pod.output("id -un").await, "root");
    containerd.system.stop().await;
}

#[tokio::test]
async fn busybox_image_resolves_names_and_fetches_pages() {
    let remote = RemoteMachine::start().await;
    let containerd = TestContainerd::start().await.unwrap();
    let pod = Pod::start(&remote.resolver_of(&containerd.endpoint), "busybox").await;
    // A name in the hosts file of this box, and one that only a resolver knows.
    pod.output("mkdir /www && echo found > /www/page && httpd -h /www")
        .await;
    pod.output("echo 127.0.0.1 here >> /etc/hosts").await;
    assert_eq!(pod.output("wget -qO- http://here/page").await, "found");
    let looked_up = pod.output(&format!("nslookup {NAME}")).await;
    assert!(looked_up.contains(&format!("Name:\t{NAME}")), "{looked_up}");
    let text = pod
        .output(&format!("wget -O- http://{NAME}/page 2>&1"))
        .await;
    for expected in [
        format!("{NAME} ({}:80)", remote.address),
        "found there".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected} is missing in {text}");
    }
    containerd.system.stop().await;
}

#[tokio::test]
async fn pull_of_missing_image_fails_within_seconds_with_its_name() {
    let containerd = TestContainerd::start().await.unwrap();
    let begun = Instant::now();
    let error = pull(&containerd.endpoint, "no-such-image-of-ours:1")
        .await
        .unwrap_err();
    assert!(error.contains("no-such-image-of-ours:1"), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    containerd.system.stop().await;
}
