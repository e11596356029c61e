//! `isolation` and `tolerations`: syntax and contradictions. The driver's preflight checks
//! whether a cluster supports them.

use agentbox_contracts::environment::{Isolation, NetworkPolicy, SecurityContext, Toleration};
use agentbox_contracts::error::Error;
use agentbox_contracts::labels::{is_dns_subdomain, label_key, label_value};
use agentbox_runtime::NetworkPolicyError;

/// In each of the lists below.
const MAX_ENTRIES: usize = 64;

pub(super) fn tolerations(tolerations: &[Toleration]) -> Result<(), Error> {
    if tolerations.len() > MAX_ENTRIES {
        return Err(Error::field(
            "tolerations",
            format_args!(
                "must have at most {MAX_ENTRIES} entries, has {}",
                tolerations.len()
            ),
        ));
    }
    for (index, entry) in tolerations.iter().enumerate() {
        toleration(&format!("tolerations[{index}]"), entry)?;
    }
    Ok(())
}

/// Checks one toleration; `field` is its name in errors.
fn toleration(field: &str, toleration: &Toleration) -> Result<(), Error> {
    let failed = |rule: &str| Err(Error::field(field, rule));
    let wrong = |part: &str, rule: &str, value: &str| {
        Err(Error::value(&format!("{field}.{part}"), rule, value))
    };
    let exists = match toleration.operator.as_deref() {
        None | Some("Equal") => false,
        Some("Exists") => true,
        Some(other) => return wrong("operator", "must be Equal or Exists", other),
    };
    match toleration.key.as_deref().filter(|key| !key.is_empty()) {
        None if !exists => return failed("without a key, operator must be Exists"),
        None => {}
        Some(key) => {
            if let Err(rule) = label_key(key) {
                return wrong("key", rule, key);
            }
        }
    }
    match toleration
        .value
        .as_deref()
        .filter(|value| !value.is_empty())
    {
        Some(value) if exists => {
            return wrong("value", "must be absent with the operator Exists", value);
        }
        Some(value) => {
            if let Err(rule) = label_value(value) {
                return wrong("value", rule, value);
            }
        }
        None => {}
    }
    match toleration.effect.as_deref() {
        None | Some("" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") => {}
        Some(other) => {
            let rule = "must be NoSchedule, PreferNoSchedule or NoExecute";
            return wrong("effect", rule, other);
        }
    }
    if toleration.toleration_seconds.is_some() && toleration.effect.as_deref() != Some("NoExecute")
    {
        return failed("tolerationSeconds needs the effect NoExecute");
    }
    Ok(())
}

pub(super) fn isolation(isolation: &Isolation) -> Result<(), Error> {
    if let Some(class) = &isolation.runtime_class
        && !is_dns_subdomain(class)
    {
        return Err(Error::value(
            "isolation.runtime_class",
            "must be a name such as gvisor",
            class,
        ));
    }
    if let Some(policy) = &isolation.network_policy {
        network_policy("isolation.network_policy", policy)?;
    }
    if let Some(context) = &isolation.security_context {
        security_context(context)?;
    }
    Ok(())
}

/// Checks a network policy; `field` is its name in errors.
pub(super) fn network_policy(field: &str, policy: &NetworkPolicy) -> Result<(), Error> {
    for (list, length) in [
        ("allowed_egress_cidrs", policy.allowed_egress_cidrs.len()),
        ("allowed_ingress_ports", policy.allowed_ingress_ports.len()),
    ] {
        if length > MAX_ENTRIES {
            return Err(Error::field(
                &format!("{field}.{list}"),
                format_args!("must have at most {MAX_ENTRIES} entries, has {length}"),
            ));
        }
    }
    agentbox_runtime::NetworkPolicy::parse(policy)
        .map(drop)
        .map_err(|error| policy_error(field, &error))
}

/// The public error for a network policy, named `field`, that breaks a rule.
fn policy_error(field: &str, error: &NetworkPolicyError) -> Error {
    let list = error.field().rsplit('.').next().unwrap_or_default();
    Error::value(&format!("{field}.{list}"), error.rule(), error.value())
}

fn security_context(context: &SecurityContext) -> Result<(), Error> {
    if context.run_as_non_root == Some(true) && context.run_as_user == Some(0) {
        return Err(Error::field(
            "isolation.security_context.run_as_user",
            "must not be 0, which is root, with run_as_non_root",
        ));
    }
    // Kubernetes has signed 32-bit ids.
    for (field, id) in [
        (
            "isolation.security_context.run_as_user",
            context.run_as_user,
        ),
        (
            "isolation.security_context.run_as_group",
            context.run_as_group,
        ),
    ] {
        if let Some(id) = id
            && i32::try_from(id).is_err()
        {
            return Err(Error::value(
                field,
                format_args!("must be at most {}", i32::MAX),
                id,
            ));
        }
    }
    Ok(())
}
