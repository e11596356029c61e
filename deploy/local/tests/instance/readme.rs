//! The README's first programs, as a newcomer runs them.

use std::process::Stdio;
use std::time::Duration;

use agentbox_testing::{Options, System};
use tokio::process::Command;

const README: &str = include_str!("../../../../README.md");
const DEADLINE: Duration = Duration::from_secs(150);

/// The README's block in `language` that contains `text`.
fn block(language: &str, text: &str) -> &'static str {
    README
        .split(&format!("```{language}\n"))
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains(text))
        .unwrap_or_else(|| panic!("no {language} block with {text}"))
}

/// The output of `program`, run with the variables of `.agentbox/local.env`.
async fn output(system: &System, interpreter: &str, program: &str) -> String {
    let run = Command::new(interpreter)
        .args(["-c", program])
        .env("AGENTBOX_URL", system.url())
        .env("AGENTBOX_ADMIN_USERNAME", &system.admin.username)
        .env("AGENTBOX_ADMIN_PASSWORD", &system.admin.password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn readme_programs_print_the_result_of_their_command() {
    let system = System::start(Options::default()).await.unwrap();
    let curl = output(&system, "bash", block("sh", "API=")).await;
    assert!(curl.contains("\"stdout\":\"42\\n\""), "{curl}");
    let python = output(&system, "python3", block("python", "urllib")).await;
    assert_eq!(python.trim(), "0 42");
    system.stop().await;
}
