//! The workflow of the user guide, with two replicas of each service.

use std::time::Duration;

use agentbox_testing::{Options, System};

use crate::api::Api;
use crate::guide::run_workflow;

/// Including `pip install`.
const DEADLINE: Duration = Duration::from_secs(240);

/// Runs the guide's script on a system.
pub async fn run_script(system: &System, token: &str) {
    run_workflow(system.url(), token, DEADLINE).await;
}

#[tokio::test]
async fn guide_workflow_runs_as_written_and_leaves_no_box() {
    let system = System::start(Options::default().replicas(2)).await.unwrap();
    let api = Api::of(&system).await;
    run_script(&system, &api.token).await;

    let list = api.list().await;
    assert_eq!(list["total"], 1, "one environment, not doubled: {list}");
    let id = list["environments"][0]["id"].as_str().unwrap();
    api.wait_for_status(id, "terminated").await;
    system.stop().await;
}
