//! Boxes on a Kubernetes that AgentBox did not start.

use agentbox_testing::{Components, ExistingKubernetes, Options, System, TestKubernetes};

use crate::api::Api;

#[tokio::test]
async fn guide_workflow_runs_on_an_existing_kubernetes() {
    let theirs = TestKubernetes::start().await.unwrap();
    // Real clusters have a DNS server.
    theirs.add_dns().await.unwrap();
    let existing = ExistingKubernetes {
        kubeconfig: theirs.endpoint.kubeconfig.clone(),
        boxd_image: theirs.endpoint.boxd_image.clone(),
        cluster_cidrs: theirs.endpoint.cluster_cidrs.clone(),
        // Its images were loaded into the node: no registry has them.
        present_images: "kubelet".to_owned(),
    };
    let services = Components {
        containerd: false,
        ..Components::ALL
    };
    let options = Options::components(services).on(existing).replicas(2);
    let system = System::start(options).await.unwrap();
    crate::workflow::run_script(&system, &Api::of(&system).await.token).await;
    system.stop().await;
    theirs.system.stop().await;
}
