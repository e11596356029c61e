//! `dev`: rebuilds a service when a source file changes, and restarts it in the running instance.
//!
//! * I1. Only the processes of the service are restarted ([`super::restart`]); the others keep
//!   their connections and sessions.
//! * I2. A failed build changes nothing: the running processes stay.
//! * I3. The new program is copied into the instance's directory, where the supervisor prefers
//!   it. The next `up` removes it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use agentbox_contracts::permissions::SERVICES;
use agentbox_testing::paths::Layout;
use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::process::Command;

use super::restart;

/// How often the modification times are read: a few hundred files, about a millisecond.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Runs until it is interrupted.
///
/// # Errors
/// When AgentBox is not running, or the current directory is not in the workspace.
pub(super) async fn run(layout: &Layout, service: &str) -> anyhow::Result<()> {
    restart::running_state(layout)?;
    let sources = Sources::of(service)?;
    let mut built = None;
    loop {
        let fingerprint = sources.fingerprint();
        if built == Some(fingerprint) {
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        }
        built = Some(fingerprint);
        let started = Instant::now();
        match update(layout, &sources, service).await {
            Ok(true) => println!(
                "{service} was rebuilt and restarted in {:.1} s",
                started.elapsed().as_secs_f32()
            ),
            Ok(false) => println!("{service} is unchanged"),
            Err(error) => eprintln!("agentbox-local: {error:#}"),
        }
        println!("waiting for changes below services/{service} and shared; Ctrl-C stops this");
    }
}

/// Builds, installs and restarts the service. Returns whether the program has changed.
async fn update(layout: &Layout, sources: &Sources, service: &str) -> anyhow::Result<bool> {
    let program = build(&sources.workspace, service).await?;
    let is_changed = install(&program, &layout.dev_program(service))?;
    if is_changed {
        restart::run(layout, service).await?;
    }
    Ok(is_changed)
}

/// The source files that a service is built from.
struct Sources {
    workspace: PathBuf,
    roots: Vec<PathBuf>,
}

/// Changes with each change of a source file: the newest modification time, and the number of
/// files.
type Fingerprint = (Option<SystemTime>, usize);

impl Sources {
    fn of(service: &str) -> anyhow::Result<Self> {
        let current = std::env::current_dir()?;
        let crate_directory = Path::new("services").join(service);
        let workspace = current
            .ancestors()
            .find(|directory| {
                directory
                    .join(&crate_directory)
                    .join("Cargo.toml")
                    .is_file()
            })
            .with_context(|| {
                format!(
                    "{} is not in the workspace of {service}; run `make dev` there",
                    current.display()
                )
            })?;
        let roots = [crate_directory.as_path(), "shared".as_ref()];
        Ok(Self {
            roots: roots.map(|root| workspace.join(root)).to_vec(),
            workspace: workspace.to_owned(),
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = (None, 0);
        for file in ["Cargo.toml", "Cargo.lock"] {
            add_file(&self.workspace.join(file), &mut fingerprint);
        }
        for root in &self.roots {
            add_directory(root, &mut fingerprint);
        }
        fingerprint
    }
}

fn add_file(path: &Path, (newest, count): &mut Fingerprint) {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    *newest = (*newest).max(modified.ok());
    *count += 1;
}

/// Adds the sources below a directory: Rust, protocol buffers and manifests, without tests.
fn add_directory(directory: &Path, fingerprint: &mut Fingerprint) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_source = path
            .extension()
            .is_some_and(|extension| ["rs", "proto", "toml"].iter().any(|e| extension == *e));
        if is_directory && !path.ends_with("tests") && !path.ends_with("target") {
            add_directory(&path, fingerprint);
        } else if !is_directory && is_source {
            add_file(&path, fingerprint);
        }
    }
}

/// A message of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct CargoMessage {
    executable: Option<PathBuf>,
}

/// Builds the service with the dev profile, which is fast to build; gives the program's path.
///
/// The packages are those that `make up` builds: with others, cargo would select other features and
/// build the dependencies again.
async fn build(workspace: &Path, service: &str) -> anyhow::Result<PathBuf> {
    let program = format!("agentbox-{service}");
    let packages = SERVICES
        .iter()
        .map(|service| format!("--package=agentbox-{service}"));
    let output = Command::new("cargo")
        .args([
            "build",
            "--quiet",
            "--message-format=json-render-diagnostics",
        ])
        .args(packages)
        .args(["--package=agentbox-local", "--bin", &program])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{service} does not build; the running processes are unchanged");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok()?.executable)
        .next_back()
        .with_context(|| format!("cargo built no program {program}"))
}

/// Replaces the installed program atomically. Returns whether its content has changed.
fn install(program: &Path, installed: &Path) -> anyhow::Result<bool> {
    let new = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    if std::fs::read(installed).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let failed = || format!("installing {}", installed.display());
    if let Some(directory) = installed.parent() {
        std::fs::create_dir_all(directory).with_context(failed)?;
    }
    let partial = installed.with_extension("partial");
    std::fs::copy(program, &partial).with_context(failed)?;
    std::fs::rename(&partial, installed).with_context(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_changes_with_sources_but_not_with_tests() {
        let workspace = tempfile::tempdir().unwrap();
        let root = workspace.path().join("services/auth");
        std::fs::create_dir_all(root.join("src")).unwrap();
        std::fs::create_dir_all(root.join("tests")).unwrap();
        std::fs::write(root.join("src/lib.rs"), "").unwrap();
        let sources = Sources {
            workspace: workspace.path().to_owned(),
            roots: vec![root.clone()],
        };
        let before = sources.fingerprint();
        std::fs::write(root.join("tests/main.rs"), "").unwrap();
        assert_eq!(sources.fingerprint(), before);
        std::fs::write(root.join("src/user.rs"), "").unwrap();
        assert_ne!(sources.fingerprint(), before);
        let before = sources.fingerprint();
        let file = std::fs::File::open(root.join("src/lib.rs")).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(1))
            .unwrap();
        assert_ne!(sources.fingerprint(), before);
    }

    #[test]
    fn install_replaces_a_changed_program_only() {
        let directory = tempfile::tempdir().unwrap();
        let (program, installed) = (
            directory.path().join("built"),
            directory.path().join("dev/agentbox-auth"),
        );
        std::fs::write(&program, "one").unwrap();
        assert!(install(&program, &installed).unwrap());
        assert!(!install(&program, &installed).unwrap());
        std::fs::write(&program, "two").unwrap();
        assert!(install(&program, &installed).unwrap());
        assert_eq!(std::fs::read(&installed).unwrap(), b"two");
    }
}
