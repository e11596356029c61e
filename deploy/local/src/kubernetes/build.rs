//! The programs of a Kubernetes cluster, the containerd and runc of one machine, and the programs that
//! observe an instance, built once from Go modules and kept in the cache, outside any checkout.
//!
//! * I1. The name of a part's directory contains a digest of the part's inputs, so that a stale
//!   part is never used.
//! * I2. A part's directory is complete: it is built under another name, and then renamed.
//! * I3. Two runs that start together build each part once: a build holds a lock. A run without
//!   the lock builds nothing.
//! * I4. The parts of one run share Go's caches of modules and of compiled packages. The caches
//!   are removed after the last part; after an interrupted run the next run uses them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use agentbox_testing::tool::{Tool, ToolError};

use crate::file_lock::{self, LockError};

const RECIPE: &str = include_str!("../../../kubernetes-parts/build.sh");
const RUNC_RECIPE: &str = include_str!("../../../runc/build.sh");
const OBSERVABILITY_RECIPE: &str = include_str!("../../../observability/build.sh");
/// The script that provides Go to the recipes.
const GO: &str = include_str!("../../../go.sh");

/// The deadline for one part. All of Kubernetes compiles in minutes on an idle machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(3_600);

/// The cluster's programs cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot build {part} from its Go modules: {source}")]
    Failed {
        part: &'static str,
        source: ToolError,
    },
    #[error("cannot store the programs that were built in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// One of our Go modules, which pins the versions of the programs.
struct Module {
    /// The script that builds it.
    recipe: &'static str,
    /// Each file's path in the module, and its content.
    files: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal $(, $source:literal)*) => {
        Module {
            recipe: RECIPE,
            files: &[
                ("go.mod", include_str!(concat!("../../../kubernetes-parts/", $name, "/go.mod"))),
                ("go.sum", include_str!(concat!("../../../kubernetes-parts/", $name, "/go.sum"))),
                $(($source, include_str!(concat!("../../../kubernetes-parts/", $name, "/", $source))),)*
            ],
        }
    };
}

/// The module of all programs that can use the same versions of their dependencies. Compiling the
/// dependencies takes most of the time, and each is compiled once.
static CLUSTER: Module = module!("cluster", "coredns/main.go", "registry/main.go");
/// containerd needs newer versions of Kubernetes' libraries.
static CONTAINERD: Module = module!("containerd");
/// Calico needs older versions of Kubernetes' libraries.
static CALICO: Module = module!("calico");
static RUNC: Module = Module {
    recipe: RUNC_RECIPE,
    files: &[
        ("go.mod", include_str!("../../../runc/go.mod")),
        ("go.sum", include_str!("../../../runc/go.sum")),
    ],
};

macro_rules! observability_module {
    ($name:literal $(, $source:literal)*) => {
        Module {
            recipe: OBSERVABILITY_RECIPE,
            files: &[
                ("go.mod", include_str!(concat!("../../../observability/", $name, "/go.mod"))),
                ("go.sum", include_str!(concat!("../../../observability/", $name, "/go.sum"))),
                $(($source, include_str!(concat!("../../../observability/", $name, "/", $source))),)*
            ],
        }
    };
}

static JAEGER: Module = observability_module!("programs/jaeger");
static COLLECTOR: Module = observability_module!("programs/collector", "main.go");
static VALIDATE: Module = observability_module!("validate", "main.go");

/// Programs that are built together.
struct Part {
    name: &'static str,
    /// The programs, for the message before the build.
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

/// The directory of all parts in the cache.
const DIRECTORY: &str = "kubernetes-parts";

/// The parts of a running cluster.
static PARTS: [Part; 7] = [
    part(
        "kubernetes",
        "the API server, controllers, scheduler, kubelet and proxy (some minutes)",
        &CLUSTER,
    ),
    part("metrics-server", "metrics-server", &CLUSTER),
    part("etcd", "etcd", &CLUSTER),
    part("containerd", "containerd 2 with its shim", &CONTAINERD),
    part("runc", "runc", &RUNC),
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

/// The programs that install the chart and its requirements.
static TOOLS: [Part; 2] = [
    part("helm", "Helm", &CLUSTER),
    part("coredns", "CoreDNS, a cluster's DNS server", &CLUSTER),
];

/// The programs that observe an instance, and the one that validates dashboards.
static OBSERVABILITY: [Part; 3] = [
    part("jaeger", "Jaeger (some minutes)", &JAEGER),
    part(
        "collector",
        "the OpenTelemetry collector (some minutes)",
        &COLLECTOR,
    ),
    part("dashboards", "the validation of dashboards", &VALIDATE),
];

/// The parts that run boxes on one machine without Kubernetes.
const RUNTIME: [&str; 2] = ["containerd", "runc"];

impl Part {
    /// A digest of the recipe and of the module's files.
    fn inputs_digest(&self) -> String {
        let mut digest = Sha256::new();
        let files = self.module.files.iter();
        for text in std::iter::once(self.module.recipe).chain(files.map(|(_, text)| *text)) {
            digest.update(text.len().to_le_bytes());
            digest.update(text);
        }
        hex::encode(&digest.finalize()[..6])
    }
}

/// The directory of the parts' programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    fn directory(&self, part: &str) -> PathBuf {
        let digest = PARTS
            .iter()
            .chain(&TOOLS)
            .chain(&OBSERVABILITY)
            .find(|known| known.name == part)
            .map(Part::inputs_digest)
            .unwrap_or_default();
        self.0.join(format!("{part}-{digest}"))
    }

