//! Builds the images of boxes if no registry is reachable, and the images of the product's
//! programs ([`programs`]).
//!
//! Owns the list of images and their archives in the cache. If Docker Hub is reachable, only
//! the pause image is built: the others are pulled on demand.
//!
//! * I1. An archive's file name contains a digest of its inputs (recipe and this machine's CA
//!   certificates), so that a stale archive is never imported.
//! * I2. Two runs that start together build an image once: a build holds a lock.
//! * I3. A killed build leaves no process and no mount, because it runs in namespaces of its
//!   own, and one directory that the next build removes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use agentbox_testing::tool::{Tool, ToolError};

use crate::file_lock::{self, LockError};

pub(crate) mod accounts;
pub mod programs;

/// The image of every sandbox.
pub(crate) const PAUSE: &str = "agentbox.local/pause:1";

/// The deadline for one image.
const BUILD_DEADLINE: Duration = Duration::from_secs(600);

const RECIPE: &str = include_str!("../images/build.sh");
const PAUSE_SOURCE: &str = include_str!("../images/pause.c");

/// An image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot build the image {image}: {source}")]
    Build { image: String, source: ToolError },
    #[error("cannot store images in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// One image in the docker-archive format.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The image's name, with the tag.
    pub image: String,
    pub path: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) archives: Vec<Archive>,
    /// Whether containerd is configured to refuse pulls from Docker Hub, which is unreachable: a pull
    /// would fail only when a name server or a connection times out.
    pub(crate) refuse_docker_hub: bool,
    /// A message for the person who starts the instance.
    pub(crate) notice: Option<&'static str>,
}

const RECIPES: [(&str, &str); 3] = [
    ("pause", PAUSE),
    ("busybox", "docker.io/library/busybox:latest"),
    ("python", "docker.io/library/python:3.11-slim"),
];

/// Whether images can be pulled from Docker Hub, by `AGENTBOX_IMAGES` or by a request to it.
async fn is_docker_hub_reachable() -> bool {
    match std::env::var("AGENTBOX_IMAGES").as_deref() {
        Ok("pull") => return true,
        Ok("build") => return false,
        _ => {}
    }
    let status = Tool::new("curl")
        .args(["--silent", "--output", "/dev/null", "--max-time", "3"])
        .args([
            "--write-out",
            "%{http_code}",
            "https://registry-1.docker.io/v2/",
        ])
        .run()
        .await;
    matches!(status.as_deref().map(str::trim), Ok("200" | "401" | "429"))
}

/// Builds the images that are required and not in the cache. `progress` receives a message
/// before each build.
///
/// # Errors
/// When a recipe fails, with its last lines.
pub(crate) async fn provide(
    cache: &Path,
    mut progress: impl FnMut(String),
) -> Result<Images, ImageError> {
    let is_reachable = is_docker_hub_reachable().await;
    let mut archives = Vec::new();
    for (recipe, image) in RECIPES {
        if is_reachable && image != PAUSE {
            continue;
        }
        archives.push(archive(cache, recipe, image, &mut progress).await?);
    }
    Ok(Images {
        archives,
        refuse_docker_hub: !is_reachable,
        notice: (!is_reachable).then_some(
            "Docker Hub is unreachable: python:3.11-slim and busybox are built from Debian packages, \
             and other pulls from it are refused until the next start",
        ),
    })
}

async fn archive(
    cache: &Path,
    recipe: &'static str,
    image: &'static str,
    progress: &mut impl FnMut(String),
) -> Result<Archive, ImageError> {
    let failed = |source| ImageError::Cache {
        path: cache.to_owned(),
        source,
    };
    let directory = cache.join("images");
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let path = directory.join(format!("{recipe}-{}.tar", inputs_digest()));
    let archive = Archive {
        image: image.to_owned(),
        path: path.clone(),
    };
    if path.is_file() {
        return Ok(archive);
    }
    // If another run builds the image, its result is used.
    let lock = directory.join(format!("{recipe}.lock"));
    let _lock = file_lock::lock(&lock, BUILD_DEADLINE).await?;
    if !path.is_file() {
        progress(format!("building the image {image} from Debian packages"));
        build(recipe, image, &directory, &path).await?;
    }
    Ok(archive)
}

async fn build(
    recipe: &'static str,
    image: &'static str,
    directory: &Path,
    path: &Path,
) -> Result<(), ImageError> {
    let failed = |source| ImageError::Cache {
        path: directory.to_owned(),
        source,
    };
    // The caller holds the recipe's lock, so an existing directory was left by a killed build.
    let work = directory.join(format!("{recipe}.work"));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir(&work).map_err(failed)?;
    let script = work.join("build.sh");
    let pause_source = work.join("pause.c");
    std::fs::write(&script, RECIPE).map_err(failed)?;
    std::fs::write(&pause_source, PAUSE_SOURCE).map_err(failed)?;
    let built = Tool::new("unshare")
        .args(["--mount-proc", "--pid", "--fork", "--kill-child", "bash"])
        .args([&script, Path::new(recipe), path])
        .env("PAUSE_SOURCE", &pause_source)
        .env("TMPDIR", &work)
        .within(BUILD_DEADLINE)
        .run()
        .await;
    let _ = std::fs::remove_dir_all(&work);
    built.map_err(|source| ImageError::Build {
        image: image.to_owned(),
        source,
    })?;
    Ok(())
}

/// A digest of the inputs of the archives.
fn inputs_digest() -> String {
    let mut digest = Sha256::new();
    digest.update(RECIPE);
    digest.update(PAUSE_SOURCE);
    let mut certificates: Vec<PathBuf> = std::fs::read_dir("/usr/local/share/ca-certificates")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .collect();
    certificates.sort();
    for certificate in certificates {
        digest.update(std::fs::read(certificate).unwrap_or_default());
    }
    hex::encode(&digest.finalize()[..6])
}
