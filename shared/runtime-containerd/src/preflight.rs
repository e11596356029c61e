//! Whether this machine could ever run a spec.

use std::collections::{BTreeMap, BTreeSet};

use agentbox_runtime::{BoxSpec, PreflightError};

use crate::cri::CriError;
use crate::driver::Inner;
use crate::firewall::Policy;

/// runc's own start-up needs this much.
const MIN_MEMORY_BYTES: u64 = 8 << 20;

impl Inner {
    /// containerd not answering is no reason to refuse: the box waits for it.
    pub async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        let handlers = match &spec.isolation.runtime_class {
            Some(_) => self.runtime_handlers().await.ok(),
            None => None,
        };
        Policy::read(spec.isolation.network_policy.as_ref(), true)?;
        check(spec, &node_labels(&self.config.labels), handlers.as_ref())
    }

    /// The CRI handlers that containerd is configured with.
    pub async fn runtime_handlers(&self) -> Result<BTreeSet<String>, CriError> {
        Ok(handlers_in(&self.cri.configuration().await?))
    }
}

fn handlers_in(configuration: &str) -> BTreeSet<String> {
    let configuration: serde_json::Value = serde_json::from_str(configuration).unwrap_or_default();
    let runtimes = configuration["containerd"]["runtimes"].as_object();
    runtimes
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

/// The cluster's labels, and those every Kubernetes node has.
pub fn node_labels(configured: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut labels = BTreeMap::from([
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture.to_owned()),
    ]);
    if let Ok(hostname) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        labels.insert(
            "kubernetes.io/hostname".to_owned(),
            hostname.trim().to_owned(),
        );
    }
    labels.extend(
        configured
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    labels
}

fn check(
    spec: &BoxSpec,
    labels: &BTreeMap<String, String>,
    handlers: Option<&BTreeSet<String>>,
) -> Result<(), PreflightError> {
    let refuse = |field, message| Err(PreflightError { field, message });
    if let (Some(class), Some(handlers)) = (&spec.isolation.runtime_class, handlers)
        && !handlers.contains(class)
    {
        let there = handlers.iter().cloned().collect::<Vec<_>>().join(", ");
        let class: String = class.chars().filter(|c| !c.is_control()).take(63).collect();
        return refuse(
            "isolation.runtime_class",
            format!("`{class}` is not a runtime of this cluster; it has: {there}"),
        );
    }
    let unmatched = spec
        .node_selector
        .iter()
        .find(|(key, value)| labels.get(*key) != Some(*value));
    if let Some((key, value)) = unmatched {
        let shown: String = format!("{key}={value}")
            .chars()
            .filter(|c| !c.is_control())
            .take(130)
            .collect();
        return refuse(
            "node_selector",
            format!("no node of this cluster has `{shown}`"),
        );
    }
    if let Some(asked) = &spec.isolation.security_context {
        if asked.run_as_non_root == Some(true) && asked.run_as_user == Some(0) {
            return refuse(
                "isolation.security_context.run_as_non_root",
                "run_as_user is 0, which is root".to_owned(),
            );
        }
        if asked.run_as_group.is_some() && asked.run_as_user.is_none() {
            return refuse(
                "isolation.security_context.run_as_group",
                "run_as_group needs run_as_user".to_owned(),
            );
        }
    }
    if spec.resources.memory.0 < MIN_MEMORY_BYTES {
        return refuse("resources.memory", "a box needs at least 8Mi".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::ids::{EnvironmentId, UserId};
    use agentbox_contracts::units::{Bytes, MilliCpu};
    use agentbox_runtime::{Isolation, Resources, SecurityContext};

    use super::*;

    fn spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
        let mut spec = BoxSpec {
            id: EnvironmentId::random(),
            owner: UserId::random(),
            image: "busybox".into(),
            command: None,
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            resources: Resources {
                cpu: MilliCpu(100),
                memory: Bytes(64 << 20),
                storage: Bytes(1 << 30),
                pids: 64,
            },
            isolation: Isolation::default(),
            node_selector: BTreeMap::new(),
            tolerations: vec![],
            boxd_token: String::new(),
        };
        change(&mut spec);
        spec
    }

    fn security(user: Option<u32>, group: Option<u32>, non_root: bool) -> SecurityContext {
        SecurityContext {
            run_as_user: user,
            run_as_group: group,
            run_as_non_root: Some(non_root),
            ..Default::default()
        }
    }

    #[test]
    fn what_can_never_run_here_names_its_field() {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let handlers = BTreeSet::from(["runc".to_owned()]);
        type Change = Box<dyn FnOnce(&mut BoxSpec)>;
        let table: [(Change, Option<&str>); 9] = [
            (Box::new(|_| {}), None),
            (
                Box::new(|s| s.isolation.runtime_class = Some("runc".into())),
                None,
            ),
            (
                Box::new(|s| s.isolation.runtime_class = Some("gvisor".into())),
                Some("isolation.runtime_class"),
            ),
            (
                Box::new(|s| drop(s.node_selector.insert("disk".into(), "ssd".into()))),
                None,
            ),
            (
                Box::new(|s| drop(s.node_selector.insert("disk".into(), "hdd".into()))),
                Some("node_selector"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(Some(0), None, true))),
                Some("isolation.security_context.run_as_non_root"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(None, Some(5), false))),
                Some("isolation.security_context.run_as_group"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(Some(5), Some(5), true))),
                None,
            ),
            (
                Box::new(|s| s.resources.memory = Bytes(1 << 20)),
                Some("resources.memory"),
            ),
        ];
        for (change, field) in table {
            let spec = spec(change);
            let got = check(&spec, &labels, Some(&handlers))
                .err()
                .map(|error| error.field);
            assert_eq!(got, field, "{spec:?}");
        }
    }

    #[test]
    fn containerds_handlers_are_read_from_its_configuration() {
        let json = r#"{"containerd":{"runtimes":{"runc":{},"gvisor":{}}}}"#;
        assert_eq!(
            handlers_in(json),
            BTreeSet::from(["gvisor".to_owned(), "runc".to_owned()])
        );
        assert_eq!(handlers_in("what"), BTreeSet::new());
    }
}
