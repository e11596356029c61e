//! A NATS server with JetStream.
//!
//! * I1. Each service, the provisioner and one reader of events have a user, with the permissions of
//!   `agentbox_contracts::permissions` and no others.
//! * I2. The streams exist before a service starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig, BusError};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions::{PROVISIONER, USERS, for_user};
use agentbox_testing::NatsEndpoint;
use agentbox_testing::endpoint::nats::ALL_ACCESS_USER;
use agentbox_testing::plan::Plan;
use agentbox_testing::private_file;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::process::ProcessSpec;

mod certificates;
pub mod server;

use certificates::{CertificateError, Certificates};
use server::ServerError;

/// NATS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    #[error("cannot write the configuration of NATS: {0}")]
    Configuration(std::io::Error),
    #[error("cannot create the streams of NATS: {}", ErrorChain(.0))]
    Streams(BusError),
}

pub(crate) struct Nats {
    pub(crate) endpoint: NatsEndpoint,
    program: PathBuf,
    configuration: PathBuf,
}

/// The server's configuration. Its language is a superset of JSON.
fn configuration(
    name: &str,
    store: &Path,
    ports: (u16, u16),
    passwords: &BTreeMap<String, String>,
    durable: bool,
    tls: Option<&Certificates>,
) -> Value {
    let mut users: Vec<Value> = USERS
        .iter()
        .filter_map(|user| {
            Some(json!({
                "user": user,
                "password": passwords.get(*user),
                "permissions": for_user(user)?.to_json(),
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
        // An acknowledged message is on the disk. Our message rates allow that.
        jetstream["sync_interval"] = json!("always");
    }
    let mut configuration = json!({
        "server_name": name,
        "host": "127.0.0.1",
        "port": ports.0,
        "http": format!("127.0.0.1:{}", ports.1),
        "max_payload": 1 << 20,
        "jetstream": jetstream,
        "authorization": { "users": users },
    });
    if let Some(tls) = tls {
        // The timeout is that of a handshake, in seconds.
        configuration["tls"] =
            json!({ "cert_file": tls.certificate, "key_file": tls.key, "timeout": 5 });
    }
    configuration
}

impl Nats {
    pub(crate) async fn prepare(
        directory: &Path,
        deployment: &str,
        ports: (u16, u16),
        passwords: &BTreeMap<String, String>,
        plan: &Plan,
        program: PathBuf,
    ) -> Result<Self, NatsError> {
        std::fs::create_dir_all(directory).map_err(NatsError::Configuration)?;
        let path = directory.join("nats.conf");
        let store = directory.join("store");
        let tls = match plan.nats_tls {
            true => Some(Certificates::make(&directory.join("tls")).await?),
            false => None,
        };
        let text = configuration(
            deployment,
            &store,
            ports,
            passwords,
            plan.durable,
            tls.as_ref(),
        )
        .to_string();
        let scheme = if tls.is_some() { "tls" } else { "nats" };
        private_file::write(&path, text.as_bytes()).map_err(NatsError::Configuration)?;
        Ok(Self {
            endpoint: NatsEndpoint {
                url: format!("{scheme}://127.0.0.1:{}", ports.0),
                tls_ca: tls.map(|tls| tls.authority),
                monitor_url: format!("http://127.0.0.1:{}", ports.1),
                passwords: passwords.clone(),
            },
            program,
            configuration: path,
        })
    }

    /// Creates the streams, buckets and stores, or updates them.
    pub(crate) async fn create_streams(&self) -> Result<(), NatsError> {
        let bus = Bus::connect(BusConfig {
            url: self.endpoint.url.clone(),
            tls_ca: self.endpoint.tls_ca.clone(),
            user: PROVISIONER.to_owned(),
            password: self
                .endpoint
                .passwords
                .get(PROVISIONER)
                .cloned()
                .unwrap_or_default(),
            service: PROVISIONER,
            instance: InstanceId::random(),
        })
        .await
        .map_err(NatsError::Streams)?;
        let created = bus.provision().await.map_err(NatsError::Streams);
        bus.close().await;
        created
    }

    pub(crate) fn process_spec(&self, log: PathBuf) -> ProcessSpec {
        ProcessSpec {
            name: "nats".to_owned(),
            program: self.program.clone(),
            program_override: None,
            environment_file: None,
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
    use agentbox_contracts::permissions::EVENT_READER;

    use super::*;

    /// `AGENTBOX_WRITE=1` updates the file.
    #[test]
    fn chart_permissions_match_the_contracts() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/files/nats-permissions.json");
        let users = |user: &&str| {
            let permissions = for_user(user).unwrap().to_json();
            ((*user).to_owned(), permissions)
        };
        let expected: BTreeMap<String, Value> = USERS.iter().map(users).collect();
        let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
        if std::env::var_os("AGENTBOX_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let is_current = std::fs::read_to_string(&path).unwrap() == text;
        assert!(
            is_current,
            "{} differs from the contracts; update it with AGENTBOX_WRITE=1",
            path.display()
        );
    }

    #[test]
    fn every_user_has_its_own_subjects_only() {
        let passwords: BTreeMap<String, String> = USERS
            .iter()
            .map(|s| ((*s).to_owned(), format!("pw-{s}")))
            .collect();
        let conf = configuration("t", Path::new("/x"), (1, 2), &passwords, true, None);
        let users = conf["authorization"]["users"].as_array().unwrap();
        assert_eq!(users.len(), USERS.len() + 1);
        for user in users.iter().filter(|user| user["user"] != ALL_ACCESS_USER) {
            for list in ["publish", "subscribe"] {
                let allow = user["permissions"][list]["allow"].as_array().unwrap();
                assert!(!allow.is_empty(), "an empty list allows everything: {user}");
                assert!(!allow.contains(&json!(">")), "{user}");
            }
            let replies = user["permissions"].get("allow_responses").is_some();
            let name = user["user"].as_str().unwrap();
            let serves = ![PROVISIONER, EVENT_READER].contains(&name);
            assert_eq!(replies, serves, "{user}");
        }
        assert_eq!(conf["jetstream"]["sync_interval"], "always");
    }

    #[test]
    fn monitoring_is_on_the_loopback_and_tls_is_optional() {
        let conf = |tls| {
            let passwords = BTreeMap::new();
            configuration("t", Path::new("/x"), (1, 2), &passwords, true, tls)
        };
        let plain = conf(None);
        assert_eq!(plain["http"], "127.0.0.1:2");
        assert_eq!(plain.get("tls"), None);
        let encrypted = conf(Some(&Certificates {
            authority: "/a".into(),
            certificate: "/c".into(),
            key: "/k".into(),
        }));
        let expected = json!({ "cert_file": "/c", "key_file": "/k", "timeout": 5 });
        assert_eq!(encrypted["tls"], expected);
    }
}
