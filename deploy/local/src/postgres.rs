//! A Postgres server: its data directory, roles and database.
//!
//! * I1. Each service has a role, which owns the schema of its own name and nothing else:
//!   `scheduler` cannot read the tables of `auth`.
//! * I2. The server listens on 127.0.0.1 only and requires passwords.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::PostgresEndpoint;
use agentbox_testing::endpoint::postgres::{ROLES, SUPERUSER};
use agentbox_testing::private_file;
use agentbox_testing::tool::{Tool, ToolError, find};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::process::ProcessSpec;

/// Postgres cannot be prepared or queried.
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

pub(crate) struct Postgres {
    pub(crate) endpoint: PostgresEndpoint,
    data: PathBuf,
    /// The system user of the server; `None` when this process is not root.
    user: Option<User>,
    durable: bool,
}

/// The directory with the programs of the newest installed server.
fn find_bin() -> Result<PathBuf, PostgresError> {
    let version = |path: &Path| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .max_by_key(|bin| version(bin))
        .or_else(|| Some(find("initdb")?.parent()?.to_owned()))
        .ok_or(PostgresError::NotInstalled)
}

/// The program of the newest installed server.
pub(crate) fn server() -> Option<PathBuf> {
    Some(find_bin().ok()?.join("postgres"))
}

impl Postgres {
    /// Creates the data directory if there is none. It is bind-mounted at `mount_point` if the
    /// server's user has no access to `directory`, for example below a private home.
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
        // `initdb` may have been killed before it was complete.
        let _ = std::fs::remove_dir_all(&self.data);
        let failed = |source| PostgresError::Directory {
            path: self.data.clone(),
            source,
        };
        let file = self.data.with_file_name("password");
        let password = passwords.get(SUPERUSER).map_or("", String::as_str);
        private_file::write(&file, password.as_bytes()).map_err(failed)?;
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(&file, Some(user.uid.as_raw()), None).map_err(failed)?;
        }
        let program = self.endpoint.bin.join("initdb");
        let tool = match &self.user {
            Some(user) => as_user(user, &program),
            None => Tool::new(&program),
        };
        let initialised = tool
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
        initialised?;
        Ok(())
    }

    pub(crate) fn process_spec(&self, log: PathBuf) -> ProcessSpec {
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
        ProcessSpec {
            name: "postgres".to_owned(),
            program: self.endpoint.bin.join("postgres"),
            program_override: None,
            environment_file: None,
            arguments,
            environment: BTreeMap::new(),
            user: self.user.as_ref().map(|user| user.name.clone()),
            // A fast shutdown: it disconnects the clients and writes a checkpoint.
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

    /// Creates the database, the roles and their schemas if they are missing, and sets the
    /// passwords.
    pub(crate) async fn bootstrap(
        &self,
        passwords: &BTreeMap<String, String>,
    ) -> Result<(), PostgresError> {
        let maintenance = self.endpoint.admin_url.replace("/agentbox", "/postgres");
        let exists = self
            .endpoint
            .execute_on(
                &maintenance,
                &["SELECT 1 FROM pg_database WHERE datname = 'agentbox'"],
            )
            .await?;
        if exists.trim() != "1" {
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
                // CREATE, because migrations begin with `CREATE SCHEMA IF NOT EXISTS`, which
                // requires the right even when the schema exists.
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
