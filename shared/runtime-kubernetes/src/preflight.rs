//! Checks whether this cluster can run a spec at all, and whether its operator allows it.

use std::collections::BTreeMap;

use agentbox_runtime::preflight::{
    check_runtime_class, check_spec, is_allowed_runtime_class, no_node_matches, not_allowed,
};
use agentbox_runtime::{BoxSpec, PreflightError, Toleration};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;

use crate::cluster::ApiError;
use crate::config::{AllowedToleration, Config};
use crate::context::Context;
use crate::pod::node_selector;

impl Context {
    /// Checks a spec. When the API server does not answer, the cluster's runtime classes and nodes
    /// are not checked: the box then waits for the API server.
    pub async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        check_entrypoint(spec)?;
        let selector = node_selector(&self.config, spec);
        check_allowed(&self.config, &selector, &spec.tolerations)?;
        let classes = match &spec.isolation.runtime_class {
            Some(_) => {
                let available = self.runtime_classes().await.ok();
                available.or_else(|| self.config.allowed_runtime_classes.clone())
            }
            None => None,
        };
        let nodes = match selector.is_empty() {
            true => None,
            false => self.node_labels().await.ok(),
        };
        check(spec, &selector, nodes.as_deref(), classes.as_deref())
    }

    /// The RuntimeClasses that a request may name.
    pub async fn runtime_classes(&self) -> Result<Vec<String>, ApiError> {
        let classes: Api<RuntimeClass> = Api::all(self.cluster.client().await?.clone());
        let found = self.cluster.list(&classes, None).await?;
        let allowed = self.config.allowed_runtime_classes.as_deref();
        Ok(found
            .into_iter()
            .filter_map(|class| class.metadata.name)
            .filter(|class| is_allowed_runtime_class(class, allowed))
            .collect())
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

/// Refuses the image's own command: a Pod's `command` starts boxd, and Kubernetes shows no image's
/// ENTRYPOINT before its Pod exists (`docs/decisions/0010-entrypoint-on-containerd.md`).
fn check_entrypoint(spec: &BoxSpec) -> Result<(), PreflightError> {
    if !spec.use_entrypoint {
        return Ok(());
    }
    let message = "is not supported by this cluster's driver, kubernetes, which does not know an image's \
                   ENTRYPOINT; give it as `command`";
    Err(PreflightError {
        field: "use_entrypoint",
        message: message.to_owned(),
    })
}

/// Checks that a request selects nodes and tolerates taints only as the operator allows. Otherwise
/// a user could place boxes on the nodes of the control plane or of other teams.
fn check_allowed(
    config: &Config,
    selector: &BTreeMap<String, String>,
    tolerations: &[Toleration],
) -> Result<(), PreflightError> {
    let labels = &config.allowed_node_labels;
    if let Some(key) = selector.keys().find(|key| !labels.contains(*key)) {
        let labels = labels.iter().map(String::as_str);
        return Err(not_allowed("node_selector", key, labels));
    }
    let allowed = &config.allowed_tolerations;
    let refused = tolerations
        .iter()
        .find(|toleration| !allowed.iter().any(|entry| entry.allows(toleration)));
    if let Some(toleration) = refused {
        let allowed: Vec<String> = allowed.iter().map(AllowedToleration::display).collect();
        let allowed = allowed.iter().map(String::as_str);
        return Err(not_allowed("tolerations", &display(toleration), allowed));
    }
    Ok(())
}

impl AllowedToleration {
    /// Whether a toleration tolerates no other taint than this one.
    fn allows(&self, toleration: &Toleration) -> bool {
        // Absent: `Equal`. `Exists` and comparisons of numbers tolerate other values too.
        let is_equal = matches!(toleration.operator.as_deref(), None | Some("" | "Equal"));
        let value = toleration.value.as_deref().unwrap_or_default();
        // Without an effect it tolerates every effect.
        let effect = toleration.effect.as_deref().unwrap_or_default();
        toleration.key.as_deref() == Some(self.key.as_str())
            && self
                .value
                .as_deref()
                .is_none_or(|allowed| is_equal && value == allowed)
            && self
                .effect
                .as_deref()
                .is_none_or(|allowed| effect == allowed)
    }

    fn display(&self) -> String {
        display_taint(&self.key, self.value.as_deref(), self.effect.as_deref())
    }
}

fn display(toleration: &Toleration) -> String {
    let key = toleration.key.as_deref().filter(|key| !key.is_empty());
    display_taint(
        key.unwrap_or("*"),
        toleration.value.as_deref(),
        toleration.effect.as_deref(),
    )
}

/// A taint as `kubectl taint` writes it: `key=value:effect`.
fn display_taint(key: &str, value: Option<&str>, effect: Option<&str>) -> String {
    let part = |mark: char, text: Option<&str>| match text.filter(|text| !text.is_empty()) {
        Some(text) => format!("{mark}{text}"),
        None => String::new(),
    };
    format!("{key}{}{}", part('=', value), part(':', effect))
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

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: given(key),
            operator: given(operator),
            value: given(value),
            effect: given(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn only_allowed_node_labels_and_tolerations_pass() {
        let mut json = crate::config::tests::minimal();
        let closed: Config = serde_json::from_value(json.clone()).unwrap();
        json["allowed_node_labels"] = serde_json::json!(["disk"]);
        json["allowed_tolerations"] = serde_json::json!([
            { "key": "gpu" }, { "key": "team", "value": "ci", "effect": "NoSchedule" },
        ]);
        let open: Config = serde_json::from_value(json).unwrap();
        let check = |config: &Config, key: Option<&str>, tolerations: &[Toleration]| {
            let selector = key.map(|key| (key.to_owned(), "x".to_owned()));
            let selector = selector.into_iter().collect();
            check_allowed(config, &selector, tolerations)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(check(&closed, None, &[]), None);
        assert_eq!(check(&open, Some("disk"), &[]), None);
        let control_plane = "node-role.kubernetes.io/control-plane";
        for (config, allowed) in [(&closed, "nothing"), (&open, "disk")] {
            let expected = format!(
                "node_selector: `{control_plane}` is not allowed on this cluster; it allows: {allowed}"
            );
            assert_eq!(check(config, Some(control_plane), &[]), Some(expected));
        }
        for (one, is_allowed) in [
            (toleration("gpu", "Exists", "", ""), true),
            (toleration("gpu", "", "a100", "NoExecute"), true),
            (toleration("team", "Equal", "ci", "NoSchedule"), true),
            (toleration("team", "Equal", "ci", ""), false),
            (toleration("team", "Equal", "ci", "NoExecute"), false),
            (toleration("team", "Equal", "web", "NoSchedule"), false),
            (toleration("team", "Exists", "", "NoSchedule"), false),
            (toleration("team", "Gt", "ci", "NoSchedule"), false),
            (toleration("", "Exists", "", ""), false),
            (toleration(control_plane, "Exists", "", ""), false),
        ] {
            let one = [one];
            assert!(check(&closed, None, &one).is_some(), "{one:?}");
            assert_eq!(check(&open, None, &one).is_none(), is_allowed, "{one:?}");
        }
        let every = [toleration("", "Exists", "", "")];
        assert_eq!(
            check(&open, None, &every).unwrap(),
            "tolerations: `*` is not allowed on this cluster; it allows: gpu, team=ci:NoSchedule"
        );
    }

    #[test]
    fn entrypoint_of_the_image_is_refused_and_a_command_passes() {
        let with_command = example_spec(|spec| spec.command = Some(vec!["sh".to_owned()]));
        assert!(check_entrypoint(&with_command).is_ok());
        let error = check_entrypoint(&example_spec(|spec| spec.use_entrypoint = true)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "use_entrypoint: is not supported by this cluster's driver, kubernetes, which does not \
             know an image's ENTRYPOINT; give it as `command`"
        );
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
