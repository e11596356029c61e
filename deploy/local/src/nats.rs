//! A NATS server of our own, with JetStream. One user for each service, with the
//! permissions of `agentbox_contracts::permissions` and no others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_contracts::permissions::{SERVICES, for_service};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::child::Launch;
use crate::secrets::ALL_ACCESS_USER;

pub mod server;

use server::ServerError;

/// NATS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("cannot write the configuration of NATS: {0}")]
    Configuration(std::io::Error),
}

/// Where a running server is, and who may log in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NatsEndpoint {
    /// `nats://127.0.0.1:<port>`.
    pub url: String,
    /// Its monitoring page, on which `/healthz` is.
    pub monitor_url: String,
    /// Passwords by user: each service, and [`ALL_ACCESS_USER`].
    pub passwords: BTreeMap<String, String>,
}

impl NatsEndpoint {
    /// User and password of the all-access user.
    #[must_use]
    pub fn all_access(&self) -> (&str, &str) {
        (
            ALL_ACCESS_USER,
            self.passwords
                .get(ALL_ACCESS_USER)
                .map_or("", String::as_str),
        )
    }
}

pub(crate) struct Nats {
    pub(crate) endpoint: NatsEndpoint,
    program: PathBuf,
    configuration: PathBuf,
}

/// The server's configuration; JSON is a form of its language.
fn configuration(
    name: &str,
    store: &Path,
    ports: (u16, u16),
    passwords: &BTreeMap<String, String>,
    durable: bool,
) -> Value {
    let mut users: Vec<Value> = SERVICES
        .iter()
        .filter_map(|service| {
            let permissions = for_service(service)?;
            Some(json!({
                "user": service,
                "password": passwords.get(*service),
                "permissions": {
                    "publish": { "allow": permissions.publish },
                    "subscribe": { "allow": permissions.subscribe },
                },
            }))
        })
        .collect();
    users.push(json!({ "user": ALL_ACCESS_USER, "password": passwords.get(ALL_ACCESS_USER) }));
    let mut jetstream = json!({
        "store_dir": store,
        "max_memory_store": 256 << 20,
        "max_file_store": 10u64 << 30,
    });
    if durable {
        // What was acknowledged is on the disk: affordable at our rates.
        jetstream["sync_interval"] = json!("always");
    }
    json!({
        "server_name": name,
        "host": "127.0.0.1",
        "port": ports.0,
        "http": format!("127.0.0.1:{}", ports.1),
        "max_payload": 1 << 20,
        "jetstream": jetstream,
        "authorization": { "users": users },
    })
}

impl Nats {
    pub(crate) fn prepare(
        directory: &Path,
        deployment: &str,
        ports: (u16, u16),
        passwords: &BTreeMap<String, String>,
        durable: bool,
        program: PathBuf,
    ) -> Result<Self, NatsError> {
        std::fs::create_dir_all(directory).map_err(NatsError::Configuration)?;
        let path = directory.join("nats.conf");
        let store = directory.join("store");
        let text = configuration(deployment, &store, ports, passwords, durable).to_string();
        crate::secrets::write_private(&path, text.as_bytes()).map_err(NatsError::Configuration)?;
        Ok(Self {
            endpoint: NatsEndpoint {
                url: format!("nats://127.0.0.1:{}", ports.0),
                monitor_url: format!("http://127.0.0.1:{}", ports.1),
                passwords: passwords.clone(),
            },
            program,
            configuration: path,
        })
    }

    pub(crate) fn launch(&self, log: PathBuf) -> Launch {
        Launch {
            name: "nats".to_owned(),
            program: self.program.clone(),
            arguments: vec!["--config".into(), self.configuration.clone().into()],
            environment: BTreeMap::new(),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(10),
            log,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `AGENTBOX_WRITE=1` writes the file anew.
    #[test]
    fn the_charts_permissions_are_those_of_the_contracts() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/files/nats-permissions.json");
        let users = |service: &&str| {
            let permissions = for_service(service).unwrap();
            let lists = json!({
                "publish": { "allow": permissions.publish },
                "subscribe": { "allow": permissions.subscribe },
            });
            ((*service).to_owned(), lists)
        };
        let expected: BTreeMap<String, Value> = SERVICES.iter().map(users).collect();
        let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
        if std::env::var_os("AGENTBOX_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let is_current = std::fs::read_to_string(&path).unwrap() == text;
        assert!(
            is_current,
            "{} is not what the contracts say",
            path.display()
        );
    }

    #[test]
    fn every_service_has_its_own_user_and_only_its_own_subjects() {
        let passwords: BTreeMap<String, String> = SERVICES
            .iter()
            .map(|s| ((*s).to_owned(), format!("pw-{s}")))
            .collect();
        let conf = configuration("t", Path::new("/x"), (1, 2), &passwords, true);
        let users = conf["authorization"]["users"].as_array().unwrap();
        assert_eq!(users.len(), SERVICES.len() + 1);
        for user in users.iter().filter(|user| user["user"] != ALL_ACCESS_USER) {
            for list in ["publish", "subscribe"] {
                let allow = user["permissions"][list]["allow"].as_array().unwrap();
                assert!(
                    !allow.is_empty(),
                    "an empty list would allow everything: {user}"
                );
                assert!(!allow.contains(&json!(">")), "{user}");
            }
        }
        assert_eq!(conf["jetstream"]["sync_interval"], "always");
    }
}
