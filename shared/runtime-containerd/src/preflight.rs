//! Checks whether this machine can run a spec at all.

use std::collections::{BTreeMap, BTreeSet};

use agentbox_runtime::preflight::{
    check_runtime_class, check_spec, is_allowed_runtime_class, no_node_matches,
};
use agentbox_runtime::{BoxSpec, PreflightError};

use crate::context::Context;
use crate::cri::CriError;
use crate::user_range;

impl Context {
    /// Checks a spec. When containerd does not answer, its own runtime handlers are not checked: the
    /// box then waits for containerd.
    pub async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        let handlers = match &spec.isolation.runtime_class {
            Some(_) => {
                let available = self.runtime_handlers().await.ok();
                let allowed = self.config.allowed_runtime_classes.as_ref();
                available.or_else(|| allowed.map(|classes| classes.iter().cloned().collect()))
            }
            None => None,
        };
        check(spec, &node_labels(&self.config.labels), handlers.as_ref())?;
        // containerd is not asked for the other boxes, which are nearly all.
        if let Err(error) = check_ids(spec)
            && matches!(self.has_user_namespace(spec).await, Ok(true))
        {
            return Err(error);
        }
        Ok(())
    }

    /// The CRI runtime handlers in containerd's configuration that a request may name.
    pub async fn runtime_handlers(&self) -> Result<BTreeSet<String>, CriError> {
        let mut handlers = handlers_in(&self.cri.configuration().await?);
        let allowed = self.config.allowed_runtime_classes.as_deref();
        handlers.retain(|handler| is_allowed_runtime_class(handler, allowed));
        Ok(handlers)
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

/// The configured labels, and the labels that every Kubernetes node has.
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

/// Checks that the requested user and group exist in a user namespace.
fn check_ids(spec: &BoxSpec) -> Result<(), PreflightError> {
    let Some(asked) = &spec.isolation.security_context else {
        return Ok(());
    };
    for (field, id) in [
        ("isolation.security_context.run_as_user", asked.run_as_user),
        (
            "isolation.security_context.run_as_group",
            asked.run_as_group,
        ),
    ] {
        if let Some(id) = id.filter(|id| *id >= user_range::LENGTH) {
            let last = user_range::LENGTH - 1;
            return Err(PreflightError {
                field,
                message: format!(
                    "must be at most {last} on this cluster, whose boxes have user namespaces, got {id}"
                ),
            });
        }
    }
    Ok(())
}

fn check(
    spec: &BoxSpec,
    labels: &BTreeMap<String, String>,
    handlers: Option<&BTreeSet<String>>,
) -> Result<(), PreflightError> {
    if let (Some(class), Some(handlers)) = (&spec.isolation.runtime_class, handlers) {
        check_runtime_class(class, handlers)?;
    }
    let unmatched = spec
        .node_selector
        .iter()
        .find(|(key, value)| labels.get(*key) != Some(*value));
    if let Some((key, value)) = unmatched {
        return Err(no_node_matches(&format!("{key}={value}")));
    }
    check_spec(spec)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::units::Bytes;
    use agentbox_runtime::SecurityContext;
    use agentbox_runtime::conformance::example_spec;

    use super::*;

    fn security(user: Option<u32>, group: Option<u32>, non_root: bool) -> SecurityContext {
        SecurityContext {
            run_as_user: user,
            run_as_group: group,
            run_as_non_root: Some(non_root),
            ..Default::default()
        }
    }

    #[test]
    fn unrunnable_spec_returns_its_field() {
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
            let spec = example_spec(change);
            let got = check(&spec, &labels, Some(&handlers))
                .err()
                .map(|error| error.field);
            assert_eq!(got, field, "{spec:?}");
        }
    }

    #[test]
    fn ids_beyond_those_of_a_box_are_refused() {
        for (user, group, field) in [
            (Some(65_535), Some(65_535), None),
            (
                Some(65_536),
                None,
                Some("isolation.security_context.run_as_user"),
            ),
            (
                Some(5),
                Some(65_536),
                Some("isolation.security_context.run_as_group"),
            ),
        ] {
            let spec = example_spec(|spec| {
                spec.isolation.security_context = Some(security(user, group, false));
            });
            let got = check_ids(&spec).err().map(|error| error.field);
            assert_eq!(got, field, "{user:?} {group:?}");
        }
        assert!(check_ids(&example_spec(|_| {})).is_ok());
    }

    #[test]
    fn runtime_handlers_are_read_from_the_containerd_configuration() {
        let json = r#"{"containerd":{"runtimes":{"runc":{},"gvisor":{}}}}"#;
        assert_eq!(
            handlers_in(json),
            BTreeSet::from(["gvisor".to_owned(), "runc".to_owned()])
        );
        assert_eq!(handlers_in("what"), BTreeSet::new());
    }
}
