//! `doctor`: checks whether this machine can run AgentBox, one line for each check, and what to do.
//!
//! It changes nothing. A failure means that `up` will not work; a warning, that it works with less.
//!
//! * [`machine`]: the kernel, control groups, namespaces, the clock, the disk. Decisions are pure.
//! * [`tools`]: the programs and their versions.

mod machine;
mod tools;

use std::fmt;
use std::path::Path;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Ok,
    /// AgentBox works, with less isolation or convenience.
    Warning,
    /// AgentBox does not work.
    Failure,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it. Empty if all is well.
    pub(crate) advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Warning,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn failure(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Failure,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// One line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (level, check) = (self.level.as_str(), self.check);
        write!(f, "{level:<8} {check:<15} {}", one_line(&self.found))?;
        if !self.advice.is_empty() {
            write!(f, "; {}", one_line(&self.advice))?;
        }
        Ok(())
    }
}

/// Checks the machine for an instance in `directory`.
pub(crate) async fn examine(directory: &Path) -> Vec<Finding> {
    let mut findings = machine::examine(directory);
    findings.extend(tools::examine().await);
    findings
}

/// The report, and whether no check failed.
#[must_use]
pub(crate) fn report(findings: &[Finding]) -> (String, bool) {
    let mut text: String = findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    let count = |level| {
        let of_level = findings.iter().filter(|finding| finding.level == level);
        of_level.count()
    };
    let (failures, warnings) = (count(Level::Failure), count(Level::Warning));
    text.push_str(&match (failures, warnings) {
        (0, 0) => "this machine can run AgentBox\n".to_owned(),
        (0, _) => format!("this machine can run AgentBox, with {warnings} warnings\n"),
        _ => format!("this machine cannot run AgentBox: {failures} checks failed\n"),
    });
    (text, failures == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_one_line_a_check_and_fails_on_a_failure_only() {
        let ok = Finding::ok("kernel", "6.1");
        let warning = Finding::warning("clock", "unknown", "start\na time service");
        let failure = Finding::failure("disk", "full", "delete files");
        let (text, passed) = report(&[ok.clone(), warning.clone()]);
        assert!(passed);
        assert_eq!(
            text,
            "ok       kernel          6.1\n\
             warning  clock           unknown; start a time service\n\
             this machine can run AgentBox, with 1 warnings\n"
        );
        let (text, passed) = report(&[ok, warning, failure]);
        assert!(!passed);
        assert!(text.contains("failure  disk            full; delete files\n"));
        assert!(text.ends_with("cannot run AgentBox: 1 checks failed\n"));
    }

    #[tokio::test]
    async fn every_check_of_this_machine_has_a_result_and_each_problem_an_advice() {
        let directory = tempfile::tempdir().unwrap();
        let findings = examine(directory.path()).await;
        for check in [
            "kernel",
            "rights",
            "cgroups",
            "namespaces",
            "quotas",
            "disk",
            "clock",
            "nft",
            "packages",
            "nats-server",
            "postgres",
            "containerd",
            "runc",
        ] {
            let of_check = findings.iter().filter(|finding| finding.check == check);
            assert_eq!(of_check.count(), 1, "{check}");
        }
        for finding in &findings {
            assert!(!finding.found.is_empty(), "{finding}");
            let is_ok = finding.level == Level::Ok;
            assert_eq!(finding.advice.is_empty(), is_ok, "{finding}");
        }
    }
}
