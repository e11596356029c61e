//! Helm, and our chart.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use agentbox_local::addons::Tools;
use serde_json::Value;
use tokio::process::Command;

/// Images are there: what it waits for is programs that start.
const DEADLINE: Duration = Duration::from_secs(420);

pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm")
}

pub struct Helm {
    program: PathBuf,
    /// Of this test alone: nobody's own settings are read.
    home: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Helm {
    pub fn new(tools: &Tools, kubeconfig: &Path) -> Self {
        Self {
            program: tools.helm(),
            home: tempfile::tempdir().unwrap(),
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    /// A values file.
    pub fn values(&self, name: &str, values: &Value) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, values.to_string()).unwrap();
        path.display().to_string()
    }

    pub async fn run(&self, words: &[&str]) -> Output {
        let home = self.home.path();
        let run = Command::new(&self.program)
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", home.join("cache"))
            .env("HELM_CONFIG_HOME", home.join("config"))
            .env("HELM_DATA_HOME", home.join("data"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap()
    }

    /// Its standard output; fails the test when it fails.
    pub async fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words).await;
        assert!(
            output.status.success(),
            "helm {words:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says as it refuses.
    pub async fn refuses(&self, words: &[&str]) -> String {
        let output = self.run(words).await;
        assert!(!output.status.success(), "helm {words:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
