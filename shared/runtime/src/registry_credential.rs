//! An owner's login at a registry.

use std::fmt;

/// A user name and a password or token of a registry. `Debug` prints neither.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegistryCredential {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryCredential(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_no_secret() {
        let credential = RegistryCredential {
            username: "ada".to_owned(),
            password: "secret".to_owned(),
        };
        assert_eq!(format!("{credential:?}"), "RegistryCredential(…)");
    }
}
