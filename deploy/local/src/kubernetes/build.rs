//! The programs of a Kubernetes cluster, built once from Go modules and kept in the cache,
//! outside any checkout.
//!
//! * I1. A part's directory holds a digest of everything that it is made from, so a stale one
//!   is never used.
//! * I2. A part is there whole or not at all: it is built beside, then renamed.
//! * I3. Two runs that start together build a part once: building holds a lock.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use agentbox_testing::tool::{Tool, ToolError};

const RECIPE: &str = include_str!("../../../kubernetes-parts/build.sh");
const TOOLS_RECIPE: &str = include_str!("../../../kubernetes-parts/tools.sh");
/// What the recipe takes Go from.
const GO: &str = include_str!("../../../go.sh");

/// Compiling all of Kubernetes: minutes on a quiet machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(3_600);

/// The cluster's programs cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot build {part} from its Go modules: {source}")]
    Failed {
        part: &'static str,
        source: ToolError,
    },
    #[error("cannot keep the parts of Kubernetes in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// One Go module of ours that names what is built.
struct Part {
    name: &'static str,
    /// What a person is told who waits.
    what: &'static str,
    recipe: &'static str,
    module: &'static str,
    sums: &'static str,
}

macro_rules! part {
    ($name:literal, $what:literal, $recipe:ident) => {
        Part {
            name: $name,
            what: $what,
            recipe: $recipe,
            module: include_str!(concat!("../../../kubernetes-parts/", $name, "/go.mod")),
            sums: include_str!(concat!("../../../kubernetes-parts/", $name, "/go.sum")),
        }
    };
}

const PARTS: [Part; 6] = [
    part!("etcd", "etcd", RECIPE),
    part!("containerd", "containerd 2 with its shim", RECIPE),
    part!(
        "calico",
        "Calico's Felix and its network plugin (some minutes)",
        RECIPE
    ),
    part!(
        "kubernetes",
        "the API server, controllers, scheduler, kubelet and proxy (some minutes)",
        RECIPE
    ),
    part!("metrics-server", "metrics-server", TOOLS_RECIPE),
    part!(
        "registry",
        "an OCI registry, and crane to fill it",
        TOOLS_RECIPE
    ),
];

/// What a cluster is used with, where the chart is installed.
const TOOLS: [Part; 2] = [
    part!("helm", "Helm (some minutes)", TOOLS_RECIPE),
    part!(
        "coredns",
        "CoreDNS, a cluster's DNS server (some minutes)",
        TOOLS_RECIPE
    ),
];

impl Part {
    /// Of everything that it is made from.
    fn key(&self) -> String {
        let mut digest = Sha256::new();
        for text in [self.recipe, self.module, self.sums] {
            digest.update(text.len().to_le_bytes());
            digest.update(text);
        }
        hex::encode(&digest.finalize()[..6])
    }
}

/// Where each part's programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    fn directory(&self, part: &str) -> PathBuf {
        let key = PARTS
            .iter()
            .chain(&TOOLS)
            .find(|known| known.name == part)
            .map(Part::key)
            .unwrap_or_default();
        self.0.join(format!("{part}-{key}"))
    }

    pub(crate) fn bin(&self, part: &str) -> PathBuf {
        self.directory(part).join("bin")
    }

    /// Calico's kinds, a YAML file each.
    pub(crate) fn calico_kinds(&self) -> PathBuf {
        self.directory("calico").join("crd")
    }
}

/// Builds what of a cluster is not yet in the cache. `say` hears of what takes long.
///
/// # Errors
/// The part that cannot be built, with the last words of its build.
pub(crate) async fn provide(cache: &Path, say: impl FnMut(String)) -> Result<Programs, BuildError> {
    provide_all(&PARTS, cache, say).await
}

/// As [`provide`], of Helm and CoreDNS.
pub(crate) async fn provide_tools(
    cache: &Path,
    say: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(&TOOLS, cache, say).await
}

async fn provide_all(
    wanted: &[Part],
    cache: &Path,
    mut say: impl FnMut(String),
) -> Result<Programs, BuildError> {
    let parts = cache.join("kubernetes-parts");
    let failed = |source| BuildError::Cache {
        path: parts.clone(),
        source,
    };
    std::fs::create_dir_all(&parts).map_err(failed)?;
    let programs = Programs(parts.clone());
    for part in wanted {
        let directory = programs.directory(part.name);
        if directory.is_dir() {
            continue;
        }
        let lock =
            std::fs::File::create(parts.join(format!("{}.lock", part.name))).map_err(failed)?;
        // Another run builds it: its result is ours too.
        let deadline = Instant::now() + BUILD_DEADLINE;
        while lock.try_lock().is_err() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if !directory.is_dir() {
            say(format!("building {}", part.what));
            build(part, &parts, &directory).await?;
        }
    }
    Ok(programs)
}

async fn build(part: &Part, parts: &Path, directory: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::Cache {
        path: parts.to_owned(),
        source,
    };
    let work = tempfile::tempdir_in(parts).map_err(failed)?;
    let (module, out) = (work.path().join("module"), work.path().join("out"));
    std::fs::create_dir_all(&module).map_err(failed)?;
    std::fs::create_dir_all(&out).map_err(failed)?;
    let recipes = work.path().join("kubernetes-parts");
    std::fs::create_dir_all(&recipes).map_err(failed)?;
    let script = recipes.join("build.sh");
    std::fs::write(&script, part.recipe).map_err(failed)?;
    std::fs::write(work.path().join("go.sh"), GO).map_err(failed)?;
    std::fs::write(module.join("go.mod"), part.module).map_err(failed)?;
    std::fs::write(module.join("go.sum"), part.sums).map_err(failed)?;
    Tool::new("bash")
        .args([&script, Path::new(part.name), &module, &out])
        .within(BUILD_DEADLINE)
        .run()
        .await
        .map_err(|source| BuildError::Failed {
            part: part.name,
            source,
        })?;
    std::fs::rename(&out, directory).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_a_place_of_its_own() {
        let all = || PARTS.iter().chain(&TOOLS);
        let programs = Programs(PathBuf::from("/cache"));
        let places: std::collections::BTreeSet<_> =
            all().map(|part| programs.bin(part.name)).collect();
        assert_eq!(places.len(), PARTS.len() + TOOLS.len());
        for part in all() {
            assert!(part.module.contains("tool"), "{} builds nothing", part.name);
        }
    }
}
