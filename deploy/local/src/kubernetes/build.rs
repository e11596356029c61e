//! The programs of a Kubernetes cluster, built once from Go modules and kept in the cache,
//! outside any checkout.
//!
//! * I1. A part's directory is named by a digest of everything that it is made from, so a
//!   stale one is never used.
//! * I2. A part is there whole or not at all: it is built beside, then renamed.
//! * I3. Two runs that start together build each part once: building holds a lock.
//! * I4. All parts of one run share what Go fetches and compiles; it is removed when they are
//!   built, and used again when a run was cut off.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use agentbox_testing::tool::{Tool, ToolError};

const RECIPE: &str = include_str!("../../../kubernetes-parts/build.sh");
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

/// A Go module of ours that pins what is built.
struct Module {
    /// Each file's path in the module, and its content.
    files: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal $(, $source:literal)*) => {
        Module {
            files: &[
                ("go.mod", include_str!(concat!("../../../kubernetes-parts/", $name, "/go.mod"))),
                ("go.sum", include_str!(concat!("../../../kubernetes-parts/", $name, "/go.sum"))),
                $(($source, include_str!(concat!("../../../kubernetes-parts/", $name, "/", $source))),)*
            ],
        }
    };
}

/// One module for all that can share the versions of their dependencies: most of the time goes
/// into those, and each is compiled once.
static CLUSTER: Module = module!("cluster", "coredns/main.go", "registry/main.go");
/// containerd needs a newer version of Kubernetes' own modules.
static CONTAINERD: Module = module!("containerd");
/// Calico needs older ones.
static CALICO: Module = module!("calico");

/// Programs that are used together.
struct Part {
    name: &'static str,
    /// The text that a waiting person reads.
    description: &'static str,
    module: &'static Module,
}

const fn part(name: &'static str, description: &'static str, module: &'static Module) -> Part {
    Part {
        name,
        description,
        module,
    }
}

/// The parts of a running cluster.
static PARTS: [Part; 6] = [
    part(
        "kubernetes",
        "the API server, controllers, scheduler, kubelet and proxy (some minutes)",
        &CLUSTER,
    ),
    part("metrics-server", "metrics-server", &CLUSTER),
    part("etcd", "etcd", &CLUSTER),
    part("containerd", "containerd 2 with its shim", &CONTAINERD),
    part(
        "registry",
        "an OCI registry, and crane to fill it",
        &CLUSTER,
    ),
    part(
        "calico",
        "Calico's Felix and its network plugin (some minutes)",
        &CALICO,
    ),
];

/// What a cluster is used with, where the chart is installed.
static TOOLS: [Part; 2] = [
    part("helm", "Helm", &CLUSTER),
    part("coredns", "CoreDNS, a cluster's DNS server", &CLUSTER),
];

impl Part {
    /// Of everything that it is made from.
    fn key(&self) -> String {
        let mut digest = Sha256::new();
        let files = self.module.files.iter();
        for text in std::iter::once(RECIPE).chain(files.map(|(_, text)| *text)) {
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
    pub(crate) fn calico_crds(&self) -> PathBuf {
        self.directory("calico").join("crd")
    }
}

/// Builds the parts of a cluster that are not yet in the cache. `say` hears of what takes long.
///
/// # Errors
/// The part that cannot be built, with the last lines of its build.
pub(crate) async fn provide(cache: &Path, say: impl FnMut(String)) -> Result<Programs, BuildError> {
    provide_all(PARTS.iter(), cache, say).await
}

/// As [`provide`], of Helm and CoreDNS.
pub(crate) async fn provide_tools(
    cache: &Path,
    say: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(TOOLS.iter(), cache, say).await
}

/// As [`provide`] and [`provide_tools`] in one run, which compiles what they share once.
pub(crate) async fn provide_with_tools(
    cache: &Path,
    say: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(PARTS.iter().chain(&TOOLS), cache, say).await
}

async fn provide_all(
    wanted: impl Iterator<Item = &'static Part>,
    cache: &Path,
    mut say: impl FnMut(String),
) -> Result<Programs, BuildError> {
    let parts = cache.join("kubernetes-parts");
    let failed = |source| BuildError::Cache {
        path: parts.clone(),
        source,
    };
    let programs = Programs(parts.clone());
    let missing: Vec<_> = wanted
        .filter(|part| !programs.directory(part.name).is_dir())
        .collect();
    if missing.is_empty() {
        return Ok(programs);
    }
    std::fs::create_dir_all(&parts).map_err(failed)?;
    let lock = std::fs::File::create(parts.join("build.lock")).map_err(failed)?;
    // Another run builds: its result is used here too.
    let deadline = Instant::now() + BUILD_DEADLINE;
    while lock.try_lock().is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let shared = parts.join("go");
    for part in missing {
        let directory = programs.directory(part.name);
        if !directory.is_dir() {
            say(format!("building {}", part.description));
            build(part, &parts, &shared, &directory).await?;
        }
    }
    if shared.exists() {
        std::fs::remove_dir_all(&shared).map_err(failed)?;
    }
    Ok(programs)
}

async fn build(
    part: &Part,
    parts: &Path,
    shared: &Path,
    directory: &Path,
) -> Result<(), BuildError> {
    let failed = |source| BuildError::Cache {
        path: parts.to_owned(),
        source,
    };
    let work = tempfile::tempdir_in(parts).map_err(failed)?;
    let (module, out) = (work.path().join("module"), work.path().join("out"));
    let recipes = work.path().join("kubernetes-parts");
    for made in [&out, &recipes] {
        std::fs::create_dir_all(made).map_err(failed)?;
    }
    let script = recipes.join("build.sh");
    std::fs::write(&script, RECIPE).map_err(failed)?;
    std::fs::write(work.path().join("go.sh"), GO).map_err(failed)?;
    for (path, text) in part.module.files {
        let path = module.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&module)).map_err(failed)?;
        std::fs::write(path, text).map_err(failed)?;
    }
    Tool::new("bash")
        .args([&script, Path::new(part.name), &module, &out, shared])
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
            let names: Vec<_> = part.module.files.iter().map(|(path, _)| *path).collect();
            assert!(names.starts_with(&["go.mod", "go.sum"]), "{}", part.name);
        }
    }
}
