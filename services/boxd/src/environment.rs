//! The environment variables that commands inherit: the image's and the box's, without
//! boxd's own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use agentbox_box_protocol::variables;
use parking_lot::Mutex;

pub type Variables = BTreeMap<OsString, OsString>;

/// The PATH of an image that sets none, as shells assume it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The inherited variables. A warm box adds to them once, with `Configure`.
pub struct Environment(Mutex<Arc<Variables>>);

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn inherited() -> Self {
        Self::from_variables(std::env::vars_os())
    }

    fn from_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut kept: Variables = variables
            .filter(|(name, _)| !is_boxd_variable(name))
            .collect();
        kept.entry("PATH".into())
            .or_insert_with(|| DEFAULT_PATH.into());
        Self(Mutex::new(Arc::new(kept)))
    }

    pub fn extend(&self, more: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut current = self.0.lock();
        Arc::make_mut(&mut current).extend(more);
    }

    /// Gives the box another user's `home`. The runtime has set the home of boxd's own user, `own`, unless the
    /// image sets one: then that stays.
    pub fn replace_home(&self, own: &Path, home: &Path) {
        let mut current = self.0.lock();
        let inherited = current.get(OsStr::new("HOME"));
        if inherited.is_none_or(|inherited| Path::new(inherited) == own) {
            Arc::make_mut(&mut current).insert("HOME".into(), home.into());
        }
    }

    /// The variables, extended or replaced by `more`.
    #[must_use]
    pub fn merged_with(&self, more: impl IntoIterator<Item = (OsString, OsString)>) -> Variables {
        let mut variables = Variables::clone(&self.0.lock());
        variables.extend(more);
        variables
    }
}

fn is_boxd_variable(name: &OsStr) -> bool {
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
    fn inherited_environment_drops_boxd_variables_and_has_path() {
        let given = [pair("AGENTBOX_BOXD_TOKEN", "secret"), pair("HOME", "/root")];
        let seen = Environment::from_variables(given.into_iter()).merged_with([]);
        assert_eq!(seen.get(OsStr::new("AGENTBOX_BOXD_TOKEN")), None);
        assert_eq!(seen.get(OsStr::new("HOME")), Some(&"/root".into()));
        assert_eq!(seen.get(OsStr::new("PATH")), Some(&DEFAULT_PATH.into()));
    }

    #[test]
    fn home_of_the_image_is_not_replaced() {
        for (inherited, expected) in [
            (vec![], "/home/app"),
            (vec![pair("HOME", "/root")], "/home/app"),
            (vec![pair("HOME", "/work")], "/work"),
        ] {
            let environment = Environment::from_variables(inherited.into_iter());
            environment.replace_home(Path::new("/root"), Path::new("/home/app"));
            let seen = environment.merged_with([]);
            assert_eq!(seen.get(OsStr::new("HOME")), Some(&expected.into()));
        }
    }

    #[test]
    fn command_variables_are_private_and_configured_variables_are_shared() {
        let environment = Environment::from_variables([pair("PATH", "/bin")].into_iter());
        assert_eq!(environment.merged_with([pair("A", "1")]).len(), 2);
        environment.extend([pair("B", "2")]);
        assert_eq!(
            environment
                .merged_with([pair("B", "3")])
                .get(OsStr::new("B")),
            Some(&"3".into())
        );
        assert_eq!(environment.merged_with([]).len(), 2);
    }
}
