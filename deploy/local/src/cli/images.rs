//! `images`: builds the images that the Helm chart installs, as archives.

use std::path::Path;

use agentbox_testing::{bin_dir, boxd};

use crate::image::programs::{build_program_image, build_services_image};

/// # Errors
/// When a program is not built, or cannot be packed.
pub(super) async fn run(directory: &Path, registry: &str, tag: &str) -> anyhow::Result<()> {
    let registry = registry.trim_end_matches('/');
    let name = |name: &str| match registry {
        "" => format!("{name}:{tag}"),
        _ => format!("{registry}/{name}:{tag}"),
    };
    let services = build_services_image(&bin_dir(), &name("agentbox"), directory).await?;
    let boxd = build_program_image(&boxd(), &name("agentbox-boxd"), directory).await?;
    for archive in [services, boxd] {
        println!("{}\t{}", archive.image, archive.path.display());
    }
    Ok(())
}
