//! The complete workflow of the API's user guide. The guide is not in this repository; `workflow.sh` is
//! the script exactly as the guide prints it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

/// The script of the user guide.
const SCRIPT: &str = include_str!("workflow.sh");
/// Its step that installs packages.
const INSTALLATION: &str = "echo \"Installing dependencies...\"\n";
/// What precedes that step: the box gets an index of packages of its own.
const PREPARATION: &str = r#"
curl -s -X POST "$SERVER/environments/$ENV_ID/exec" \
  -H "Authorization: Bearer $TOKEN" \
  -H "Content-Type: application/json" \
  -d "$PACKAGES" | jq -e '.exit_code == 0' || exit 1
"#;
/// The program that makes the index.
const PACKAGES: &str = include_str!("packages.py");

/// Runs the script, and checks what it prints.
pub async fn run_workflow(url: &str, token: &str, within: Duration) {
    let prepared = format!("{PREPARATION}{INSTALLATION}");
    let script = SCRIPT
        .replace("https://your-server", url)
        .replace("your-jwt-token", token)
        .replace(INSTALLATION, &prepared);
    assert!(
        !script.contains("your-"),
        "the server and the token are filled in"
    );
    assert!(script.contains(&prepared), "the script installs packages");
    let packages = json!({ "command": ["python", "-c", PACKAGES] });
    let run = Command::new("bash")
        .args(["-c", &script])
        .env("PACKAGES", packages.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(within, run).await.unwrap().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
}
