//! `prepare`: installs, downloads and builds the requirements, once per machine.

use agentbox_testing::paths::cache_directory;
use anyhow::{Context, bail};

const PACKAGES: &str = include_str!("../../packages.sh");

/// Checks that the packages that the built programs require are installed.
///
/// # Errors
/// When packages are missing, with their names in one line.
pub(crate) async fn require_packages() -> anyhow::Result<()> {
    let output = tokio::process::Command::new("bash")
        .args(["-c", PACKAGES, "packages.sh", "check"])
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .context("cannot run bash")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// With `kubernetes`, also prepares a local Kubernetes; with `observe`, also the programs that observe an
/// instance.
pub(super) async fn run(kubernetes: bool, observe: bool) -> anyhow::Result<()> {
    install_packages(kubernetes.then_some("kubernetes")).await?;
    if observe {
        install_packages(Some("observe")).await?;
    }
    let cache = cache_directory();
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot use {}", cache.display()))?;
    let nats = crate::nats::server::find_or_fetch(&cache).await?;
    println!("nats-server: {}", nats.display());
    crate::kubernetes::build::provide_runtime(&cache, |step| println!("{step}")).await?;
    let images = crate::image::provide(&cache, |step| println!("{step}")).await?;
    if let Some(notice) = images.notice {
        println!("{notice}");
    }
    if kubernetes {
        crate::kubernetes::build::provide_with_tools(&cache, |step| println!("{step}")).await?;
    }
    if observe {
        super::observe::build().await?;
    }
    println!("prepared");
    Ok(())
}

/// Installs the packages that are missing; `further`: also those of that set.
async fn install_packages(further: Option<&str>) -> anyhow::Result<()> {
    // The output goes to the terminal, because an installation may take minutes.
    let status = tokio::process::Command::new("bash")
        .args(["-c", PACKAGES, "packages.sh"])
        .args(further)
        .stdin(std::process::Stdio::null())
        .status()
        .await
        .context("cannot run bash")?;
    if !status.success() {
        bail!("the packages above are missing");
    }
    Ok(())
}
