//! Whether this cluster could ever run a spec.

use std::collections::BTreeMap;

use agentbox_runtime::{BoxSpec, PreflightError};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;

use crate::cluster::ApiError;
use crate::driver::Inner;
use crate::pod::node_selector;
use crate::policy::Policy;

/// runc's own start-up needs this much.
const MIN_MEMORY_BYTES: u64 = 8 << 20;

impl Inner {
    /// An API server that does not answer is no reason to refuse: the box waits for it.
    pub async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        Policy::read(spec.isolation.network_policy.as_ref(), true)?;
        let classes = match &spec.isolation.runtime_class {
            Some(_) => self.runtime_classes().await.ok(),
            None => None,
        };
        let selector = node_selector(&self.config, spec);
        let nodes = match selector.is_empty() {
            true => None,
            false => self.node_labels().await.ok(),
        };
        check(spec, &selector, nodes.as_deref(), classes.as_deref())
    }

    pub async fn runtime_classes(&self) -> Result<Vec<String>, ApiError> {
        let classes: Api<RuntimeClass> = Api::all(self.cluster.client().await?.clone());
        let found = self.cluster.list(&classes, None).await?;
        Ok(found.into_iter().filter_map(|c| c.metadata.name).collect())
    }

    async fn node_labels(&self) -> Result<Vec<BTreeMap<String, String>>, ApiError> {
        let nodes = self.cluster.nodes().await?;
        let found = self.cluster.list(&nodes, None).await?;
        Ok(found
            .into_iter()
            .map(|node| node.metadata.labels.unwrap_or_default())
            .collect())
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(130).collect()
}

fn check(
    spec: &BoxSpec,
    selector: &BTreeMap<String, String>,
    nodes: Option<&[BTreeMap<String, String>]>,
    classes: Option<&[String]>,
) -> Result<(), PreflightError> {
    let refuse = |field, message| Err(PreflightError { field, message });
    if let (Some(class), Some(classes)) = (&spec.isolation.runtime_class, classes)
        && !classes.contains(class)
    {
        let (class, there) = (shown(class), classes.join(", "));
        return refuse(
            "isolation.runtime_class",
            format!("`{class}` is not a runtime class of this cluster; it has: {there}"),
        );
    }
    if let Some(nodes) = nodes {
        let matches = |labels: &BTreeMap<String, String>| {
            let mut wanted = selector.iter();
            wanted.all(|(key, value)| labels.get(key) == Some(value))
        };
        if !nodes.iter().any(matches) {
            let wanted = selector.iter();
            let wanted: Vec<_> = wanted
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            return refuse(
                "node_selector",
                format!("no node of this cluster has `{}`", shown(&wanted.join(","))),
            );
        }
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
pub(crate) mod tests {
    use agentbox_contracts::ids::{EnvironmentId, UserId};
    use agentbox_contracts::units::{Bytes, MilliCpu};
    use agentbox_runtime::{Isolation, Resources, SecurityContext};

    use super::*;

    pub(crate) fn spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
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

    fn security(user: Option<u32>, group: Option<u32>) -> SecurityContext {
        SecurityContext {
            run_as_user: user,
            run_as_group: group,
            run_as_non_root: Some(true),
            ..Default::default()
        }
    }

    #[test]
    fn what_can_never_run_here_names_its_field() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let nodes = [
            BTreeMap::from([label("disk", "ssd"), label("zone", "a")]),
            BTreeMap::from([label("disk", "hdd"), label("zone", "b")]),
        ];
        let classes = ["gvisor".to_owned()];
        let selects = |pairs: &'static [(&str, &str)]| {
            move |spec: &mut BoxSpec| {
                spec.node_selector = pairs.iter().map(|(k, v)| label(k, v)).collect();
            }
        };
        type Change = Box<dyn FnOnce(&mut BoxSpec)>;
        let table: [(Change, Option<&str>); 9] = [
            (Box::new(|_| {}), None),
            (
                Box::new(|s| s.isolation.runtime_class = Some("gvisor".into())),
                None,
            ),
            (
                Box::new(|s| s.isolation.runtime_class = Some("kata".into())),
                Some("isolation.runtime_class"),
            ),
            (Box::new(selects(&[("disk", "ssd"), ("zone", "a")])), None),
            // Each is there, but on no node both.
            (
                Box::new(selects(&[("disk", "ssd"), ("zone", "b")])),
                Some("node_selector"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(Some(0), None))),
                Some("isolation.security_context.run_as_non_root"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(None, Some(5)))),
                Some("isolation.security_context.run_as_group"),
            ),
            (
                Box::new(|s| s.isolation.security_context = Some(security(Some(5), Some(5)))),
                None,
            ),
            (
                Box::new(|s| s.resources.memory = Bytes(1 << 20)),
                Some("resources.memory"),
            ),
        ];
        for (change, field) in table {
            let spec = spec(change);
            let got = check(&spec, &spec.node_selector, Some(&nodes), Some(&classes))
                .err()
                .map(|e| e.field);
            assert_eq!(got, field, "{spec:?}");
        }
    }
}
