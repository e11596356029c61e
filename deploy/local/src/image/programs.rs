//! Images of programs that are there: boxd's, that of the four services, and for a test
//! cluster those of what the services need.
//!
//! One image holds all four services, and who starts it names one. They are built, tested
//! and released together, most of each is the same code, and a node that runs two of them
//! keeps one copy; four images could only be of four different versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Archive, ImageError, RECIPE, archive};
use crate::plan::cache_directory;
use crate::tool::Tool;

/// What Pods copy boxd from.
const BOXD: &str = "agentbox.local/boxd";
const BUILD_DEADLINE: Duration = Duration::from_secs(120);

/// Of files that are read whole: a name that changes with what is in it.
fn tag(files: &[PathBuf]) -> Result<String, ImageError> {
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
    from: (&str, &Path),
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
        .env(from.0, from.1)
        .env("IMAGE", &image)
        .within(BUILD_DEADLINE)
        .run()
        .await;
    match built {
        Ok(_) => Ok(Archive { image, path }),
        Err(source) => Err(ImageError::Build { image, source }),
    }
}

/// A static program alone, as `/<its name>`; `image` without a tag gets one of its content.
///
/// # Errors
/// When the program cannot be read or the recipe fails.
pub async fn of_program(
    program: &Path,
    image: &str,
    directory: &Path,
) -> Result<Archive, ImageError> {
    let image = named(image, &[program.to_owned()])?;
    build("program", image, ("PROGRAM", program), directory).await
}

/// boxd, under a name that changes with it.
pub(crate) async fn of_boxd(boxd: &Path, directory: &Path) -> Result<Archive, ImageError> {
    of_program(boxd, BOXD, directory).await
}

/// The four services of a directory of programs, with the libraries they are linked with
/// on this machine; `image` without a tag gets one of its content.
///
/// # Errors
/// When one of them cannot be read, or does not start in the image.
pub async fn of_services(
    programs: &Path,
    image: &str,
    directory: &Path,
) -> Result<Archive, ImageError> {
    let files = agentbox_contracts::permissions::SERVICES
        .map(|service| programs.join(format!("agentbox-{service}")));
    let image = named(image, &files)?;
    build("services", image, ("PROGRAMS", programs), directory).await
}

fn named(image: &str, files: &[PathBuf]) -> Result<String, ImageError> {
    let has_tag = image.rsplit('/').next().is_some_and(|n| n.contains(':'));
    Ok(match has_tag {
        true => image.to_owned(),
        false => format!("{image}:{}", tag(files)?),
    })
}

/// A NATS server and a Postgres from this machine's registries, for a cluster without any.
///
/// # Errors
/// When one cannot be fetched or built.
pub async fn of_stores(directory: &Path) -> Result<(Archive, Archive), ImageError> {
    let cache = cache_directory();
    let server = crate::nats::server::find_or_fetch(&cache)
        .await
        .map_err(|error| ImageError::Cache {
            path: cache.clone(),
            source: std::io::Error::other(error),
        })?;
    let nats = of_program(&server, "agentbox.local/nats", directory).await?;
    let name = "agentbox.local/postgres:15";
    let postgres = archive(&cache, "postgres", name, &mut |_| {}).await?;
    Ok((nats, postgres))
}
