//! How each of the product's services is started: its program, environment and addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_contracts::permissions::SERVICES;
use agentbox_testing::cluster::Cluster;
use agentbox_testing::paths::{Layout, NotBuilt, require};
use agentbox_testing::plan::Plan;
use agentbox_testing::{NatsEndpoint, PostgresEndpoint};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::process::ProcessSpec;
use crate::secrets::Secrets;

const BUILD_SERVICES: &str = "cargo build --workspace --bins";
const BUILD_BOXD: &str = "make boxd";

/// Fails with the command to run when a service or boxd is not built.
pub(crate) fn require_programs(bin_dir: &Path, boxd: &Path) -> Result<(), NotBuilt> {
    for service in SERVICES {
        require(program(bin_dir, service), BUILD_SERVICES)?;
    }
    require(boxd.to_owned(), BUILD_BOXD)?;
    Ok(())
}

fn program(bin_dir: &Path, service: &str) -> PathBuf {
    bin_dir.join(format!("agentbox-{service}"))
}

/// The values from which the environment of a service is made.
pub(crate) struct ServiceEnv<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) secrets: &'a Secrets,
    pub(crate) postgres: &'a PostgresEndpoint,
    pub(crate) nats: &'a NatsEndpoint,
    /// The clusters file.
    pub(crate) clusters: &'a Path,
    /// The pools file. `None`: there are no warm pools.
    pub(crate) pools: Option<&'a Path>,
    /// The file with the administrator's password.
    pub(crate) admin_password: &'a Path,
}

/// One replica of one service.
pub(crate) struct Replica {
    pub(crate) service: &'static str,
    pub(crate) index: usize,
    pub(crate) admin: SocketAddr,
    /// The shared address and the replica's own; of api-gateway only.
    pub(crate) listen: Option<[SocketAddr; 2]>,
}

/// All replicas of all services, in the order in which they start.
pub(crate) fn all(replicas: usize) -> impl Iterator<Item = (&'static str, usize)> {
    SERVICES
        .into_iter()
        .flat_map(move |service| (0..replicas).map(move |index| (service, index)))
}

impl Replica {
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.service, self.index)
    }

    pub(crate) fn process_spec(
        &self,
        env: &ServiceEnv<'_>,
        layout: &Layout,
    ) -> Result<ProcessSpec, NotBuilt> {
        let program = program(&env.plan.bin_dir, self.service);
        Ok(ProcessSpec {
            name: self.name(),
            program: require(program, BUILD_SERVICES)?,
            program_override: Some(layout.dev_program(self.service)),
            arguments: Vec::new(),
            environment: self.environment(env),
            environment_file: Some(layout.trace_environment()),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            // Longer than a service's own AGENTBOX_SHUTDOWN_GRACE.
            grace: if env.plan.is_test() {
                Duration::from_secs(5)
            } else {
                Duration::from_secs(25)
            },
            log: layout.log(&self.name()),
        })
    }

    fn environment(&self, env: &ServiceEnv<'_>) -> BTreeMap<String, String> {
        let ServiceEnv {
            plan,
            secrets,
            postgres,
            nats,
            clusters,
            pools,
            admin_password,
        } = env;
        let password = nats
            .passwords
            .get(self.service)
            .cloned()
            .unwrap_or_default();
        let mut pairs = vec![
            ("AGENTBOX_NATS_URL", nats.url.clone()),
            ("AGENTBOX_NATS_USER", self.service.to_owned()),
            ("AGENTBOX_NATS_PASSWORD", password),
            ("AGENTBOX_ADMIN_LISTEN", self.admin.to_string()),
            ("AGENTBOX_REPLICA", self.name()),
        ];
        if let Some(path) = &nats.tls_ca {
            pairs.push(("AGENTBOX_NATS_TLS_CA", path.display().to_string()));
        }
        if plan.is_test() {
            pairs.push(("AGENTBOX_SHUTDOWN_GRACE", "3".to_owned()));
        }
        if let Some(url) = postgres.urls.get(self.service) {
            pairs.push(("AGENTBOX_DATABASE_URL", url.clone()));
        }
        if matches!(self.service, "scheduler" | "exec-proxy") {
            pairs.push(("AGENTBOX_BOX_SECRET", secrets.box_secret.clone()));
            pairs.push(("AGENTBOX_CLUSTERS", clusters.display().to_string()));
        }
        if self.service == "scheduler" {
            let secret = secrets.scheduler_secret.clone();
            pairs.push(("AGENTBOX_SCHEDULER_SECRET", secret));
            if let Some(pools) = pools {
                pairs.push(("AGENTBOX_POOLS", pools.display().to_string()));
            }
        }
        if self.service == "webhooks" {
            let secret = secrets.webhooks_secret.clone();
            pairs.push(("AGENTBOX_WEBHOOKS_SECRET", secret));
        }
        if self.service == "auth" {
            pairs.push(("AGENTBOX_AUTH_SECRET", secrets.auth_secret.clone()));
            pairs.push(("AGENTBOX_ADMIN_USERNAME", secrets.admin_username.clone()));
            let file = admin_password.display().to_string();
            pairs.push(("AGENTBOX_ADMIN_PASSWORD_FILE", file));
        }
        if let Some([shared, own]) = self.listen {
            pairs.push(("AGENTBOX_LISTEN", format!("{shared},{own}")));
            pairs.push(("AGENTBOX_LISTEN_SHARED", "true".to_owned()));
        }
        let mut environment: BTreeMap<String, String> = pairs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for service in ["*", self.service] {
            environment.extend(plan.environment.get(service).cloned().unwrap_or_default());
        }
        environment
    }
}

