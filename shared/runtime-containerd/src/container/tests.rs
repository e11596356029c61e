use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::conformance::example_spec;

use super::*;
use crate::sandbox;

fn settings() -> Config {
    serde_json::from_value(serde_json::json!({
        "socket": "/s", "state_dir": "/d", "boxd": "/lib/boxd", "subnet": "10.160.0.0/20",
        "bridge": "abx0", "deployment": "local", "dns_servers": ["192.0.2.53", "fd00::53"],
    }))
    .unwrap()
}

fn spec() -> BoxSpec {
    example_spec(|spec| {
        spec.resources.cpu = MilliCpu(500);
        "secret".clone_into(&mut spec.boxd_token);
    })
}

#[test]
fn command_replaces_the_image_command_and_absent_command_idles() {
    let texts = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    assert_eq!(command(None), texts(&[BOXD, "run"]));
    assert_eq!(command(Some(&[])), texts(&[BOXD, "run"]));
    assert_eq!(
        command(Some(&texts(&["sh", "-c", "exit 3"]))),
        texts(&[BOXD, "run", "--", "sh", "-c", "exit 3"])
    );
}

#[test]
fn image_command_is_the_main_command_only_if_it_is_requested() {
    let texts = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    let image = ImageConfig {
        entrypoint: Some(texts(&["/run"])),
        cmd: Some(texts(&["a"])),
        ..Default::default()
    };
    let files = HostFiles {
        output: Path::new("/d/output"),
        memory: Path::new("/d/memory"),
        names: Path::new("/d/memory"),
        terminals: None,
        seccomp: Path::new("/d/seccomp.json"),
    };
    let mut spec = spec();
    let command = |spec: &BoxSpec| config(&settings(), spec, 1, &image, files, None).command;
    assert_eq!(command(&spec), texts(&[BOXD, "run"]));
    spec.use_entrypoint = true;
    assert_eq!(command(&spec), texts(&[BOXD, "run", "--", "/run", "a"]));
    spec.command = Some(texts(&["sh"]));
    assert_eq!(command(&spec), texts(&[BOXD, "run", "--", "sh"]));
}

#[test]
fn limits_convert_to_kernel_units() {
    let limits = |cpu, memory| {
        resources(&Resources {
            cpu: MilliCpu(cpu),
            memory: Bytes(memory),
            storage: Bytes(1),
            pids: 1,
        })
    };
    for (cpu, quota, shares) in [(500, 50_000, 512), (2_000, 200_000, 2_048), (1, 1_000, 2)] {
        let got = limits(cpu, 1 << 20);
        assert_eq!((got.cpu_quota, got.cpu_shares), (quota, shares), "{cpu}m");
    }
    let got = limits(1, 64 << 20);
    assert_eq!(got.memory_limit_in_bytes, 64 << 20);
    assert_eq!(got.memory_swap_limit_in_bytes, got.memory_limit_in_bytes);
}

#[test]
fn security_context_grants_only_requested_rights() {
    let filter = Path::new("/d/seccomp.json");
    let image = ImageConfig::default();
    let got = security(None, &image, filter, None);
    assert_eq!(got.seccomp.unwrap().localhost_ref, "/d/seccomp.json");
    assert!(got.no_new_privs && !got.privileged && !got.readonly_rootfs);
    assert_eq!(got.capabilities.unwrap().drop_capabilities, ["ALL"]);
    let asked = SecurityContext {
        run_as_user: Some(1000),
        run_as_group: Some(100),
        run_as_non_root: Some(true),
        read_only_root_filesystem: Some(true),
        allow_privilege_escalation: Some(true),
    };
    let got = security(Some(&asked), &image, filter, None);
    assert_eq!(got.run_as_user.map(|v| v.value), Some(1000));
    assert_eq!(got.run_as_group.map(|v| v.value), Some(100));
    assert!(got.readonly_rootfs && !got.no_new_privs);
}

#[test]
fn tmp_is_in_memory_only_if_the_root_is_read_only() {
    let always = [
        "/dev/shm",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    ];
    for (read_only, in_memory) in [
        (None, always.to_vec()),
        (Some(true), [&always[..], &["/tmp"][..]].concat()),
    ] {
        let mut spec = spec();
        spec.isolation.security_context = Some(SecurityContext {
            read_only_root_filesystem: read_only,
            ..Default::default()
        });
        let files = HostFiles {
            output: Path::new("/d/output"),
            memory: Path::new("/d/memory"),
            names: Path::new("/d/memory"),
            terminals: None,
            seccomp: Path::new("/d/seccomp.json"),
        };
        let container = config(&settings(), &spec, 1, &ImageConfig::default(), files, None);
        let mounts = container.mounts.iter();
        let found: Vec<&str> = mounts
            .filter(|mount| mount.host_path.starts_with("/d/memory/"))
            .map(|mount| mount.container_path.as_str())
            .collect();
        assert_eq!(found, in_memory);
    }
}

#[test]
fn terminals_are_mounted_unless_the_runtime_has_its_own() {
    for terminals in [Some(Path::new("/d/terminals")), None] {
        let files = HostFiles {
            output: Path::new("/d/output"),
            memory: Path::new("/d/memory"),
            names: Path::new("/d/memory"),
            terminals,
            seccomp: Path::new("/d/seccomp.json"),
        };
        let container = config(
            &settings(),
            &spec(),
            1,
            &ImageConfig::default(),
            files,
            None,
        );
        let mut mounts = container.mounts.iter();
        let mount = mounts.find(|mount| mount.container_path == "/dev/pts");
        assert_eq!(mount.map(|mount| Path::new(&mount.host_path)), terminals);
    }
}

