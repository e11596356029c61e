//! `doctor`: the checks of this machine, which runs the tests.

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_agentbox-local");

#[test]
fn doctor_of_a_machine_that_runs_agentbox_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .arg("doctor")
        .env("AGENTBOX_DIR", dir.path().join("instance"))
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    for check in ["kernel", "cgroups", "namespaces", "nft", "disk", "runc"] {
        let lines = report.lines().filter(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next(), Some("ok" | "warning")) && words.next() == Some(check)
        });
        assert_eq!(lines.count(), 1, "{check}: {report}");
    }
    assert!(report.contains("this machine can run AgentBox"), "{report}");
    assert!(!dir.path().join("instance").exists(), "it changes nothing");
}
