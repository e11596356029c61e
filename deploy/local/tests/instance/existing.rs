//! Boxes on a Kubernetes that was there before, and is somebody else's.

use agentbox_local::{ExistingKubernetes, Options, Parts, System, TestKubernetes, Tools};

use crate::api::Api;

#[tokio::test]
async fn the_guides_workflow_runs_on_a_kubernetes_that_was_there() {
    let theirs = TestKubernetes::start().await.unwrap();
    // As every real one has.
    let tools = Tools::provide(|_| {}).await.unwrap();
    let images = tempfile::tempdir().unwrap();
    let dns = theirs.endpoint.add_dns(&tools, images.path());
    dns.await.unwrap();
    let existing = ExistingKubernetes {
        kubeconfig: theirs.endpoint.kubeconfig.clone(),
        boxd_image: theirs.endpoint.boxd_image.clone(),
        cluster_cidrs: theirs.endpoint.cluster_cidrs.clone(),
    };
    let services = Parts {
        containerd: false,
        ..Parts::ALL
    };
    let options = Options::parts(services).on(existing).replicas(2);
    let system = System::start(options).await.unwrap();
    let said = crate::workflow::run_script(&system, &Api::of(&system).await.token).await;
    for expected in ["Environment is running!", "Array mean: 3.0", "Done!"] {
        assert!(said.contains(expected), "{expected} is missing in:\n{said}");
    }
    system.stop().await;
    theirs.system.stop().await;
}
