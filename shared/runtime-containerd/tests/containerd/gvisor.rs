//! A box whose `runtime_class` is `gvisor` runs on a real gVisor, and behaves like any other.

use std::path::Path;
use std::time::Duration;

use agentbox_contracts::units::Bytes;
use agentbox_runtime::conformance::boxd::exec;
use agentbox_runtime::conformance::gvisor::on_gvisor;
use agentbox_runtime::conformance::{Subject, Violation, check, eventually};
use agentbox_runtime::{ExitReason, NetworkPolicy, Runtime as _};
use agentbox_runtime_containerd::{Config, Driver};
use agentbox_testing::TestContainerd;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::machine::{config_of, control_groups, subject_of};
use crate::remote_machine::RemoteMachine;

static CONTAINERD: OnceCell<TestContainerd> = OnceCell::const_new();

/// The configuration of a containerd that was started after gVisor was built.
async fn config() -> Config {
    let containerd = CONTAINERD
        .get_or_init(|| async {
            let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/gvisor/build.sh");
            let built = Command::new("bash").arg(recipe).output().await.unwrap();
            let stderr = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "gVisor cannot be built: {stderr}");
            TestContainerd::start().await.expect("containerd starts")
        })
        .await;
    config_of(&containerd.endpoint)
}

async fn subject() -> Subject<Driver> {
    subject_of(&config().await)
}

agentbox_runtime::gvisor_tests!(subject());

/// Removes the boxes of the test, and fails the test when its outcome is a violation.
async fn clean_and_unwrap(outcome: Result<(), Violation>, s: &Subject<Driver>) {
    let cleaned = s.clean().await;
    outcome.unwrap();
    cleaned.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor_box_runs_commands_keeps_output_and_leaves_nothing() {
    let (config, s) = (config().await, subject().await);
    let life = async {
        let spec =
            on_gvisor(s.script("dmesg; trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done"));
        s.first.preflight(&spec).await?;
        s.run(&spec).await?;
        let (version, code) = exec(&s, &spec, &["cat", "/proc/version"]).await?;
        let host = std::fs::read_to_string("/proc/version").unwrap();
        check(code == 0 && !version.is_empty() && version != host, || {
            version.clone()
        })?;
        let (_, code) = exec(&s, &spec, &["sh", "-c", "exit 3"]).await?;
        check(code == 3, || format!("exit code {code}"))?;
        s.first.stop(&spec.id, Duration::from_secs(20)).await?;
        let end = s.end_of(&spec.id).await?;
        check(
            end.reason == ExitReason::Stopped && end.exit_code == 5 && end.output.contains("bye"),
            || format!("{end:?}"),
        )?;
        check(end.output.contains("gVisor"), || format!("{end:?}"))?;
        s.second.remove(&spec.id).await?;
        let left = control_groups(&config.deployment, spec.id.as_str());
        check(left.is_empty(), || format!("{left:?}"))?;
        eventually("the processes of the removed box are gone", || async {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let found = all
                .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
                .find(|line| String::from_utf8_lossy(line).contains(spec.id.as_str()));
            Ok(found.is_none().then_some(()))
        })
        .await
    };
    let outcome = life.await;
    clean_and_unwrap(outcome, &s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn default_runtime_class_is_gvisor_and_others_are_refused() {
    let s = subject_of(&Config {
        default_runtime_class: Some("gvisor".to_owned()),
        allowed_runtime_classes: Some(vec!["gvisor".to_owned()]),
        ..config().await
    });
    let classes = async {
        let mut spec = on_gvisor(s.spec());
        spec.isolation.runtime_class = None;
        s.first.preflight(&spec).await?;
        s.run(&spec).await?;
        let (log, code) = exec(&s, &spec, &["dmesg"]).await?;
        check(code == 0 && log.contains("gVisor"), || log.clone())?;
        spec.isolation.runtime_class = Some("runc".to_owned());
        // The control: the machine has the class.
        subject().await.first.preflight(&spec).await?;
        let refused = s.first.preflight(&spec).await;
        let field = refused.err().map(|error| error.field);
        check(field == Some("isolation.runtime_class"), || {
            format!("{field:?}")
        })
    };
    let outcome = classes.await;
    clean_and_unwrap(outcome, &s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor_box_keeps_limits_and_network_policy() {
    let s = subject().await;
    let limits = async {
        let mut memory =
            on_gvisor(s.script("dd if=/dev/zero of=/dev/null bs=400M count=1; echo ended $?"));
        memory.resources.memory = Bytes(128 << 20);
        let end = s.run_to_end(&memory).await?;
        check(
            end.reason == ExitReason::OomKilled && end.exit_code == 137,
            || format!("{end:?}"),
        )?;

        let mut remote = RemoteMachine::new("g", &["198.51.100.8"]).await;
        remote.listen(8080).await;
        for (policy, expected) in [(None, "0"), (Some(NetworkPolicy::default()), "1")] {
            let mut client =
                on_gvisor(s.script("timeout 9 nc -w 5 198.51.100.8 8080 </dev/null; echo code $?"));
            client.isolation.network_policy = policy;
            let end = s.run_to_end(&client).await?;
            let code = format!("code {expected}");
            check(end.output.trim_end().ends_with(&code), || {
                format!("{end:?}")
            })?;
        }

        // The limit counts the sandbox's own threads: a box that reaches it before boxd has
        // answered never starts.
        let mut processes = on_gvisor(s.script(
            "while [ ! -e /tmp/go ]; do sleep 0.1; done; i=0; \
             while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done; echo started $i; exit 0",
        ));
        processes.resources.pids = 64;
        s.run(&processes).await?;
        exec(&s, &processes, &["touch", "/tmp/go"]).await?;
        let end = s.end_of(&processes.id).await?;
        check(!end.output.contains("started 200"), || format!("{end:?}"))
    };
    let outcome = limits.await;
    clean_and_unwrap(outcome, &s).await;
}