#[test]
fn image_user_is_used_unless_another_was_requested() {
    let image = ImageConfig {
        user: "alice:staff".to_owned(),
        ..Default::default()
    };
    let requested = SecurityContext {
        run_as_user: Some(1000),
        ..Default::default()
    };
    for (requested, user, name) in [
        (None, None, "alice:staff"),
        (Some(&SecurityContext::default()), None, "alice:staff"),
        (Some(&requested), Some(1000), ""),
    ] {
        let got = security(requested, &image, Path::new("/d/seccomp.json"), None);
        assert_eq!(got.run_as_user.map(|v| v.value), user, "{requested:?}");
        assert_eq!(got.run_as_username, name, "{requested:?}");
    }
}

#[test]
fn user_and_image_environment_do_not_replace_boxd_variables() {
    let mut spec = spec();
    spec.env.insert("MY_VAR".into(), "x".into());
    spec.env.insert(variables::TOKEN.into(), "forged".into());
    let environment = environment(&spec);
    let values = |name: &str| {
        environment
            .iter()
            .filter(|e| e.key == name)
            .map(|e| e.value.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(values("MY_VAR"), ["x"]);
    assert_eq!(values(variables::TOKEN), ["secret"]);
    // Empty, so that the image's value is replaced.
    for name in variables::UNSET {
        assert_eq!(values(name), [""], "{name}");
    }
}

#[test]
fn warm_box_starts_an_unconfigured_boxd_and_has_no_owner() {
    let (mut warm, cold) = (spec(), spec());
    warm.warm = true;
    let variable = |spec: &BoxSpec| {
        let found = environment(spec)
            .into_iter()
            .find(|e| e.key == variables::WARM);
        found.map(|e| e.value)
    };
    assert_eq!(variable(&warm).as_deref(), Some("true"));
    assert_eq!(variable(&cold).as_deref(), Some(""));
    let has_owner = |spec: &BoxSpec| {
        let owner = spec.owner.to_string();
        labels::labels("local", spec, 1)
            .values()
            .any(|value| *value == owner)
    };
    assert!(has_owner(&cold) && !has_owner(&warm));
}

#[test]
fn sandbox_and_container_have_the_same_user_namespace() {
    let (settings, spec) = (settings(), spec());
    let files = HostFiles {
        output: Path::new("/d/output"),
        memory: Path::new("/d/memory"),
        names: Path::new("/d/memory"),
        terminals: None,
        seccomp: Path::new("/d/seccomp.json"),
    };
    for users in [None, Some(UserRange { first: 65_536 })] {
        let sandbox = sandbox::config(&settings, &spec, 1, users).linux.unwrap();
        let container = config(&settings, &spec, 1, &ImageConfig::default(), files, users);
        let of_sandbox = sandbox.security_context.unwrap().namespace_options.unwrap();
        let security = container.linux.unwrap().security_context.unwrap();
        let of_container = security.namespace_options.unwrap();
        assert_eq!(of_sandbox.userns_options, of_container.userns_options);
        let mapped = of_sandbox.userns_options.map(|options| options.uids[0]);
        let ids = mapped.map(|ids| (ids.container_id, ids.host_id, ids.length));
        assert_eq!(ids, users.map(|users| (0, users.first, 65_536)));
        let range = sandbox.sysctls.get("net.ipv4.ping_group_range");
        assert_eq!(range.map(String::as_str), users.map(|_| "0 65535"));
    }
}

#[test]
fn default_runtime_class_applies_to_a_spec_without_one() {
    let mut config = settings();
    let mut spec = spec();
    assert_eq!(sandbox::runtime_handler(&config, &spec), "");
    assert!(sandbox::limits(&config, &spec).is_none());
    config.default_runtime_class = Some("gvisor".to_owned());
    assert_eq!(sandbox::runtime_handler(&config, &spec), "gvisor");
    assert!(sandbox::limits(&config, &spec).is_some());
    spec.isolation.runtime_class = Some("runc".to_owned());
    assert_eq!(sandbox::runtime_handler(&config, &spec), "runc");
    assert!(sandbox::limits(&config, &spec).is_none());
}

#[test]
fn user_label_does_not_replace_driver_label() {
    let mut spec = spec();
    spec.labels
        .insert(labels::DEPLOYMENT.into(), "other".into());
    let sandbox = sandbox::config(&settings(), &spec, 4, None);
    assert_eq!(sandbox.labels[labels::DEPLOYMENT], "local");
    assert_eq!(sandbox.labels[labels::GENERATION], "4");
    assert_eq!(
        sandbox.annotations["user.agentbox.dev/agentbox.dev/deployment"],
        "other"
    );
    let reserved = labels::Reserved::read(&sandbox.annotations);
    assert_eq!(
        (reserved.cpu, reserved.storage),
        (MilliCpu(500), Bytes(1 << 30))
    );
    assert_eq!(sandbox.dns_config.unwrap().servers, ["192.0.2.53"]);
}

#[test]
fn user_label_does_not_change_reserved_resources() {
    let mut spec = spec();
    spec.labels
        .insert("agentbox.dev/cpu-milli".into(), "1".into());
    let reserved = labels::Reserved::read(&labels::annotations(&spec));
    assert_eq!(reserved.cpu, MilliCpu(500));
}
