//! Where an instance, its programs and the cache keep their files.

use std::path::{Path, PathBuf};

/// The prefix of the tests' directories in the system's directory for temporary files.
pub const TEST_DIRECTORY: &str = "agentbox-test-";

/// The parent of every instance's run directory.
pub const RUN_DIRECTORIES: &str = "/run/agentbox";

/// `/run/agentbox/<deployment>`: short, because a socket's path has at most 107 bytes, and on a
/// file system that a reboot empties.
#[must_use]
pub fn run_directory(deployment: &str) -> PathBuf {
    Path::new(RUN_DIRECTORIES).join(deployment)
}

/// The socket of a deployment's containerd.
#[must_use]
pub fn containerd_socket(deployment: &str) -> PathBuf {
    run_directory(deployment).join("containerd.sock")
}

/// The files of one instance.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

impl Layout {
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Locked by the supervisor while it runs.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("supervisor.lock")
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Exists when a test failed: its logs are kept.
    #[must_use]
    pub fn keep_marker(&self) -> PathBuf {
        self.0.join("keep")
    }

    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.0.join("secrets.json")
    }

    #[must_use]
    pub fn clusters(&self) -> PathBuf {
        self.0.join("clusters.json")
    }

    #[must_use]
    pub fn pools(&self) -> PathBuf {
        self.0.join("pools.json")
    }

    /// The first administrator's password, which auth reads at its first start.
    #[must_use]
    pub fn admin_password(&self) -> PathBuf {
        self.0.join("admin-password")
    }

    #[must_use]
    pub fn local_env(&self) -> PathBuf {
        self.0.join("local.env")
    }

    /// The directory of services' programs that `agentbox-local dev` built.
    #[must_use]
    pub fn dev_programs(&self) -> PathBuf {
        self.0.join("dev")
    }

    /// Started in the place of a service's program when the file exists.
    #[must_use]
    pub fn dev_program(&self, service: &str) -> PathBuf {
        self.dev_programs().join(format!("agentbox-{service}"))
    }

    /// The configuration and the data of the programs that observe the instance.
    #[must_use]
    pub fn observability(&self) -> PathBuf {
        self.0.join("observability")
    }

    /// Further variables of the services while the instance is observed.
    #[must_use]
    pub fn trace_environment(&self) -> PathBuf {
        self.observability().join("services.env")
    }

    /// Written by `agentbox-local observe`, and removed by the supervisor.
    #[must_use]
    pub fn observe_request(&self) -> PathBuf {
        self.0.join("observe-request")
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    #[must_use]
    pub fn nats(&self) -> PathBuf {
        self.0.join("nats")
    }

    /// The images in the registry of a Kubernetes.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }
}

/// The directory of downloads and builds, outside any checkout.
#[must_use]
pub fn cache_directory() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("agentbox")
}

/// The directory of the product's programs: `AGENTBOX_BIN_DIR`, or the target directory of
/// this program.
#[must_use]
pub fn bin_dir() -> PathBuf {
    if let Some(directory) = std::env::var_os("AGENTBOX_BIN_DIR") {
        return directory.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let directory = own.parent().unwrap_or(Path::new("."));
    let is_inner = directory.ends_with("deps") || directory.ends_with("examples");
    directory
        .parent()
        .filter(|_| is_inner)
        .unwrap_or(directory)
        .to_owned()
}

/// The static `boxd`: `AGENTBOX_BOXD`, or the output of `make boxd`.
#[must_use]
pub fn boxd() -> PathBuf {
    if let Some(path) = std::env::var_os("AGENTBOX_BOXD") {
        return path.into();
    }
    boxd_beside(&bin_dir())
}

/// The output of `make boxd` in the target directory of these programs.
#[must_use]
pub fn boxd_beside(bin_dir: &Path) -> PathBuf {
    let target = bin_dir.parent().map(Path::to_owned).unwrap_or_default();
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    target.join("static").join(triple).join("boxd/boxd")
}

/// A program that a caller needs is not built.
#[derive(Debug, thiserror::Error)]
#[error("{path} is not built; build it with `{command}`")]
pub struct NotBuilt {
    path: PathBuf,
    command: &'static str,
}

/// The path, if there is a file; otherwise an error with the command that builds it.
///
/// # Errors
/// When there is no file at the path.
pub fn require(path: PathBuf, command: &'static str) -> Result<PathBuf, NotBuilt> {
    if path.is_file() {
        Ok(path)
    } else {
        Err(NotBuilt { path, command })
    }
}

/// The program `agentbox-local`.
///
/// # Errors
/// When it is not built.
pub fn agentbox_local(bin_dir: &Path) -> Result<PathBuf, NotBuilt> {
    require(
        bin_dir.join("agentbox-local"),
        "cargo build -p agentbox-local",
    )
}
