//! Renders the configuration of a box's container: boxd as its entry with the user's command,
//! limits and rights. Pure.
//!
//! * `command`, when given, replaces the image's ENTRYPOINT and CMD, as Kubernetes'
//!   `command` does; without one both are ignored too, and the box idles, unless the spec has
//!   `use_entrypoint`.
//! * CRI adds the image's environment and working directory.
//! * The image's user is passed on as the image names it. Without it containerd 1.6 starts the
//!   process as that user, but with the supplementary groups of root.

use std::path::Path;

use agentbox_box_protocol::variables;
use agentbox_contracts::units::MilliCpu;
use agentbox_runtime::{BoxSpec, CAPABILITIES, Resources, SecurityContext, image_reference};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, NamespaceOption, SecurityProfile,
    security_profile::ProfileType,
};

use crate::cgroup::CPU_PERIOD_US;
use crate::config::Config;
use crate::image::ImageConfig;
use crate::user_range::UserRange;
use crate::{labels, memory};

/// The paths of boxd and of its output directory inside a box.
const BOXD: &str = "/.agentbox/boxd";
const OUTPUT: &str = "/.agentbox/output";
/// Inside the output directory.
pub const TERMINATION_FILE: &str = "termination.json";

/// The kernel refuses less than 1 ms of each period.
const MIN_CPU_QUOTA_US: i64 = 1_000;

/// The paths that the kubelet hides; CRI hides none by itself.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The files of this machine, besides boxd, that a box uses.
#[derive(Clone, Copy, Debug)]
pub struct HostFiles<'a> {
    /// Its output directory.
    pub output: &'a Path,
    /// The directory of its other files in memory.
    pub memory: &'a Path,
    /// The directory of its `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`: on its disk if it
    /// has one, where they count toward its limit, else in memory.
    pub names: &'a Path,
    /// Its instance of devpts; `None`: the runtime mounts one.
    pub terminals: Option<&'a Path>,
    /// The file of its system-call filter.
    pub seccomp: &'a Path,
}

pub fn config(
    config: &Config,
    spec: &BoxSpec,
    generation: i64,
    image: &ImageConfig,
    files: HostFiles<'_>,
    users: Option<UserRange>,
) -> ContainerConfig {
    let mount = |container: &str, host: &Path, readonly| Mount {
        container_path: container.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        readonly,
        propagation: MountPropagation::PropagationPrivate.into(),
        ..Default::default()
    };
    let security_context = spec.isolation.security_context.as_ref();
    let is_root_read_only = security_context
        .and_then(|context| context.read_only_root_filesystem)
        .unwrap_or(false);
    let of_image = spec.use_entrypoint.then(|| image.command());
    let in_memory = |name: &str| files.memory.join(name);
    let mut mounts = vec![
        mount(BOXD, &config.boxd, true),
        mount(OUTPUT, files.output, false),
        mount("/dev/shm", &in_memory(memory::SHM), false),
    ];
    if let Some(terminals) = files.terminals {
        mounts.push(mount("/dev/pts", terminals, false));
    }
    for (path, name) in [
        ("/etc/hosts", memory::HOSTS),
        ("/etc/hostname", memory::HOSTNAME),
        ("/etc/resolv.conf", memory::RESOLV_CONF),
    ] {
        mounts.push(mount(path, &files.names.join(name), is_root_read_only));
    }
    if is_root_read_only {
        mounts.push(mount("/tmp", &in_memory(memory::TMP), false));
    }
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "main".to_owned(),
            attempt: u32::try_from(generation).unwrap_or(0),
        }),
        image: Some(ImageSpec {
            image: image_reference::complete(&spec.image),
            ..Default::default()
        }),
        command: command(spec.command.as_deref().or(of_image.as_deref())),
        envs: environment(spec),
        mounts,
        labels: labels::labels(&config.deployment, spec, generation),
        annotations: labels::annotations(spec),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(&spec.resources)),
            security_context: Some(security(security_context, image, files.seccomp, users)),
        }),
        ..Default::default()
    }
}

fn command(requested: Option<&[String]>) -> Vec<String> {
    let mut command = vec![BOXD.to_owned(), "run".to_owned()];
    if let Some(requested) = requested.filter(|words| !words.is_empty()) {
        command.push("--".to_owned());
        command.extend_from_slice(requested);
    }
    command
}

/// The user's variables, then boxd's. Neither a user nor an image can set boxd's.
fn environment(spec: &BoxSpec) -> Vec<KeyValue> {
    let user_variables = spec
        .env
        .iter()
        .filter(|(key, _)| !key.starts_with(variables::PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()));
    let termination = format!("{OUTPUT}/{TERMINATION_FILE}");
    let boxd_variables = [
        (variables::TOKEN, spec.boxd_token.as_str()),
        (variables::LISTEN, variables::DEFAULT_LISTEN),
        (variables::OUTPUT_DIR, OUTPUT),
        (variables::TERMINATION_FILE, termination.as_str()),
        (variables::WARM, if spec.warm { "true" } else { "" }),
        (variables::RENEW_IDENTITY, "true"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let unset = variables::UNSET.map(|key| (key.to_owned(), String::new()));
    user_variables
        .chain(boxd_variables)
        .chain(unset)
        .map(|(key, value)| KeyValue { key, value })
        .collect()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Microseconds of each period.
pub fn cpu_quota_us(cpu: MilliCpu) -> i64 {
    signed(cpu.0)
        .saturating_mul(CPU_PERIOD_US / 1_000)
        .max(MIN_CPU_QUOTA_US)
}

fn resources(limits: &Resources) -> LinuxContainerResources {
    let milli = signed(limits.cpu.0);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: cpu_quota_us(limits.cpu),
        // The share under contention, as Kubernetes computes it: 1024 for each core, at least 2.
        cpu_shares: (milli.saturating_mul(1_024) / 1_000).clamp(2, 262_144),
        memory_limit_in_bytes: signed(limits.memory.0),
        // Memory and swap together, so that there is no swap.
        memory_swap_limit_in_bytes: signed(limits.memory.0),
        ..Default::default()
    }
}

fn security(
    requested: Option<&SecurityContext>,
    image: &ImageConfig,
    seccomp: &Path,
    users: Option<UserRange>,
) -> LinuxContainerSecurityContext {
    let default = SecurityContext::default();
    let requested = requested.unwrap_or(&default);
    let id = |value: Option<u32>| {
        value.map(|value| Int64Value {
            value: i64::from(value),
        })
    };
    let owned = |paths: &[&str]| {
        paths
            .iter()
            .map(|&path| path.to_owned())
            .collect::<Vec<_>>()
    };
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: owned(&CAPABILITIES),
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        }),
        namespace_options: Some(NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            // containerd refuses options other than the sandbox's.
            userns_options: users.map(UserRange::namespace),
            ..Default::default()
        }),
        run_as_user: id(requested.run_as_user),
        run_as_username: match requested.run_as_user {
            Some(_) => String::new(),
            None => image.user.clone(),
        },
        // CRI refuses a group without a user.
        run_as_group: requested.run_as_user.and(id(requested.run_as_group)),
        readonly_rootfs: requested.read_only_root_filesystem.unwrap_or(false),
        no_new_privs: !requested.allow_privilege_escalation.unwrap_or(false),
        masked_paths: owned(&MASKED_PATHS),
        readonly_paths: owned(&READONLY_PATHS),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: seccomp.to_string_lossy().into_owned(),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
