//! Compares the chart's rights with the requests in the API server's audit log of a whole test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::api::Api;
use serde_json::Value;

use crate::cluster::{Cluster, NAMESPACE, RELEASE};

/// One right: a verb on a kind of object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    /// With the subresource, if there is one.
    resource: String,
    verb: String,
    /// `None` for any name.
    name: Option<String>,
    /// Whether it is limited to the namespace of the release.
    is_local: bool,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("*");
        let place = if self.is_local {
            "of the release"
        } else {
            "of any namespace"
        };
        let Self {
            group,
            resource,
            verb,
            ..
        } = self;
        write!(f, "{verb} {group}/{resource} {name} {place}")
    }
}

fn rights_of(rules: Vec<PolicyRule>, is_local: bool) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        let names: Vec<Option<String>> = match rule.resource_names.unwrap_or_default() {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.clone().unwrap_or_default() {
                for verb in &rule.verbs {
                    rights.extend(names.iter().map(|name| Right {
                        group: group.clone(),
                        resource: resource.clone(),
                        verb: verb.clone(),
                        name: name.clone(),
                        is_local,
                    }));
                }
            }
        }
    }
    rights
}

impl Right {
    /// Whether the right allows a request.
    fn allows(&self, audited: &Right) -> bool {
        self.group == audited.group
            && self.resource == audited.resource
            && self.verb == audited.verb
            && (self.name.is_none() || self.name == audited.name)
            && (!self.is_local || audited.is_local)
    }
}

/// The requests of each service, and the refused ones.
#[derive(Default)]
struct AuditedRights {
    used: BTreeMap<String, BTreeSet<Right>>,
    refused: Vec<String>,
}

fn read(log: &Path) -> AuditedRights {
    let mut audited = AuditedRights::default();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let user = event["user"]["username"].as_str().unwrap();
        let prefix = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}-");
        let Some(service) = user.strip_prefix(&prefix) else {
            continue;
        };
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid"
            || event["responseStatus"]["code"] == 403
        {
            audited
                .refused
                .push(format!("{service}: {}", event["requestURI"]));
        }
        let object = &event["objectRef"];
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        if object["resource"].is_null() {
            continue;
        }
        let resource = match text("subresource").as_str() {
            "" => text("resource"),
            sub => format!("{}/{sub}", text("resource")),
        };
        let verb = event["verb"].as_str().unwrap().to_owned();
        let right = Right {
            group: text("apiGroup"),
            resource,
            verb: verb.clone(),
            name: object["name"].as_str().map(str::to_owned),
            is_local: object["namespace"] == NAMESPACE,
        };
        let rights = audited.used.entry(service.to_owned()).or_default();
        // An apply that creates an object requires both rights.
        if verb == "patch" && event["responseStatus"]["code"] == 201 {
            rights.insert(Right {
                verb: "create".to_owned(),
                ..right.clone()
            });
        }
        rights.insert(right);
    }
    audited
}

/// Every right was used, and no request was refused.
pub async fn rights_match_use(cluster: &Cluster) {
    let audited = read(&cluster.kubernetes.endpoint.audit_log());
    assert_eq!(audited.refused, Vec::<String>::new());
    let cluster_roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let roles: Api<Role> = cluster.api();
    for service in ["scheduler", "exec-proxy"] {
        let name = format!("{NAMESPACE}-{RELEASE}-{service}");
        let role = cluster_roles.get(&name).await.unwrap();
        let mut rights = rights_of(role.rules.unwrap_or_default(), false);
        let local = roles
            .get_opt(&format!("{RELEASE}-{service}"))
            .await
            .unwrap();
        if let Some(local) = local {
            rights.extend(rights_of(local.rules.unwrap_or_default(), true));
        }
        let used = audited.used.get(service).cloned().unwrap_or_default();
        let unused: Vec<String> = rights
            .iter()
            .filter(|right| !used.iter().any(|audited| right.allows(audited)))
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            unused,
            Vec::<String>::new(),
            "{service} has rights it does not use"
        );
    }
    let services: Vec<&String> = audited.used.keys().collect();
    assert_eq!(services, ["exec-proxy", "scheduler"]);
}
