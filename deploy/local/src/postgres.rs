//! A Postgres server of our own: its data directory, roles and database.
//!
//! One role per service, owner of the schema of its own name and of nothing else: what
//! `auth` stores, `scheduler` cannot read. Listens on 127.0.0.1 only, with passwords.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::unistd::User;
use serde::{Deserialize, Serialize};

use crate::child::Launch;
use crate::tool::{Tool, ToolError};

pub(crate) const SUPERUSER: &str = "postgres";
/// Each has a schema of its name.
const ROLES: [&str; 2] = ["auth", "scheduler"];
const DATABASE: &str = "agentbox";

/// Postgres cannot be prepared or asked.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "PostgreSQL is not installed: run `agentbox-local prepare`, or install the package `postgresql`"
    )]
    NotInstalled,
    #[error("the system user `postgres` does not exist, and PostgreSQL refuses to run as root")]
    NoUser,
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("cannot prepare {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Where a running server is, and who may log in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PostgresEndpoint {
    pub port: u16,
    /// As the superuser, on the database `agentbox`.
    pub admin_url: String,
    /// By role: `auth`, `scheduler`.
    pub urls: BTreeMap<String, String>,
    /// Where `psql` is.
    pub bin: PathBuf,
}

impl PostgresEndpoint {
    pub(crate) fn new(bin: &Path, port: u16, passwords: &BTreeMap<String, String>) -> Self {
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

    /// Runs statements as the superuser, each in its own transaction.
    ///
    /// # Errors
    /// When one fails, with Postgres' words.
    pub async fn execute(&self, statements: &[&str]) -> Result<String, PostgresError> {
        self.execute_on(&self.admin_url, statements).await
    }

    async fn execute_on(&self, url: &str, statements: &[&str]) -> Result<String, PostgresError> {
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
        Ok(Tool::new(self.bin.join("psql"))
            .args(arguments)
            .run()
            .await?)
    }

    /// A new empty database, and the superuser's URL of it.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn fresh_database(&self) -> Result<String, PostgresError> {
        let name = format!("test_{}", hex::encode(rand::random::<[u8; 8]>()));
        self.execute(&[&format!("CREATE DATABASE {name}")]).await?;
        let server = self.admin_url.trim_end_matches(DATABASE);
        Ok(format!("{server}{name}"))
    }
}

pub(crate) struct Postgres {
    pub(crate) endpoint: PostgresEndpoint,
    data: PathBuf,
    /// The system user it runs as; `None` when we are not root.
    user: Option<User>,
    durable: bool,
}

/// The newest installed server's programs.
fn find_bin() -> Result<PathBuf, PostgresError> {
    let version = |path: &Path| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .max_by_key(|bin| version(bin))
        .or_else(|| Some(crate::tool::find("initdb")?.parent()?.to_owned()))
        .ok_or(PostgresError::NotInstalled)
}

