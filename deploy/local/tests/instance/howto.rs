//! The programs of the pages in `docs`, as a reader runs them after those of the README.
//!
//! The blocks of shell of a page are one script, in their order. Its blocks of Python are one program,
//! which the page runs, or else the end of the script. Answers of 400 and more fail, unless the page
//! prints their status.

use std::process::Stdio;
use std::time::Duration;

use agentbox_testing::{Options, System};
use tokio::process::Command;
use tokio::sync::OnceCell;

const README: &str = include_str!("../../../../README.md");
const FILES: &str = include_str!("../../../../docs/files.md");
const EXECUTIONS: &str = include_str!("../../../../docs/executions.md");
const PORTS: &str = include_str!("../../../../docs/ports.md");
const ENVIRONMENTS: &str = include_str!("../../../../docs/environments.md");
const POOLS: &str = include_str!("../../../../docs/pools.md");

/// The gateway of `make up`, as the pages write it.
const GATEWAY: &str = "127.0.0.1:8080";
const DEADLINE: Duration = Duration::from_secs(150);

/// What precedes the README's first program: the trace of the commands, and the files of the reader. A
/// stream of changes has no end. A machine that stalls may answer 503 or 504, which curl asks again.
const BEGIN: &str = r#"
set -euxo pipefail
curl() {
  case "$*" in
    *%{http_code}*) command curl "$@" ;;
    */files/events*) command curl --max-time 2 "$@" || [ $? = 28 ] ;;
    *) command curl --fail --retry 5 "$@" ;;
  esac
}
mkdir project
printf 'a,b\n1,2\n' | tee data.csv > project/data.csv
"#;

/// What a page needs beyond the README's first program.
const THEN: &str = r#"
KEY=$(curl -s $API/api-keys -H "$AUTH" -H 'Content-Type: application/json' -d '{}' | jq -r .key)
export ID TOKEN KEY
"#;

static SYSTEM: OnceCell<System> = OnceCell::const_new();

/// The blocks of a page in one of these languages, without the indentation of a list.
fn blocks(page: &str, languages: &[&str]) -> Vec<String> {
    let mut blocks = Vec::new();
    // The indentation and the language of the open block.
    let mut open: Option<(usize, &str)> = None;
    for line in page.lines() {
        let text = line.trim_start();
        match open {
            None => {
                if let Some(language) = text.strip_prefix("```") {
                    open = Some((line.len() - text.len(), language));
                    if languages.contains(&language) {
                        blocks.push(String::new());
                    }
                }
            }
            Some(_) if text == "```" => open = None,
            Some((indentation, language)) => {
                if languages.contains(&language)
                    && let Some(block) = blocks.last_mut()
                {
                    block.push_str(line.get(indentation..).unwrap_or(""));
                    block.push('\n');
                }
            }
        }
    }
    blocks
}

/// The beginning of the README's first block in a language, before the line that begins with `end`.
fn of_readme(language: &str, contained: &str, end: &str) -> String {
    let blocks = blocks(README, &[language]);
    let block = blocks.iter().find(|block| block.contains(contained));
    let (begin, _) = block
        .and_then(|block| block.split_once(&format!("\n{end}")))
        .unwrap_or_else(|| panic!("no {language} block with {contained} and {end}"));
    format!("{begin}\n")
}

/// Runs the programs of a page, and returns what they print. `python` precedes its program.
async fn run(name: &str, page: &str, python: &str) -> String {
    let system = SYSTEM
        .get_or_init(async || {
            let options = Options::default().without_rate_limits();
            System::start(options).await.unwrap()
        })
        .await;
    let gateway = system.url().trim_start_matches("http://");
    let page = page.replace(GATEWAY, gateway);
    let program = format!("{python}{}", blocks(&page, &["python"]).concat());
    let run_program = format!("python3 {name}.py");
    let mut script = String::from(BEGIN);
    script.push_str(&of_readme(
        "sh",
        "API=",
        "curl -s $API/environments/$ID/exec",
    ));
    script.push_str(THEN);
    script.push_str(&blocks(&page, &["sh", "bash"]).concat());
    if !script.contains(&run_program) {
        script.push_str(&run_program);
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(format!("{name}.py")), program).unwrap();
    let run = Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory.path())
        .env("AGENTBOX_URL", system.url())
        .env("AGENTBOX_ADMIN_USERNAME", &system.admin.username)
        .env("AGENTBOX_ADMIN_PASSWORD", &system.admin.password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let trace = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {trace}\n{printed}");
    printed
}

/// The README's function `call`, a token, and the path of an environment that runs.
fn python_of_readme() -> String {
    of_readme("python", "urllib", "result = ")
}

/// Asserts that a page prints each of these.
fn expect(printed: &str, parts: &[&str]) {
    for part in parts {
        assert!(printed.contains(part), "no {part} in {printed}");
    }
}

#[tokio::test]
async fn programs_of_the_page_on_files_succeed() {
    let printed = run("files", FILES, "").await;
    expect(
        &printed,
        &[
            "\"name\":\"data.csv\"",
            "204\n",
            "\"precondition_failed\"",
            "412\n",
        ],
    );
}

#[tokio::test]
async fn programs_of_the_page_on_executions_succeed() {
    let printed = run("executions", EXECUTIONS, &python_of_readme()).await;
    expect(
        &printed,
        &[
            "\"exit_code\": 0",
            "100000000\n",
            "event: exit",
            "exited 0\n",
            "end {",
        ],
    );
}

#[tokio::test]
async fn programs_of_the_page_on_ports_succeed() {
    let printed = run("ports", PORTS, "").await;
    // By curl, by a preview and by Python.
    assert_eq!(printed.matches("hello\n").count(), 3, "{printed}");
}

#[tokio::test]
async fn programs_of_the_page_on_environments_succeed() {
    let printed = run("environments", ENVIRONMENTS, &python_of_readme()).await;
    expect(
        &printed,
        &["\"status\":\"running\"", "\"network_policy_applied\":true"],
    );
}

#[tokio::test]
async fn programs_of_the_page_on_pools_succeed() {
    let printed = run("pools", POOLS, "").await;
    // By the definition, the pool and the list.
    let defined = "\"name\":\"small\",\"source\":\"api\"";
    assert_eq!(printed.matches(defined).count(), 3, "{printed}");
}