/// The content of the clusters file.
pub(crate) fn clusters_file(clusters: &[Cluster]) -> String {
    let clusters: Vec<Cluster> = clusters
        .iter()
        .cloned()
        .map(Cluster::for_services)
        .collect();
    json!({ "clusters": clusters }).to_string()
}

/// The content of the pools file: two ready boxes of the size in the API guide, so that the first create
/// of a newcomer is fast.
pub(crate) fn pools_file() -> String {
    json!({ "pools": { "python": {
        "image": "python:3.11-slim",
        "resources": { "cpu": "500m", "memory": "512Mi", "storage": "1Gi" },
        "min_ready": 2,
        "max_ready": 4,
    }}})
    .to_string()
}

#[cfg(test)]
mod tests {
    use agentbox_testing::Components;

    use super::*;

    fn environment_of(service: &'static str) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::load_or_generate(&dir.path().join("secrets.json")).unwrap();
        let plan = Plan {
            deployment: None,
            components: Components::ALL,
            existing: None,
            replicas: 2,
            durable: false,
            network_bandwidth: None,
            nats_tls: false,
            observe: false,
            bin_dir: "/bin".into(),
            boxd: "/boxd".into(),
            host: "127.0.0.1".parse().unwrap(),
            port: None,
            environment: BTreeMap::from([(
                "auth".to_owned(),
                BTreeMap::from([("AGENTBOX_LOG".to_owned(), "debug".to_owned())]),
            )]),
        };
        let replica = Replica {
            service,
            index: 1,
            admin: "127.0.0.1:9".parse().unwrap(),
            listen: None,
        };
        replica.environment(&ServiceEnv {
            plan: &plan,
            secrets: &secrets,
            postgres: &PostgresEndpoint::new(Path::new("/b"), 1, &secrets.postgres),
            nats: &NatsEndpoint {
                url: "nats://x".into(),
                tls_ca: None,
                monitor_url: String::new(),
                passwords: secrets.nats.clone(),
            },
            clusters: Path::new("/clusters.json"),
            pools: Some(Path::new("/pools.json")),
            admin_password: Path::new("/admin-password"),
        })
    }

    #[test]
    fn service_environment_has_no_secret_of_another_service() {
        let gateway = environment_of("api-gateway");
        let proxy = environment_of("exec-proxy");
        let auth = environment_of("auth");
        for secret in [
            "AGENTBOX_DATABASE_URL",
            "AGENTBOX_AUTH_SECRET",
            "AGENTBOX_BOX_SECRET",
            "AGENTBOX_SCHEDULER_SECRET",
            "AGENTBOX_WEBHOOKS_SECRET",
        ] {
            assert!(!gateway.contains_key(secret), "{secret}");
        }
        assert!(!proxy.contains_key("AGENTBOX_DATABASE_URL"));
        assert!(auth["AGENTBOX_DATABASE_URL"].starts_with("postgres://auth:"));
        assert!(!auth.contains_key("AGENTBOX_BOX_SECRET"));
        assert!(!auth.contains_key("AGENTBOX_SCHEDULER_SECRET"));
        assert!(!proxy.contains_key("AGENTBOX_SCHEDULER_SECRET"));
        let webhooks = environment_of("webhooks");
        assert!(webhooks["AGENTBOX_DATABASE_URL"].starts_with("postgres://webhooks:"));
        for secret in [
            "AGENTBOX_AUTH_SECRET",
            "AGENTBOX_BOX_SECRET",
            "AGENTBOX_SCHEDULER_SECRET",
            "AGENTBOX_CLUSTERS",
        ] {
            assert!(!webhooks.contains_key(secret), "{secret}");
        }
    }

    #[test]
    fn plan_environment_applies_to_its_service_only() {
        assert_eq!(environment_of("auth")["AGENTBOX_LOG"], "debug");
        assert!(!environment_of("scheduler").contains_key("AGENTBOX_LOG"));
        assert_eq!(environment_of("scheduler")["AGENTBOX_POOLS"], "/pools.json");
        assert!(!environment_of("exec-proxy").contains_key("AGENTBOX_POOLS"));
        assert_eq!(environment_of("auth")["AGENTBOX_REPLICA"], "auth-1");
    }
}
