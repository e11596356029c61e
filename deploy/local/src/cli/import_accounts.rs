//! `import-accounts`: imports images for tests of accounts into a running cluster.

use std::time::Duration;

use agentbox_testing::cluster::Cluster;
use agentbox_testing::tool::Tool;
use anyhow::Context as _;

use crate::image::accounts::build_accounts_image;
use crate::kubernetes::addons;
use crate::kubernetes::build::Programs;

const IMPORT_DEADLINE: Duration = Duration::from_secs(120);

/// Builds and imports each image. An image is `NAME=CONFIG`, with its `config` object as JSON.
///
/// # Errors
/// When one cannot be built, or the cluster's containerd refuses it.
pub(super) async fn run(cluster: &Cluster, images: &[String]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("image.tar");
    for image in images {
        let (name, config) = image
            .split_once('=')
            .with_context(|| format!("image: must be NAME=CONFIG, is `{image}`"))?;
        let archive = build_accounts_image(name, config, &path).await?;
        if let Some(containerd) = cluster.containerd() {
            let cache = agentbox_testing::paths::cache_directory();
            Tool::new(Programs::cached_or_installed(&cache, "containerd", "ctr"))
                .arg_pair("--address", &containerd.socket)
                .args(["--namespace", "k8s.io", "images", "import"])
                .args([&archive.path])
                .within(IMPORT_DEADLINE)
                .run()
                .await?;
        }
        if let Some(kubernetes) = cluster.kubernetes() {
            addons::import(kubernetes, [&archive]).await?;
        }
    }
    Ok(())
}
