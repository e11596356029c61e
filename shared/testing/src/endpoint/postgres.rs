//! A running Postgres server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tool::{Tool, ToolError};

/// The role with all rights.
pub const SUPERUSER: &str = "postgres";
/// The services' roles; each owns the schema of its own name.
pub const ROLES: [&str; 3] = ["auth", "scheduler", "webhooks"];
/// The database of the services.
pub const DATABASE: &str = "agentbox";

/// The address of a running Postgres server, and its roles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PostgresEndpoint {
    pub port: u16,
    /// As the superuser, on the database `agentbox`.
    pub admin_url: String,
    /// By role: `auth`, `scheduler`, `webhooks`.
    pub urls: BTreeMap<String, String>,
    /// The directory of the server's programs, such as `psql`.
    pub bin: PathBuf,
}

impl PostgresEndpoint {
    /// A server on 127.0.0.1 with these passwords by role.
    #[must_use]
    pub fn new(bin: &Path, port: u16, passwords: &BTreeMap<String, String>) -> Self {
        let url = |role: &str| {
            let password = passwords.get(role).map_or("", String::as_str);
            format!("postgres://{role}:{password}@127.0.0.1:{port}/{DATABASE}")
        };
        Self {
            port,
            admin_url: url(SUPERUSER),
            urls: ROLES
                .iter()
                .map(|role| ((*role).to_owned(), url(role)))
                .collect(),
            bin: bin.to_owned(),
        }
    }

    /// Runs statements as the superuser, each in its own transaction; gives `psql`'s output.
    ///
    /// # Errors
    /// When a statement fails, with the message of Postgres.
    pub async fn execute(&self, statements: &[&str]) -> Result<String, ToolError> {
        self.execute_on(&self.admin_url, statements).await
    }

    /// As [`Self::execute`], on the database and as the role of this URL.
    ///
    /// # Errors
    /// When a statement fails, with the message of Postgres.
    pub async fn execute_on(&self, url: &str, statements: &[&str]) -> Result<String, ToolError> {
        let mut arguments = vec![
            "--no-psqlrc",
            "--quiet",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            url,
        ];
        for statement in statements {
            arguments.extend(["-c", statement]);
        }
        Tool::new(self.bin.join("psql")).args(arguments).run().await
    }

    /// Creates an empty database; gives the superuser's URL of it.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn create_database(&self) -> Result<String, ToolError> {
        let name = format!("test_{}", hex::encode(rand::random::<[u8; 8]>()));
        self.execute(&[&format!("CREATE DATABASE {name}")]).await?;
        let server = self.admin_url.trim_end_matches(DATABASE);
        Ok(format!("{server}{name}"))
    }
}
