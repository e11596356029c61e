//! The instance's generated secrets: made once, kept in `secrets.json` with mode 0600.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use agentbox_contracts::permissions::SERVICES;
use serde::{Deserialize, Serialize};

/// The user of NATS that may do everything: for tests and for looking.
pub const ALL_ACCESS_USER: &str = "test";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// Postgres' superuser, and each service's own role.
    pub(crate) postgres: BTreeMap<String, String>,
    pub(crate) nats: BTreeMap<String, String>,
    /// 32 bytes in hex.
    pub(crate) auth_secret: String,
    /// 32 bytes in hex.
    pub(crate) box_secret: String,
    pub(crate) admin_username: String,
    pub(crate) admin_password: String,
}

/// Its secrets cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep secrets in {path}: {message}")]
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
        let mut nats: BTreeMap<String, String> = passwords(&SERVICES);
        nats.extend(passwords(&[ALL_ACCESS_USER]));
        Self {
            postgres: passwords(&[crate::postgres::SUPERUSER, "auth", "scheduler"]),
            nats,
            auth_secret: random_hex::<32>(),
            box_secret: random_hex::<32>(),
            admin_username: "admin".to_owned(),
            admin_password: random_hex::<12>(),
        }
    }

    /// Those of the last time, or new ones.
    pub(crate) fn load_or_generate(path: &Path) -> Result<Self, SecretsError> {
        let fail = |message: String| SecretsError {
            path: path.display().to_string(),
            message,
        };
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secrets = Self::generate();
                let bytes = serde_json::to_vec_pretty(&secrets).map_err(|e| fail(e.to_string()))?;
                write_private(path, &bytes).map_err(|e| fail(e.to_string()))?;
                Ok(secrets)
            }
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

/// Replaces a file in one step; nobody but its owner can read it at any moment.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let _ = std::fs::remove_file(&partial);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(bytes)?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let first = Secrets::load_or_generate(&path).unwrap();
        let again = Secrets::load_or_generate(&path).unwrap();
        assert_eq!(first.admin_password, again.admin_password);
        assert_eq!(first.auth_secret.len(), 64);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
