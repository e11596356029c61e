//! Images of built programs: boxd, the services, and for a test cluster NATS and Postgres.
//!
//! One image contains all services, and the command of a container names one. They are
//! built, tested and released together, they share most of their code, and a node that runs two
//! of them stores one copy. Separate images could have different versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Archive, ImageError, RECIPE, archive};
use agentbox_contracts::permissions::{PROVISIONER, SERVICES};
use agentbox_testing::paths::cache_directory;
use agentbox_testing::tool::Tool;

/// The image with boxd.
const BOXD: &str = "agentbox.local/boxd";
/// The program that runs as the canary.
const CANARY: &str = "loadtest";
const BUILD_DEADLINE: Duration = Duration::from_secs(120);

/// A tag that changes with the files' content.
fn content_tag(files: &[PathBuf]) -> Result<String, ImageError> {
    let mut digest = Sha256::new();
    digest.update(RECIPE);
    for path in files {
        let bytes = std::fs::read(path).map_err(|source| ImageError::Cache {
            path: path.clone(),
            source,
        })?;
        digest.update(bytes);
    }
    Ok(hex::encode(&digest.finalize()[..6]))
}

async fn build(
    recipe: &str,
    image: String,
    (variable, value): (&str, &Path),
    directory: &Path,
) -> Result<Archive, ImageError> {
    let failed = |source| ImageError::Cache {
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let name = image.rsplit('/').next().unwrap_or(&image);
    let path = directory.join(format!("{}.tar", name.replace(':', "-")));
    let script = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    std::fs::write(script.path(), RECIPE).map_err(failed)?;
    let built = Tool::new("bash")
        .args([script.path(), Path::new(recipe), &path])
        .env(variable, value)
        .env("IMAGE", &image)
        .within(BUILD_DEADLINE)
        .run()
        .await;
    match built {
        Ok(_) => Ok(Archive { image, path }),
        Err(source) => Err(ImageError::Build { image, source }),
    }
}

/// Builds an image with one static program, as `/<its file name>`. If `image` has no tag, it
/// gets one that follows from the content.
///
/// # Errors
/// When the program cannot be read or the recipe fails.
pub async fn build_program_image(
    program: &Path,
    image: &str,
    directory: &Path,
) -> Result<Archive, ImageError> {
    let image = with_tag(image, &[program.to_owned()])?;
    build("program", image, ("PROGRAM", program), directory).await
}

/// Builds the image of boxd, with a tag that follows from the content.
pub(crate) async fn build_boxd_image(boxd: &Path, directory: &Path) -> Result<Archive, ImageError> {
    build_program_image(boxd, BOXD, directory).await
}

/// Builds the image of the services and of the canary in a directory of programs, with the libraries of this
/// machine that they are linked with. If `image` has no tag, it gets one that follows from the
/// content.
///
/// # Errors
/// When a service cannot be read, or does not start in the image.
pub async fn build_services_image(
    programs: &Path,
    image: &str,
    directory: &Path,
) -> Result<Archive, ImageError> {
    let files: Vec<PathBuf> = SERVICES
        .into_iter()
        .chain([PROVISIONER, CANARY])
        .map(|program| programs.join(format!("agentbox-{program}")))
        .collect();
    let image = with_tag(image, &files)?;
    build("services", image, ("PROGRAMS", programs), directory).await
}

fn with_tag(image: &str, files: &[PathBuf]) -> Result<String, ImageError> {
    let has_tag = image.rsplit('/').next().is_some_and(|n| n.contains(':'));
    Ok(match has_tag {
        true => image.to_owned(),
        false => format!("{image}:{}", content_tag(files)?),
    })
}

/// Builds the images of NATS and Postgres for a cluster without access to a registry.
///
/// # Errors
/// When one cannot be downloaded or built.
pub async fn build_store_images(directory: &Path) -> Result<(Archive, Archive), ImageError> {
    let cache = cache_directory();
    let server = crate::nats::server::find_or_fetch(&cache)
        .await
        .map_err(|error| ImageError::Cache {
            path: cache.clone(),
            source: std::io::Error::other(error),
        })?;
    let nats = build_program_image(&server, "agentbox.local/nats", directory).await?;
    let name = "agentbox.local/postgres:15";
    let postgres = archive(&cache, "postgres", name, &mut |_| {}).await?;
    Ok((nats, postgres))
}
