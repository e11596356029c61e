//! Renders the configuration of a box's pod sandbox: name, cgroup, resolvers, namespaces. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use agentbox_runtime::BoxSpec;
use k8s_cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

use crate::cgroup::{self, SandboxLimits};
use crate::config::Config;
use crate::user_range::{self, UserRange};
use crate::{container, labels};

/// The handler of the runtime that shares this machine's kernel.
const RUNC: &str = "runc";

/// The sandbox runs containerd's pause image, and nothing of the user. `users` are the ids of its user
/// namespace; `None`: it has none of its own.
pub fn config(
    config: &Config,
    spec: &BoxSpec,
    generation: i64,
    users: Option<UserRange>,
) -> PodSandboxConfig {
    let namespaces = NamespaceOption {
        network: NamespaceMode::Pod.into(),
        // boxd is PID 1 of the container, and reaps.
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        userns_options: users.map(UserRange::namespace),
        ..Default::default()
    };
    let v4 = config
        .dns_servers
        .iter()
        .filter(|server| matches!(server, IpAddr::V4(_)));
    PodSandboxConfig {
        // containerd refuses a second sandbox of the same name and attempt.
        metadata: Some(PodSandboxMetadata {
            name: spec.id.to_string(),
            uid: spec.id.to_string(),
            namespace: config.deployment.clone(),
            attempt: u32::try_from(generation).unwrap_or(0),
        }),
        hostname: spec.id.to_string(),
        dns_config: Some(DnsConfig {
            servers: v4.map(ToString::to_string).collect(),
            // The resolver's default. If nothing was given, containerd would copy the machine's
            // resolv.conf into the box.
            options: vec!["ndots:1".to_owned()],
            ..Default::default()
        }),
        labels: labels::labels(&config.deployment, spec, generation),
        annotations: labels::annotations(spec),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup::parent(&config.deployment, &spec.id),
            sysctls: sysctls(users),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                readonly_rootfs: true,
                seccomp: Some(runtime_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// containerd allows ping without a capability, but not in a user namespace: its value names groups
/// that the namespace does not have.
fn sysctls(users: Option<UserRange>) -> HashMap<String, String> {
    let groups = users.map(|_| {
        let value = format!("0 {}", user_range::LENGTH - 1);
        ("net.ipv4.ping_group_range".to_owned(), value)
    });
    groups.into_iter().collect()
}

/// containerd's own filter. The box's filter is derived from the sandbox's.
fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}

/// The requested runtime class, else the operator's default.
fn runtime_class<'a>(config: &'a Config, spec: &'a BoxSpec) -> Option<&'a str> {
    let requested = spec.isolation.runtime_class.as_deref();
    requested.or(config.default_runtime_class.as_deref())
}

/// The CRI runtime handler of a spec; empty for containerd's default.
pub fn runtime_handler(config: &Config, spec: &BoxSpec) -> String {
    runtime_class(config, spec).unwrap_or_default().to_owned()
}

/// Whether the box uses this machine's kernel: with runc, and with containerd's default runtime.
pub fn shares_kernel(config: &Config, spec: &BoxSpec) -> bool {
    is_runtime_of_this_kernel(runtime_class(config, spec))
}

/// Whether the boxes of a runtime class use this machine's kernel; `None`: containerd's default.
pub fn is_runtime_of_this_kernel(class: Option<&str>) -> bool {
    class.is_none_or(|class| class == RUNC)
}

/// The limits of the cgroup above the box. Only a runtime with a kernel of its own needs them.
pub fn limits(config: &Config, spec: &BoxSpec) -> Option<SandboxLimits> {
    (!shares_kernel(config, spec)).then(|| SandboxLimits {
        memory_bytes: spec.resources.memory.0,
        cpu_quota_us: container::cpu_quota_us(spec.resources.cpu),
    })
}
