//! The complete workflow of the API's user guide, with two replicas of each service. The guide is
//! not in this repository; `workflow.sh` is the script exactly as the guide prints it.

use std::process::Stdio;
use std::time::Duration;

use agentbox_testing::{Options, System};
use tokio::process::Command;

use crate::api::Api;

/// The script of the user guide.
const SCRIPT: &str = include_str!("workflow.sh");
/// Including `pip install`.
const DEADLINE: Duration = Duration::from_secs(240);

pub async fn run_script(system: &System, token: &str) -> String {
    let script = SCRIPT
        .replace(
            "SERVER=\"https://your-server/api/v1\"",
            &format!("SERVER=\"{}/api/v1\"", system.url()),
        )
        .replace("TOKEN=\"your-jwt-token\"", &format!("TOKEN=\"{token}\""));
    assert!(
        !script.contains("your-"),
        "the server and the token are filled in"
    );
    let run = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

#[tokio::test]
async fn guide_workflow_runs_as_written_and_leaves_no_box() {
    let system = System::start(Options::default().replicas(2)).await.unwrap();
    let api = Api::of(&system).await;
    let stdout = run_script(&system, &api.token).await;
    for expected in [
        "Environment is running!",
        "NumPy version: ",
        "Array mean: 3.0",
        "Done!",
    ] {
        assert!(
            stdout.contains(expected),
            "{expected} is missing in:\n{stdout}"
        );
    }

    let list = api.list().await;
    assert_eq!(list["total"], 1, "one environment, not doubled: {list}");
    let id = list["environments"][0]["id"].as_str().unwrap();
    api.wait_for_status(id, "terminated").await;
    system.stop().await;
}
