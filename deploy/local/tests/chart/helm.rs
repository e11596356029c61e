//! Helm and the chart.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use agentbox_local::addons::Tools;
use serde_json::Value;
use tokio::process::Command;

/// For the start of programs; their images are already in the registry.
const DEADLINE: Duration = Duration::from_secs(420);

pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm")
}

pub struct Helm {
    program: PathBuf,
    /// Helm's home for this test alone, without the user's settings.
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

    /// Writes a values file; gives its path.
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

    /// The standard output of a command that must succeed.
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

    /// The standard error of a command that must fail.
    pub async fn refuses(&self, words: &[&str]) -> String {
        let output = self.run(words).await;
        assert!(!output.status.success(), "helm {words:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
