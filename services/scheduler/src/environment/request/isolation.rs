//! `isolation` and `tolerations`: syntax and contradictions. Whether a cluster can offer
//! it is for the driver's preflight to say.

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::environment::{Isolation, NetworkPolicy, SecurityContext, Toleration};
use agentbox_contracts::error::Error;
use agentbox_runtime::never_reached;
use ipnet::IpNet;

use super::labels::is_dns_subdomain;
use super::{label_key, label_value};

const MAX_ENTRIES: usize = 64;

/// What was given, as far as it can be shown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

pub(super) fn tolerations(tolerations: &[Toleration]) -> Result<(), Error> {
    if tolerations.len() > MAX_ENTRIES {
        return Err(Error::field(
            "tolerations",
            format_args!(
                "at most {MAX_ENTRIES} are allowed, not {}",
                tolerations.len()
            ),
        ));
    }
    for (index, toleration) in tolerations.iter().enumerate() {
        self::toleration(toleration)
            .map_err(|rule| Error::field(&format!("tolerations[{index}]"), rule))?;
    }
    Ok(())
}

fn toleration(toleration: &Toleration) -> Result<(), String> {
    let given = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
    let (key, value) = (given(&toleration.key), given(&toleration.value));
    let exists = match toleration.operator.as_deref() {
        None | Some("Equal") => false,
        Some("Exists") => true,
        Some(other) => {
            let other = shown(other);
            return Err(format!("operator must be Equal or Exists, not `{other}`"));
        }
    };
    match &key {
        None if !exists => return Err("without a key, operator must be Exists".to_owned()),
        Some(key) => label_key(key).map_err(|rule| format!("key `{}` {rule}", shown(key)))?,
        None => {}
    }
    match &value {
        Some(value) if exists => {
            let value = shown(value);
            return Err(format!("operator Exists takes no value, not `{value}`"));
        }
        Some(value) => {
            label_value(value).map_err(|rule| format!("value `{}` {rule}", shown(value)))?;
        }
        None => {}
    }
    match toleration.effect.as_deref() {
        None | Some("" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") => {}
        Some(other) => {
            let other = shown(other);
            return Err(format!(
                "effect must be NoSchedule, PreferNoSchedule or NoExecute, not `{other}`"
            ));
        }
    }
    match toleration.toleration_seconds {
        Some(_) if toleration.effect.as_deref() != Some("NoExecute") => {
            Err("tolerationSeconds needs the effect NoExecute".to_owned())
        }
        _ => Ok(()),
    }
}

pub(super) fn isolation(isolation: &Isolation) -> Result<(), Error> {
    if let Some(class) = &isolation.runtime_class
        && !is_dns_subdomain(class)
    {
        return Err(Error::field(
            "isolation.runtime_class",
            format_args!("must be a name such as gvisor, not `{}`", shown(class)),
        ));
    }
    if let Some(policy) = &isolation.network_policy {
        network_policy(policy)?;
    }
    if let Some(context) = &isolation.security_context {
        security_context(context)?;
    }
    Ok(())
}

/// # Errors
/// What is wrong with it, in words.
fn egress_cidr(text: &str) -> Result<(), String> {
    let network: IpNet = text.parse().map_err(|_| {
        let text = shown(text);
        format!("must be CIDRs such as 10.0.0.0/8, not `{text}`")
    })?;
    match never_reached(&network) {
        Some(range) => Err(format!(
            "`{network}` lies in {range}, which no environment reaches"
        )),
        None => Ok(()),
    }
}

fn network_policy(policy: &NetworkPolicy) -> Result<(), Error> {
    const CIDRS: &str = "isolation.network_policy.allowed_egress_cidrs";
    const PORTS: &str = "isolation.network_policy.allowed_ingress_ports";
    for (field, length) in [
        (CIDRS, policy.allowed_egress_cidrs.len()),
        (PORTS, policy.allowed_ingress_ports.len()),
    ] {
        if length > MAX_ENTRIES {
            return Err(Error::field(
                field,
                format_args!("at most {MAX_ENTRIES} are allowed, not {length}"),
            ));
        }
    }
    for text in &policy.allowed_egress_cidrs {
        egress_cidr(text).map_err(|rule| Error::field(CIDRS, rule))?;
    }
    if policy.allowed_ingress_ports.contains(&0) {
        return Err(Error::field(PORTS, "must be 1 to 65535, not 0"));
    }
    if policy.allowed_ingress_ports.contains(&DEFAULT_PORT) {
        return Err(Error::field(
            PORTS,
            format_args!("{DEFAULT_PORT} is taken: boxd listens there, for us alone"),
        ));
    }
    Ok(())
}

fn security_context(context: &SecurityContext) -> Result<(), Error> {
    if context.run_as_non_root == Some(true) && context.run_as_user == Some(0) {
        return Err(Error::field(
            "isolation.security_context.run_as_user",
            "must not be 0, which is root, with run_as_non_root",
        ));
    }
    // Kubernetes' ids are signed 32-bit numbers.
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
        if let Some(id) = id.filter(|id| i32::try_from(*id).is_err()) {
            return Err(Error::field(
                field,
                format_args!("must be at most {}, not {id}", i32::MAX),
            ));
        }
    }
    Ok(())
}
