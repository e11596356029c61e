//! The guide's complete workflow, as a newcomer runs it, on two replicas of each service.

use std::process::Stdio;
use std::time::Duration;

use agentbox_local::{Options, System};
use tokio::process::Command;

/// As the guide prints it.
const SCRIPT: &str = include_str!("workflow.sh");
/// `pip install` included.
const DEADLINE: Duration = Duration::from_secs(240);

async fn login(system: &System) -> String {
    let reply: serde_json::Value = reqwest::Client::new()
        .post(format!("{}/api/v1/auth/login", system.url()))
        .json(&serde_json::json!({
            "username": system.admin.username,
            "password": system.admin.password,
        }))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    reply["token"].as_str().unwrap().to_owned()
}

async fn run_script(system: &System) -> String {
    let token = login(system).await;
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
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[tokio::test]
async fn the_guides_workflow_runs_as_written_and_nothing_of_it_stays() {
    let system = System::start(Options::default().replicas(2)).await.unwrap();
    let said = run_script(&system).await;
    for expected in [
        "Environment is running!",
        "NumPy version: ",
        "Array mean: 3.0",
        "Done!",
    ] {
        assert!(said.contains(expected), "{expected} is missing in:\n{said}");
    }

    let token = login(&system).await;
    let list = format!("{}/api/v1/environments", system.url());
    let ended = async {
        loop {
            let page: serde_json::Value = reqwest::Client::new()
                .get(&list)
                .bearer_auth(&token)
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            assert_eq!(page["total"], 1, "one environment, not doubled: {page}");
            if page["environments"][0]["status"] == "terminated" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .unwrap();
    system.stop().await;
}
