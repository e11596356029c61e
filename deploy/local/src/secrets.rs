//! The generated secrets of an instance, in `secrets.json` with mode 0600.

use std::collections::BTreeMap;
use std::path::Path;

use agentbox_contracts::permissions::USERS;
use agentbox_testing::endpoint::nats::ALL_ACCESS_USER;
use agentbox_testing::endpoint::postgres::{ROLES, SUPERUSER};
use agentbox_testing::private_file;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// Passwords of Postgres by role: the superuser's and each service's.
    pub(crate) postgres: BTreeMap<String, String>,
    /// Passwords of NATS by user.
    pub(crate) nats: BTreeMap<String, String>,
    /// 32 bytes in hex.
    pub(crate) auth_secret: String,
    /// 32 bytes in hex.
    pub(crate) box_secret: String,
    /// 32 bytes in hex. Empty in a file of an older version.
    #[serde(default)]
    pub(crate) scheduler_secret: String,
    /// 32 bytes in hex. Empty in a file of an older version.
    #[serde(default)]
    pub(crate) webhooks_secret: String,
    pub(crate) admin_username: String,
    pub(crate) admin_password: String,
}

/// The secrets cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read or write the secrets in {path}: {message}")]
pub struct SecretsError {
    path: String,
    message: String,
}

fn random_hex<const BYTES: usize>() -> String {
    hex::encode(rand::random::<[u8; BYTES]>())
}

impl Secrets {
    fn generate() -> Self {
        let passwords = |users: &[&str]| {
            users
                .iter()
                .map(|user| ((*user).to_owned(), random_hex::<16>()))
                .collect()
        };
        let mut nats: BTreeMap<String, String> = passwords(&USERS);
        nats.extend(passwords(&[ALL_ACCESS_USER]));
        Self {
            postgres: passwords(&[&[SUPERUSER][..], &ROLES].concat()),
            nats,
            auth_secret: random_hex::<32>(),
            box_secret: random_hex::<32>(),
            scheduler_secret: random_hex::<32>(),
            webhooks_secret: random_hex::<32>(),
            admin_username: "admin".to_owned(),
            admin_password: random_hex::<12>(),
        }
    }

    /// Reads the secrets; generates and writes them when there is no file.
    pub(crate) fn load_or_generate(path: &Path) -> Result<Self, SecretsError> {
        let fail = |message: String| SecretsError {
            path: path.display().to_string(),
            message,
        };
        let secrets = match std::fs::read(path) {
            Ok(bytes) => {
                let mut secrets: Self =
                    serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
                if !secrets.add_missing() {
                    return Ok(secrets);
                }
                secrets
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::generate(),
            Err(error) => return Err(fail(error.to_string())),
        };
        let bytes = serde_json::to_vec_pretty(&secrets).map_err(|e| fail(e.to_string()))?;
        private_file::write(path, &bytes).map_err(|e| fail(e.to_string()))?;
        Ok(secrets)
    }

    /// Generates the secrets that an earlier version did not have. Returns whether there were any.
    fn add_missing(&mut self) -> bool {
        let before = self.nats.len() + self.postgres.len();
        for user in USERS {
            self.nats
                .entry(user.to_owned())
                .or_insert_with(random_hex::<16>);
        }
        for role in ROLES {
            self.postgres
                .entry(role.to_owned())
                .or_insert_with(random_hex::<16>);
        }
        let mut is_changed = self.nats.len() + self.postgres.len() > before;
        for secret in [&mut self.scheduler_secret, &mut self.webhooks_secret] {
            if secret.is_empty() {
                *secret = random_hex::<32>();
                is_changed = true;
            }
        }
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentbox_contracts::permissions::PROVISIONER;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secret_that_an_older_file_lacks_is_generated_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let mut older = serde_json::to_value(Secrets::generate()).unwrap();
        for secret in ["scheduler_secret", "webhooks_secret"] {
            older.as_object_mut().unwrap().remove(secret);
        }
        let roles = older["postgres"].as_object_mut().unwrap();
        roles.remove("webhooks");
        std::fs::write(&path, older.to_string()).unwrap();
        let first = Secrets::load_or_generate(&path).unwrap();
        let again = Secrets::load_or_generate(&path).unwrap();
        assert_eq!(first.scheduler_secret.len(), 64);
        assert_eq!(first.scheduler_secret, again.scheduler_secret);
        assert_eq!(first.webhooks_secret.len(), 64);
        assert_eq!(first.webhooks_secret, again.webhooks_secret);
        assert_eq!(first.postgres["webhooks"], again.postgres["webhooks"]);
        assert_eq!(first.auth_secret, older["auth_secret"]);
    }

    #[test]
    fn secrets_are_generated_once_with_mode_0600_and_completed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let first = Secrets::load_or_generate(&path).unwrap();
        let again = Secrets::load_or_generate(&path).unwrap();
        assert_eq!(first.admin_password, again.admin_password);
        assert_eq!(first.auth_secret.len(), 64);
        assert_eq!(first.scheduler_secret.len(), 64);
        assert_eq!(first.scheduler_secret, again.scheduler_secret);
        let mut old = first;
        old.nats.remove(PROVISIONER);
        std::fs::write(&path, serde_json::to_vec(&old).unwrap()).unwrap();
        let added = Secrets::load_or_generate(&path).unwrap();
        assert!(added.nats.contains_key(PROVISIONER));
        assert_eq!(added.auth_secret, old.auth_secret);
        let stored = Secrets::load_or_generate(&path).unwrap();
        assert_eq!(stored.nats, added.nats);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
