//! The limits of this machine's kernel that boxes share. They are raised as far as the kernel allows: then
//! the memory of a box bounds what it takes (`docs/isolation.md`).
//!
//! A user namespace does not divide them: the kernel counts each object of a box also for the machine, or
//! for the user that made the namespace, which is root for all boxes.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

const SETTINGS: [&str; 3] = [
    "/proc/sys/fs/aio-max-nr",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/fs/inotify/max_user_watches",
];
/// The largest value of these settings.
const MOST: u64 = 2_147_483_647;

/// Raises the limits of the machine, and those of this process, which its children inherit. Returns a line
/// for each that could not be raised.
pub(crate) fn raise() -> Vec<String> {
    let settings = SETTINGS.map(|setting| (setting, raise_setting(Path::new(setting))));
    let resources = [
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ]
    .map(|(name, resource)| {
        let raised = setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY);
        (name, raised.map_err(io::Error::from))
    });
    settings
        .into_iter()
        .chain(resources)
        .filter_map(|(limit, raised)| {
            let error = raised.err()?;
            Some(format!(
                "{limit} could not be raised ({error}): one box can take all of it from the others"
            ))
        })
        .collect()
}

fn raise_setting(setting: &Path) -> io::Result<()> {
    let limit = fs::read_to_string(setting)?;
    match limit.trim().parse::<u64>() {
        Ok(limit) if limit >= MOST => Ok(()),
        _ => fs::write(setting, MOST.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_is_raised_and_never_lowered() {
        let directory = tempfile::tempdir().unwrap();
        let setting = directory.path().join("max_user_instances");
        for (before, after) in [
            ("128\n", "2147483647"),
            ("2147483647\n", "2147483647\n"),
            ("9223372036854775807\n", "9223372036854775807\n"),
        ] {
            fs::write(&setting, before).unwrap();
            raise_setting(&setting).unwrap();
            assert_eq!(fs::read_to_string(&setting).unwrap(), after);
        }
        let missing = raise_setting(&directory.path().join("missing"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
