//! A box's pod sandbox: its name, limits' parent, resolvers and namespaces. Pure.

use std::net::IpAddr;

use agentbox_runtime::BoxSpec;
use k8s_cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

use crate::cgroup::{self, Whole};
use crate::config::Config;
use crate::{container, labels};

/// containerd's name for the runtime that shares this machine's kernel.
const RUNC: &str = "runc";

/// Nothing of the user's is in it: containerd runs its pause image there.
pub fn config(config: &Config, spec: &BoxSpec, generation: i64) -> PodSandboxConfig {
    let namespaces = NamespaceOption {
        network: NamespaceMode::Pod.into(),
        // boxd is PID 1 of the container, and reaps.
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
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
            ..Default::default()
        }),
        labels: labels::labels(&config.deployment, spec, generation),
        annotations: labels::annotations(spec),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup::parent(&config.deployment, &spec.id),
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

/// containerd's own. What the sandbox gets is where the box's is made from.
fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}

/// The CRI handler of a spec; empty: containerd's default.
pub fn runtime_handler(spec: &BoxSpec) -> String {
    spec.isolation.runtime_class.clone().unwrap_or_default()
}

/// The limits of the group above the box, where its runtime brings a kernel of its own:
/// all that runc does not run.
pub fn whole(spec: &BoxSpec) -> Option<Whole> {
    let class = spec.isolation.runtime_class.as_deref();
    class.filter(|class| *class != RUNC).map(|_| Whole {
        memory_bytes: spec.resources.memory.0,
        cpu_quota_us: container::cpu_quota_us(spec.resources.cpu),
    })
}
