//! The images that boxes start from, where no registry offers them, and those of our own
//! programs ([`programs`]).
//!
//! Owns which images are built, their archives in the cache, and their import. Where
//! Docker Hub is in reach only the pause image is made: the rest is pulled on demand.
//!
//! * I1. An archive's file name holds a digest of everything it is made from (recipe and
//!   this machine's CA certificates), so a stale one is never imported.
//! * I2. Two runs that start together build an image once: building holds a lock.
//! * I3. A build that is killed leaves no process and no mount (it has namespaces of its
//!   own for both), and no more than a directory that the next one removes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::tool::{Tool, ToolError};

pub mod programs;

/// The name that containerd is configured to take for every sandbox.
pub(crate) const PAUSE: &str = "agentbox.local/pause:1";

const RECIPE: &str = include_str!("../images/build.sh");
const PAUSE_SOURCE: &str = include_str!("../images/pause.c");

/// An image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot build the image {image}: {source}")]
    Build { image: String, source: ToolError },
    #[error("cannot keep images in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// How to come by images; `AGENTBOX_IMAGES` says it, or Docker Hub is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hub {
    InReach,
    /// And says so at once.
    Refused,
    /// And lets one wait.
    Silent,
}

/// One image in the docker-archive format.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Its name, with the tag.
    pub image: String,
    pub path: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) archives: Vec<Archive>,
    /// Docker Hub is out of reach and does not say so quickly: pulls from it are made to
    /// fail at once, rather than after a minute.
    pub(crate) refuse_hub: bool,
    /// For the person who starts it, if there is something to say.
    pub(crate) remark: Option<&'static str>,
}

const RECIPES: [(&str, &str); 3] = [
    ("pause", PAUSE),
    ("busybox", "docker.io/library/busybox:latest"),
    ("python", "docker.io/library/python:3.11-slim"),
];

async fn ask_hub() -> Hub {
    match std::env::var("AGENTBOX_IMAGES").as_deref() {
        Ok("pull") => return Hub::InReach,
        Ok("build") => return Hub::Refused,
        _ => {}
    }
    let asked = Instant::now();
    let status = Tool::new("curl")
        .args(["--silent", "--output", "/dev/null", "--max-time", "3"])
        .args([
            "--write-out",
            "%{http_code}",
            "https://registry-1.docker.io/v2/",
        ])
        .run()
        .await;
    match status.as_deref().map(str::trim) {
        Ok("200" | "401" | "429") => Hub::InReach,
        _ if asked.elapsed() > Duration::from_secs(2) => Hub::Silent,
        _ => Hub::Refused,
    }
}

/// Builds what is needed and not yet in the cache. `say` hears of what takes long.
///
/// # Errors
/// When a recipe fails; its last words are in the error.
pub(crate) async fn provide(
    cache: &Path,
    mut say: impl FnMut(String),
) -> Result<Images, ImageError> {
    let hub = ask_hub().await;
    let mut archives = Vec::new();
    for (recipe, image) in RECIPES {
        if hub == Hub::InReach && image != PAUSE {
            continue;
        }
        archives.push(archive(cache, recipe, image, &mut say).await?);
    }
    Ok(Images {
        archives,
        refuse_hub: hub == Hub::Silent,
        remark: (hub != Hub::InReach).then_some(
            "Docker Hub is out of reach: python:3.11-slim and busybox are built here from Debian packages",
        ),
    })
}

async fn archive(
    cache: &Path,
    recipe: &'static str,
    image: &'static str,
    say: &mut impl FnMut(String),
) -> Result<Archive, ImageError> {
    let failed = |source| ImageError::Cache {
        path: cache.to_owned(),
        source,
    };
    let directory = cache.join("images");
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let path = directory.join(format!("{recipe}-{}.tar", key()));
    let made = Archive {
        image: image.to_owned(),
        path: path.clone(),
    };
    if path.is_file() {
        return Ok(made);
    }
    let lock = std::fs::File::create(directory.join(format!("{recipe}.lock"))).map_err(failed)?;
    // Another run builds it: its result is ours too.
    let deadline = Instant::now() + Duration::from_secs(600);
    while lock.try_lock().is_err() {
        if Instant::now() > deadline {
            return Err(failed(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("another run has been building {image} for 600 s"),
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !path.is_file() {
        say(format!("building the image {image} from Debian packages"));
        build(recipe, image, &directory, &path).await?;
    }
    Ok(made)
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
    // The caller holds the recipe's lock: what is there is of a killed build.
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
        .within(Duration::from_secs(600))
        .run()
        .await;
    let _ = std::fs::remove_dir_all(&work);
    built.map_err(|source| ImageError::Build {
        image: image.to_owned(),
        source,
    })?;
    Ok(())
}

/// A digest of everything that the archives are made from.
fn key() -> String {
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