    pub(crate) fn bin(&self, part: &str) -> PathBuf {
        self.directory(part).join("bin")
    }

    /// A program of [`provide_runtime`]; the machine's own of that name if it is not in the cache.
    pub(crate) fn cached_or_installed(cache: &Path, part: &str, program: &str) -> PathBuf {
        let cached = Self(cache.join(DIRECTORY)).bin(part).join(program);
        if cached.is_file() {
            cached
        } else {
            program.into()
        }
    }

    /// The directory of Calico's custom resource definitions, one YAML file each.
    pub(crate) fn calico_crds(&self) -> PathBuf {
        self.directory("calico").join("crd")
    }
}

/// Builds the parts of a cluster that are not in the cache. `progress` receives a message before
/// each build.
///
/// # Errors
/// When a part cannot be built, with the last lines of its build.
pub(crate) async fn provide(
    cache: &Path,
    progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(PARTS.iter(), cache, progress).await
}

/// As [`provide`], for Helm and CoreDNS.
pub(crate) async fn provide_tools(
    cache: &Path,
    progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(TOOLS.iter(), cache, progress).await
}

/// As [`provide`] and [`provide_tools`] in one run, which compiles common dependencies once.
pub(crate) async fn provide_with_tools(
    cache: &Path,
    progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(PARTS.iter().chain(&TOOLS), cache, progress).await
}

/// As [`provide`], for the programs that observe an instance.
///
/// # Errors
/// As [`provide`].
pub(crate) async fn provide_observability(
    cache: &Path,
    progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    provide_all(OBSERVABILITY.iter(), cache, progress).await
}

/// Builds containerd and runc, if they are not in the cache.
///
/// # Errors
/// As [`provide`].
pub(crate) async fn provide_runtime(
    cache: &Path,
    progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    let wanted = PARTS.iter().filter(|part| RUNTIME.contains(&part.name));
    provide_all(wanted, cache, progress).await
}

async fn provide_all(
    wanted: impl Iterator<Item = &'static Part>,
    cache: &Path,
    mut progress: impl FnMut(String),
) -> Result<Programs, BuildError> {
    let parts = cache.join(DIRECTORY);
    let failed = |source| BuildError::Cache {
        path: parts.clone(),
        source,
    };
    let programs = Programs(parts.clone());
    let unbuilt: Vec<_> = wanted
        .filter(|part| !programs.directory(part.name).is_dir())
        .collect();
    if unbuilt.is_empty() {
        return Ok(programs);
    }
    std::fs::create_dir_all(&parts).map_err(failed)?;
    // If another run builds a part, its result is used.
    let _lock = file_lock::lock(&parts.join("build.lock"), BUILD_DEADLINE).await?;
    let shared = parts.join("go");
    for part in unbuilt {
        let directory = programs.directory(part.name);
        if !directory.is_dir() {
            progress(format!("building {}", part.description));
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
    let recipes = work.path().join("recipe");
    for directory in [&out, &recipes] {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let script = recipes.join("build.sh");
    std::fs::write(&script, part.module.recipe).map_err(failed)?;
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
    fn every_part_has_its_own_directory_and_a_pinned_module() {
        let all = || PARTS.iter().chain(&TOOLS).chain(&OBSERVABILITY);
        let programs = Programs(PathBuf::from("/cache"));
        let directories: std::collections::BTreeSet<_> =
            all().map(|part| programs.bin(part.name)).collect();
        assert_eq!(directories.len(), all().count());
        for part in all() {
            let names: Vec<_> = part.module.files.iter().map(|(path, _)| *path).collect();
            assert!(names.starts_with(&["go.mod", "go.sum"]), "{}", part.name);
        }
    }
}
