//! The images of a containerd, and the access of its boxes to the network.

use std::time::{Duration, Instant};

use agentbox_testing::TestContainerd;

use crate::pod::{Pod, pull};

#[tokio::test]
async fn python_image_has_the_programs_and_environment_of_the_official_one() {
    let containerd = TestContainerd::start().await.unwrap();
    let pod = Pod::start(&containerd.endpoint, "python:3.11-slim").await;
    let version = pod
        .output("python --version; command -v python; command -v pip")
        .await;
    assert!(version.starts_with("Python 3.11."), "{version}");
    assert!(version.contains("/usr/local/bin/python\n/usr/local/bin/pip"));
    assert_eq!(pod.output("echo $LANG; id -u").await, "C.UTF-8\n0");
    pod.output("bash -c true; python -m venv /tmp/v && /tmp/v/bin/pip --version")
        .await;
    // Needs name resolution, access to the network and the machine's CA certificates.
    pod.output("pip install --quiet requests").await;
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
    let containerd = TestContainerd::start().await.unwrap();
    let pod = Pod::start(&containerd.endpoint, "busybox").await;
    // A name in the hosts file of this box, and one that only a resolver knows.
    pod.output("mkdir /www && echo found > /www/page && httpd -h /www")
        .await;
    pod.output("echo 127.0.0.1 here >> /etc/hosts").await;
    assert_eq!(pod.output("wget -qO- http://here/page").await, "found");
    let looked_up = pod.output("nslookup pypi.org").await;
    assert!(looked_up.contains("Name:\tpypi.org"), "{looked_up}");
    // Any response will do: it shows that wget resolved the name.
    let result = pod.exec("wget -O /dev/null http://pypi.org 2>&1").await;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    assert!(
        result.exit_code <= 1 && text.contains("pypi.org ("),
        "{result:?}"
    );
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
