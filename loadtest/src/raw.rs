//! The runtime's own cost: `ctr`, containerd's own client, against the same containerd.
//!
//! Less than a box has: no pod sandbox, no network, no limits, no firewall. More in one
//! thing: each sample starts the `ctr` program.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio::time::timeout;

use crate::figures::Figure;

/// Where CRI keeps its images.
const NAMESPACE: &str = "k8s.io";
const IMAGE: &str = "docker.io/library/busybox:latest";
const SAMPLES: usize = 20;
const WITHIN: Duration = Duration::from_secs(30);

pub async fn all(socket: &Path) -> anyhow::Result<Vec<Figure>> {
    let prefix = format!("bench-raw-{}", std::process::id());
    let (mut runs, mut execs) = (Vec::new(), Vec::new());
    let mut busy = (Duration::ZERO, Duration::ZERO);
    for number in 0..SAMPLES {
        let name = format!("{prefix}-{number}");
        let run = ctr(socket, &["run", "-d", IMAGE, &name, "sleep", "600"]).await;
        if let Ok(took) = run {
            busy.0 += took;
            let exec = ["task", "exec", "--exec-id", "one", &name, "true"];
            let exec = ctr(socket, &exec).await;
            busy.1 += exec.as_ref().copied().unwrap_or_default();
            execs.push(exec);
        }
        runs.push(run);
        remove(socket, &name).await;
    }
    Ok(vec![
        Figure::new(
            "runtime alone: ctr run (no sandbox, no network)",
            busy.0,
            runs,
        ),
        Figure::new("runtime alone: ctr task exec `true`", busy.1, execs),
    ])
}

async fn remove(socket: &Path, name: &str) {
    // Fails when there is no task; what counts is that the container is gone.
    let _ = ctr(socket, &["task", "rm", "-f", name]).await;
    if let Err(error) = ctr(socket, &["container", "rm", name]).await {
        println!("container {name} may be left: {error:#}");
    }
}

async fn ctr(socket: &Path, arguments: &[&str]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let ended = timeout(WITHIN, command.output())
        .await
        .with_context(|| format!("ctr did not end within {WITHIN:?}"))?
        .context("starting ctr")?;
    let took = began.elapsed();
    if !ended.status.success() {
        bail!("{}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(took)
}
