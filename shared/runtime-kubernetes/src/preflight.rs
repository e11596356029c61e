//! Checks whether this cluster can run a spec at all.

use std::collections::BTreeMap;

use agentbox_runtime::preflight::{check_runtime_class, check_spec, no_node_matches};
use agentbox_runtime::{BoxSpec, PreflightError};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;

use crate::cluster::ApiError;
use crate::context::Context;
use crate::pod::node_selector;

impl Context {
    /// Checks a spec. When the API server does not answer, runtime classes and node labels are not
    /// checked: the box then waits for the API server.
    pub async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
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

fn check(
    spec: &BoxSpec,
    selector: &BTreeMap<String, String>,
    nodes: Option<&[BTreeMap<String, String>]>,
    classes: Option<&[String]>,
) -> Result<(), PreflightError> {
    if let (Some(class), Some(classes)) = (&spec.isolation.runtime_class, classes) {
        check_runtime_class(class, classes)?;
    }
    let matches = |labels: &BTreeMap<String, String>| {
        let mut terms = selector.iter();
        terms.all(|(key, value)| labels.get(key) == Some(value))
    };
    if nodes.is_some_and(|nodes| !nodes.iter().any(matches)) {
        let terms = selector.iter();
        let terms: Vec<_> = terms.map(|(key, value)| format!("{key}={value}")).collect();
        return Err(no_node_matches(&terms.join(",")));
    }
    check_spec(spec)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::units::Bytes;
    use agentbox_runtime::SecurityContext;
    use agentbox_runtime::conformance::example_spec;

    use super::*;

    fn security(user: Option<u32>, group: Option<u32>) -> SecurityContext {
        SecurityContext {
            run_as_user: user,
            run_as_group: group,
            run_as_non_root: Some(true),
            ..Default::default()
        }
    }

    #[test]
    fn unrunnable_spec_returns_its_field() {
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
            // Each label exists, but no node has both.
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
            let spec = example_spec(change);
            let got = check(&spec, &spec.node_selector, Some(&nodes), Some(&classes))
                .err()
                .map(|e| e.field);
            assert_eq!(got, field, "{spec:?}");
        }
    }
}
