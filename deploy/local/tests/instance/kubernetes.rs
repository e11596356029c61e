//! A Kubernetes of one node starts, runs the product, and leaves nothing.

use std::path::Path;

use agentbox_testing::{Components, KubernetesEndpoint, Options, System, TestKubernetes};

use crate::api::Api;
use crate::host::tool;

/// Everything of a Kubernetes instance that exists on this machine.
pub fn leftovers(cluster: &KubernetesEndpoint) -> Vec<String> {
    let name = &cluster.deployment;
    let run = format!("/run/agentbox/{name}");
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&run))
            .map(str::to_owned),
    );
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&run) {
            found.push(format!("process {line}"));
        }
    }
    let network = cluster.cluster_cidrs[0].to_string();
    for (program, words) in [
        ("ip", &["-4", "route"][..]),
        ("ip", &["-4", "addr"]),
        ("nft", &["list", "ruleset"]),
    ] {
        let output = tool(program, words);
        let ours = output
            .lines()
            .filter(|line| line.contains(name.as_str()) || line.contains(&network));
        found.extend(ours.map(str::to_owned));
    }
    for entry in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = entry.path().join(format!("agentbox-{name}"));
        if group.exists() {
            found.push(group.display().to_string());
        }
    }
    if Path::new(&run).exists() {
        found.push(run);
    }
    found
}

#[tokio::test]
async fn stopped_kubernetes_leaves_nothing() {
    let kubernetes = TestKubernetes::start().await.unwrap();
    let endpoint = kubernetes.endpoint.clone();
    assert!(
        !leftovers(&endpoint).is_empty(),
        "the search finds nothing of a running instance"
    );
    kubernetes.system.stop().await;
    assert_eq!(leftovers(&endpoint), Vec::<String>::new());
}

#[tokio::test]
async fn guide_workflow_runs_as_written_on_kubernetes() {
    let options = Options::components(Components::ALL_ON_KUBERNETES).replicas(2);
    let system = System::start(options).await.unwrap();
    crate::workflow::run_script(&system, &Api::of(&system).await.token).await;
    let endpoint = system.kubernetes.clone().unwrap();
    system.stop().await;
    assert_eq!(leftovers(&endpoint), Vec::<String>::new());
}
