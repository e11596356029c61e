//! gVisor for real: a box whose `runtime_class` is `gvisor` runs on gVisor's kernel, and
//! is a box like any other.

use std::path::Path;
use std::time::Duration;

use agentbox_box_protocol::proto::{RunInput, StartCommand, run_input::Input, run_output::Output};
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::Bytes;
use agentbox_local::TestContainerd;
use agentbox_runtime::conformance::{Subject, Violation, claim, until};
use agentbox_runtime::{
    BoxConnector as _, BoxPhase, BoxSpec, ExitReason, NetworkPolicy, Runtime as _,
};
use agentbox_runtime_containerd::{Config, Driver};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::machine::control_groups;

static CONTAINERD: OnceCell<TestContainerd> = OnceCell::const_new();

/// A containerd that was started when gVisor was there.
async fn config() -> Config {
    let containerd = CONTAINERD
        .get_or_init(|| async {
            let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/gvisor/build.sh");
            let built = Command::new("bash").arg(recipe).output().await.unwrap();
            let said = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "gVisor cannot be built: {said}");
            TestContainerd::start().await.expect("containerd starts")
        })
        .await;
    let json = serde_json::to_value(&containerd.endpoint).unwrap();
    serde_json::from_value(json).unwrap()
}

async fn subject() -> Subject<Driver> {
    let config = config().await;
    let driver = || Driver::connect(config.clone()).unwrap();
    Subject::new(driver(), driver(), "busybox")
}

fn on_gvisor(mut spec: BoxSpec) -> BoxSpec {
    spec.isolation.runtime_class = Some("gvisor".to_owned());
    spec.resources.memory = Bytes(256 << 20);
    spec
}

/// Runs a command through boxd; its standard output and exit code.
async fn exec(
    s: &Subject<Driver>,
    spec: &BoxSpec,
    command: &[&str],
) -> Result<(String, i32), Violation> {
    let failed = |error: &dyn std::fmt::Display| Violation(error.to_string());
    let Some(BoxPhase::Running { address, .. }) = s.first.get(&spec.id).await?.map(|o| o.phase)
    else {
        return Err(Violation("it does not run".to_owned()));
    };
    let stream = s.first.connect(&spec.id, address).await?;
    let token = BoxToken::parse(&spec.boxd_token).map_err(|e| failed(&e))?;
    let mut boxd = agentbox_box_protocol::client::connect(stream, &token)
        .await
        .map_err(|e| failed(&e))?;
    let start = StartCommand {
        run_id: EnvironmentId::random().to_string(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    };
    let input = RunInput {
        input: Some(Input::Start(start)),
    };
    let outputs = boxd.run(futures::stream::iter([input])).await;
    let mut outputs = outputs.map_err(|e| failed(&e))?.into_inner();
    let mut text = Vec::new();
    while let Some(output) = outputs.message().await.map_err(|e| failed(&e))? {
        match output.output {
            Some(Output::Stdout(bytes)) => text.extend(bytes),
            Some(Output::Exited(exited)) => {
                return Ok((
                    String::from_utf8_lossy(&text).into_owned(),
                    exited.exit_code,
                ));
            }
            _ => {}
        }
    }
    Err(Violation("the run has no end".to_owned()))
}

async fn held(outcome: Result<(), Violation>, s: &Subject<Driver>) {
    let cleaned = s.clean().await;
    outcome.unwrap();
    cleaned.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_on_gvisor_runs_execs_tells_its_output_and_leaves_nothing() {
    let (config, s) = (config().await, subject().await);
    let life = async {
        let spec =
            on_gvisor(s.script("dmesg; trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done"));
        s.first.preflight(&spec).await?;
        s.run(&spec).await?;
        let (version, code) = exec(&s, &spec, &["cat", "/proc/version"]).await?;
        let host = std::fs::read_to_string("/proc/version").unwrap();
        claim(code == 0 && !version.is_empty() && version != host, || {
            version.clone()
        })?;
        let (_, code) = exec(&s, &spec, &["sh", "-c", "exit 3"]).await?;
        claim(code == 3, || format!("exit code {code}"))?;
        s.first.stop(&spec.id, Duration::from_secs(20)).await?;
        let end = s.end_of(&spec.id).await?;
        claim(
            end.reason == ExitReason::Stopped && end.exit_code == 5 && end.output.contains("bye"),
            || format!("{end:?}"),
        )?;
        claim(end.output.contains("gVisor"), || format!("{end:?}"))?;
        s.second.remove(&spec.id).await?;
        let left = control_groups(&config.deployment, spec.id.as_str());
        claim(left.is_empty(), || format!("{left:?}"))?;
        until("its processes are gone", || async {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let found = all
                .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
                .find(|line| String::from_utf8_lossy(line).contains(spec.id.as_str()));
            Ok(found.is_none().then_some(()))
        })
        .await
    };
    let outcome = life.await;
    held(outcome, &s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_the_network_hold_on_gvisor() {
    let s = subject().await;
    let limits = async {
        let mut memory =
            on_gvisor(s.script("dd if=/dev/zero of=/dev/null bs=400M count=1; echo ended $?"));
        memory.resources.memory = Bytes(128 << 20);
        let end = s.run_to_end(&memory).await?;
        claim(
            end.reason == ExitReason::OomKilled && end.exit_code == 137,
            || format!("{end:?}"),
        )?;

        let mut closed =
            on_gvisor(s.script("timeout 6 nc -w 2 198.51.100.1 80 </dev/null; echo $?"));
        closed.isolation.network_policy = Some(NetworkPolicy::default());
        let end = s.run_to_end(&closed).await?;
        claim(end.output.trim_end().ends_with('1'), || format!("{end:?}"))?;

        let mut processes = on_gvisor(s.script(
            "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done; echo started $i; exit 0",
        ));
        processes.resources.pids = 64;
        let end = s.run_to_end(&processes).await?;
        claim(!end.output.contains("started 200"), || format!("{end:?}"))
    };
    let outcome = limits.await;
    held(outcome, &s).await;
}
