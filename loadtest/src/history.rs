//! The last recorded run of each scenario, in the user's cache.
//!
//! A scenario has a file of its own for each runtime, so that a run of one scenario keeps the records of
//! the others. A file is replaced atomically.

use std::io;
use std::path::{Path, PathBuf};

use agentbox_testing::paths::cache_directory;
use agentbox_testing::private_file;
use serde::{Deserialize, Serialize};

use crate::report::{About, ScenarioRun};

#[derive(Debug, Serialize, Deserialize)]
pub struct Recorded {
    pub about: About,
    pub run: ScenarioRun,
}

/// The directory of the records.
pub struct History(PathBuf);

impl History {
    /// The records of this user.
    pub fn of_user() -> Self {
        Self(cache_directory().join("bench"))
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The last run of a scenario; `None` if there is none, or one of another version of this program.
    pub fn last(&self, runtime: &str, scenario: &str) -> Option<Recorded> {
        let text = std::fs::read(self.path(runtime, scenario)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Replaces the last run of a scenario.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self, recorded: &Recorded) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        let path = self.path(&recorded.about.runtime, &recorded.run.scenario);
        private_file::write(&path, &serde_json::to_vec(recorded)?)
    }

    fn path(&self, runtime: &str, scenario: &str) -> PathBuf {
        self.0.join(format!("{runtime}-{scenario}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{about, run};

    #[test]
    fn recorded_run_is_read_again_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let history = History(directory.path().join("bench"));
        assert!(history.last("containerd", "exec").is_none());
        for (commit, turns) in [("a", 1), ("b", 3)] {
            let recorded = Recorded {
                about: about(commit),
                run: run("exec", &vec![10; turns]),
            };
            history.record(&recorded).unwrap();
        }
        let last = history.last("containerd", "exec").unwrap();
        assert_eq!((last.about, last.run.turns.len()), (about("b"), 3));
        assert!(history.last("kubernetes", "exec").is_none());
        assert!(history.last("containerd", "reads").is_none());
    }

    #[test]
    fn record_of_another_version_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let history = History(directory.path().to_owned());
        std::fs::write(history.path("containerd", "exec"), r#"{"figures": []}"#).unwrap();
        assert!(history.last("containerd", "exec").is_none());
    }
}
