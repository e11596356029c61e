//! The environment that commands inherit: the image's and the box's own, without
//! boxd's variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex};

use agentbox_box_protocol::variables;

use crate::lock::lock;

pub type Variables = BTreeMap<OsString, OsString>;

/// What a shell assumes when an image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Grows once, when a warm box is configured.
pub struct Environment(Mutex<Arc<Variables>>);

impl Environment {
    /// Of this process.
    #[must_use]
    pub fn inherited() -> Self {
        Self::of(std::env::vars_os())
    }

    fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut kept: Variables = variables.filter(|(name, _)| !is_ours(name)).collect();
        kept.entry("PATH".into())
            .or_insert_with(|| DEFAULT_PATH.into());
        Self(Mutex::new(Arc::new(kept)))
    }

    pub fn add(&self, more: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut current = lock(&self.0);
        Arc::make_mut(&mut current).extend(more);
    }

    /// The environment with `more` on top.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = (OsString, OsString)>) -> Variables {
        let mut variables = Variables::clone(&lock(&self.0));
        variables.extend(more);
        variables
    }
}

fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(variables::PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (OsString, OsString) {
        (name.into(), value.into())
    }

    #[test]
    fn boxds_variables_are_not_inherited_and_path_is_always_there() {
        let given = [pair("AGENTBOX_BOXD_TOKEN", "secret"), pair("HOME", "/root")];
        let seen = Environment::of(given.into_iter()).with([]);
        assert_eq!(seen.get(OsStr::new("AGENTBOX_BOXD_TOKEN")), None);
        assert_eq!(seen.get(OsStr::new("HOME")), Some(&"/root".into()));
        assert_eq!(seen.get(OsStr::new("PATH")), Some(&DEFAULT_PATH.into()));
    }

    #[test]
    fn what_a_command_adds_is_its_own_and_what_configuring_adds_is_everybodys() {
        let environment = Environment::of([pair("PATH", "/bin")].into_iter());
        assert_eq!(environment.with([pair("A", "1")]).len(), 2);
        environment.add([pair("B", "2")]);
        assert_eq!(
            environment.with([pair("B", "3")]).get(OsStr::new("B")),
            Some(&"3".into())
        );
        assert_eq!(environment.with([]).len(), 2);
    }
}
