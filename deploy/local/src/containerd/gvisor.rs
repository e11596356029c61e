//! gVisor as a runtime of this containerd, where its `runsc` is: on the search path, or
//! built into the cache (`make gvisor`).
//!
//! containerd's own shim for runc drives it, through a script that says why
//! (`deploy/gvisor/as-runc.sh`).

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Paths;

/// What a request names as its `runtime_class`.
pub(crate) const CLASS: &str = "gvisor";

const AS_RUNC: &str = include_str!("../../../gvisor/as-runc.sh");

/// The newest that was built, unless one is installed.
pub(crate) fn find() -> Option<PathBuf> {
    crate::tool::find("runsc").or_else(|| built(&crate::plan::cache_directory()))
}

fn built(cache: &Path) -> Option<PathBuf> {
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

/// A shell word.
fn word(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Writes the script; its path.
pub(crate) fn write_script(paths: &Paths, runsc: &Path) -> io::Result<PathBuf> {
    let path = paths.run().join("runsc.sh");
    std::fs::write(&path, AS_RUNC.replace("@RUNSC@", &word(runsc)))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_was_built_is_found() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(built(cache.path()), None);
        for version in ["20250101000000", "20260905035102", "20270101000000"] {
            let directory = cache.path().join(format!("gvisor-{version}"));
            std::fs::create_dir(&directory).unwrap();
            // The last is being built.
            if version < "2027" {
                std::fs::write(directory.join("runsc"), "").unwrap();
            }
        }
        let newest = cache.path().join("gvisor-20260905035102/runsc");
        assert_eq!(built(cache.path()), Some(newest));
    }

    #[test]
    fn the_script_has_one_place_for_the_path() {
        assert_eq!(AS_RUNC.matches("@RUNSC@").count(), 1);
    }

    #[test]
    fn a_path_cannot_break_out_of_its_word() {
        assert_eq!(word(Path::new("/a b/'c")), r"'/a b/'\''c'");
    }
}
