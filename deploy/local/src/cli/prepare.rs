//! `prepare`: everything that is installed, fetched or built once on a machine.

use anyhow::{Context, bail};

use crate::plan::cache_directory;

const PACKAGES: &str = include_str!("../../packages.sh");

/// # Errors
/// One line with the packages that are missing to run what is built.
pub(super) async fn require_packages() -> anyhow::Result<()> {
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

/// With `kubernetes`, also what a Kubernetes of our own is made of.
pub(super) async fn run(kubernetes: bool) -> anyhow::Result<()> {
    // Its own words go to the terminal as they come: installing takes a while.
    let status = tokio::process::Command::new("bash")
        .args(["-c", PACKAGES, "packages.sh"])
        .args(kubernetes.then_some("kubernetes"))
        .stdin(std::process::Stdio::null())
        .status()
        .await
        .context("cannot run bash")?;
    if !status.success() {
        bail!("packages are missing, see above");
    }
    let cache = cache_directory();
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot use {}", cache.display()))?;
    let nats = crate::nats::server::find_or_fetch(&cache).await?;
    println!("nats-server: {}", nats.display());
    let images = crate::image::provide(&cache, |step| println!("{step}")).await?;
    if let Some(remark) = images.remark {
        println!("{remark}");
    }
    if kubernetes {
        crate::kubernetes::build::provide(&cache, |step| println!("{step}")).await?;
        crate::kubernetes::build::provide_tools(&cache, |step| println!("{step}")).await?;
    }
    println!("prepared");
    Ok(())
}
