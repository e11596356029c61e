//! gVisor as a runtime of containerd. Its program `runsc` is on the search path, or in the
//! cache (`make gvisor`).
//!
//! containerd's shim for runc starts it through a script, `deploy/gvisor/as-runc.sh`, which
//! gives the reasons.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agentbox_testing::paths::cache_directory;
use agentbox_testing::tool;

use crate::cluster_paths::ClusterPaths;

/// The `runtime_class` of a request that selects gVisor.
pub(crate) const CLASS: &str = "gvisor";

const AS_RUNC: &str = include_str!("../../gvisor/as-runc.sh");

/// The installed `runsc`, or the newest one in the cache.
pub(crate) fn find() -> Option<PathBuf> {
    tool::find("runsc").or_else(|| newest_in(&cache_directory()))
}

fn newest_in(cache: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(cache).ok()?;
    let of_gvisor = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("gvisor-"))
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(of_gvisor)
        .map(|directory| directory.join("runsc"))
        .filter(|program| program.is_file())
        .max()
}

/// Quotes a path as one word of a shell.
fn shell_word(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Writes the script; gives its path.
pub(crate) fn write_script(paths: &ClusterPaths, runsc: &Path) -> io::Result<PathBuf> {
    let path = paths.run().join("runsc.sh");
    std::fs::write(&path, AS_RUNC.replace("@RUNSC@", &shell_word(runsc)))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_built_version_is_found() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(newest_in(cache.path()), None);
        for version in ["20250101000000", "20260905035102", "20270101000000"] {
            let directory = cache.path().join(format!("gvisor-{version}"));
            std::fs::create_dir(&directory).unwrap();
            // The build of the last one is not finished.
            if version < "2027" {
                std::fs::write(directory.join("runsc"), "").unwrap();
            }
        }
        let newest = cache.path().join("gvisor-20260905035102/runsc");
        assert_eq!(newest_in(cache.path()), Some(newest));
    }

    #[test]
    fn script_has_one_placeholder_for_the_path() {
        assert_eq!(AS_RUNC.matches("@RUNSC@").count(), 1);
    }

    #[test]
    fn path_with_quotes_stays_one_shell_word() {
        assert_eq!(shell_word(Path::new("/a b/'c")), r"'/a b/'\''c'");
    }
}