impl Postgres {
    /// Makes the data directory when there is none. `mount_point` is used where the server's user
    /// cannot reach `directory` itself, below a private home for instance.
    pub(crate) async fn prepare(
        directory: &Path,
        mount_point: &Path,
        port: u16,
        passwords: &BTreeMap<String, String>,
        durable: bool,
    ) -> Result<Self, PostgresError> {
        let bin = find_bin()?;
        let endpoint = PostgresEndpoint::new(&bin, port, passwords);
        let user = if nix::unistd::geteuid().is_root() {
            let user = User::from_name("postgres").ok().flatten();
            Some(user.ok_or(PostgresError::NoUser)?)
        } else {
            None
        };
        let failed = |source: std::io::Error| PostgresError::Directory {
            path: directory.to_owned(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut reachable = directory.to_owned();
        if let Some(user) = &user {
            std::os::unix::fs::chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .map_err(failed)?;
            let test = as_user(user, Path::new("test"))
                .args(["-w"])
                .args([directory]);
            if test.run().await.is_err() {
                reachable = mount_point.to_owned();
                std::fs::create_dir_all(&reachable).map_err(failed)?;
                mount(
                    Some(directory),
                    &reachable,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .map_err(|errno| failed(errno.into()))?;
            }
        }
        let server = Self {
            endpoint,
            data: reachable.join("data"),
            user,
            durable,
        };
        if !directory.join("data/PG_VERSION").exists() {
            server.initialise(passwords).await?;
        }
        Ok(server)
    }

    async fn initialise(&self, passwords: &BTreeMap<String, String>) -> Result<(), PostgresError> {
        // A run that was killed in the middle has left a half-made directory.
        let _ = std::fs::remove_dir_all(&self.data);
        let failed = |source| PostgresError::Directory {
            path: self.data.clone(),
            source,
        };
        let file = self.data.with_file_name("password");
        let password = passwords.get(SUPERUSER).map_or("", String::as_str);
        crate::secrets::write_private(&file, password.as_bytes()).map_err(failed)?;
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(&file, Some(user.uid.as_raw()), None).map_err(failed)?;
        }
        let program = self.endpoint.bin.join("initdb");
        let tool = match &self.user {
            Some(user) => as_user(user, &program),
            None => Tool::new(&program),
        };
        let made = tool
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .args(["-U", SUPERUSER, "-D"])
            .args([&self.data])
            .arg_pair("--pwfile", &file)
            .within(Duration::from_secs(60))
            .run()
            .await;
        let _ = std::fs::remove_file(&file);
        made?;
        Ok(())
    }

    pub(crate) fn launch(&self, log: PathBuf) -> Launch {
        let mut settings = vec![
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.endpoint.port),
            "unix_socket_directories=".to_owned(),
            "max_connections=300".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        if !self.durable {
            settings.extend(
                [
                    "fsync=off",
                    "synchronous_commit=off",
                    "full_page_writes=off",
                ]
                .map(str::to_owned),
            );
        }
        let mut arguments = vec!["-D".into(), self.data.clone().into()];
        for setting in settings {
            arguments.extend(["-c".into(), setting.into()]);
        }
        Launch {
            name: "postgres".to_owned(),
            program: self.endpoint.bin.join("postgres"),
            arguments,
            environment: BTreeMap::new(),
            user: self.user.as_ref().map(|user| user.name.clone()),
            // "Fast": ends its clients, then writes everything down.
            stop_signal: if self.durable {
                Signal::SIGINT
            } else {
                Signal::SIGQUIT
            },
            orphan_signal: Signal::SIGQUIT,
            grace: Duration::from_secs(20),
            log,
        }
    }

    pub(crate) async fn is_ready(&self) -> bool {
        let port = self.endpoint.port.to_string();
        Tool::new(self.endpoint.bin.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &port])
            .run()
            .await
            .is_ok()
    }

    /// The database, the roles and their schemas: made when missing, passwords renewed.
    pub(crate) async fn bootstrap(
        &self,
        passwords: &BTreeMap<String, String>,
    ) -> Result<(), PostgresError> {
        let maintenance = self.endpoint.admin_url.replace("/agentbox", "/postgres");
        let there = self
            .endpoint
            .execute_on(
                &maintenance,
                &["SELECT 1 FROM pg_database WHERE datname = 'agentbox'"],
            )
            .await?;
        if there.trim() != "1" {
            self.endpoint
                .execute_on(&maintenance, &["CREATE DATABASE agentbox"])
                .await?;
        }
        let mut statements = vec![
            "REVOKE ALL ON DATABASE agentbox FROM PUBLIC".to_owned(),
            "REVOKE ALL ON SCHEMA public FROM PUBLIC".to_owned(),
        ];
        for role in ROLES {
            let password = passwords.get(role).map_or("", String::as_str);
            statements.extend([
                format!(
                    "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
                ),
                format!("ALTER ROLE {role} LOGIN PASSWORD '{password}'"),
                // CREATE, since `CREATE SCHEMA IF NOT EXISTS` asks for it even when the
                // schema exists; migrations begin with that.
                format!("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE agentbox TO {role}"),
                format!("SET client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS {role} AUTHORIZATION {role}"),
                format!("ALTER ROLE {role} IN DATABASE agentbox SET search_path = {role}"),
            ]);
        }
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        self.endpoint.execute(&statements).await?;
        Ok(())
    }
}

fn as_user(user: &User, program: &Path) -> Tool {
    Tool::new("setpriv")
        .args([
            format!("--reuid={}", user.name),
            format!("--regid={}", user.gid),
        ])
        .args(["--clear-groups", "--"])
        .args([program])
}
