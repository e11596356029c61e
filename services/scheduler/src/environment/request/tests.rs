use agentbox_contracts::command::{MAX_ARGUMENT_BYTES, MAX_VARIABLE_BYTES};
use agentbox_contracts::environment::{
    Isolation, NetworkPolicy, ResourceRequest, SecurityContext, Toleration,
};
use agentbox_contracts::error::ErrorCode;

use super::*;

fn valid() -> EnvironmentRequest {
    EnvironmentRequest {
        name: "a-name".into(),
        image: "python:3.11-slim".into(),
        resources: ResourceRequest {
            cpu: "500m".into(),
            memory: "0.125Gi".into(),
            storage: "1Gi".into(),
        },
        timeout_s: 1,
        idle_timeout_s: Some(10),
        env: BTreeMap::from([("MY_VAR".into(), "a value = \n".into())]),
        secret_env: BTreeMap::from([("MY_TOKEN".into(), "a secret".into())]),
        command: Some(vec!["sh".into(), String::new()]),
        use_entrypoint: false,
        labels: BTreeMap::from([("x.io/a".into(), String::new())]),
        node_selector: BTreeMap::new(),
        tolerations: vec![Toleration {
            key: None,
            operator: Some("Exists".into()),
            value: None,
            effect: None,
            toleration_seconds: None,
        }],
        isolation: Some(Isolation {
            runtime_class: Some("gvisor".into()),
            network_policy: Some(NetworkPolicy {
                allowed_egress_cidrs: vec!["10.0.0.0/8".into(), "fd00::/8".into()],
                allowed_ingress_ports: vec![8080],
                ..NetworkPolicy::default()
            }),
            security_context: Some(SecurityContext {
                run_as_user: Some(1000),
                run_as_non_root: Some(true),
                ..SecurityContext::default()
            }),
        }),
    }
}

#[test]
fn valid_request_gives_its_quantities() {
    let quantities = validate(&valid()).unwrap();
    assert_eq!(quantities.cpu, MilliCpu(500));
    assert_eq!(quantities.memory, Bytes(128 << 20));
    assert_eq!(quantities.storage, Bytes(1 << 30));
}

#[test]
fn entrypoint_of_the_image_is_accepted_without_a_command() {
    let mut request = valid();
    request.use_entrypoint = true;
    let error = validate(&request).unwrap_err();
    assert_eq!(
        error.message,
        "use_entrypoint: must be false with `command`, which replaces the image's ENTRYPOINT, is \
         `true`"
    );
    request.command = None;
    assert!(validate(&request).is_ok() && request.has_main_command());
    request.use_entrypoint = false;
    assert!(validate(&request).is_ok() && !request.has_main_command());
}

#[test]
fn storage_above_the_limit_is_refused_with_both() {
    let mut request = valid();
    request.resources.storage = "1Ei".into();
    let quantities = validate(&request).unwrap();
    assert_eq!(storage(quantities, None), Ok(()));
    assert_eq!(storage(quantities, Some(Bytes(1 << 60))), Ok(()));
    let error = storage(quantities, Some(Bytes(100 << 30))).unwrap_err();
    assert_eq!(error.code, ErrorCode::Validation);
    assert_eq!(
        error.message,
        "resources.storage: must be at most 100Gi, is `1048576Ti`"
    );
}

type Break = fn(&mut EnvironmentRequest);

#[test]
fn each_broken_rule_is_a_validation_error_for_its_field() {
    let table: &[(&str, Break)] = &[
        ("name", |r| r.name = String::new()),
        ("name", |r| r.name = "Upper".into()),
        ("name", |r| r.name = "a".repeat(64)),
        ("name", |r| r.name = "-a".into()),
        ("name", |r| r.name = "a.b".into()),
        ("image", |r| r.image = String::new()),
        ("image", |r| r.image = "a b".into()),
        ("image", |r| r.image = "--help".into()),
        ("image", |r| r.image = "a:".into()),
        ("image", |r| r.image = "http://x/y".into()),
        ("resources.cpu", |r| r.resources.cpu = "0".into()),
        ("resources.memory", |r| r.resources.memory = "lots".into()),
        ("resources.storage", |r| r.resources.storage = "-1Gi".into()),
        ("timeout", |r| r.timeout_s = 0),
        ("timeout", |r| r.timeout_s = u64::MAX),
        ("idle_timeout", |r| r.idle_timeout_s = Some(9)),
        ("idle_timeout", |r| r.idle_timeout_s = Some(u64::MAX)),
        ("env", |r| {
            r.env = BTreeMap::from([("A=B".into(), String::new())])
        }),
        ("env", |r| {
            r.env = BTreeMap::from([(String::new(), String::new())])
        }),
        ("env", |r| {
            r.env = BTreeMap::from([("A".into(), "\0".into())])
        }),
        ("env", |r| {
            r.env = BTreeMap::from([("A".into(), "x".repeat(MAX_MAIN_ENV_BYTES))])
        }),
        // The kernel counts `=` and NUL too.
        ("env", |r| {
            r.env = BTreeMap::from([("A".into(), "x".repeat(MAX_ARGUMENT_BYTES - 2))])
        }),
        ("env", |r| {
            r.env = BTreeMap::from([("A".into(), "x".repeat(MAX_VARIABLE_BYTES))])
        }),
        ("env", |r| {
            r.env = BTreeMap::from([("AGENTBOX_BOXD_TOKEN".into(), "x".into())])
        }),
        ("secret_env", |r| {
            r.secret_env = BTreeMap::from([("A=B".into(), String::new())])
        }),
        ("secret_env", |r| {
            r.secret_env = BTreeMap::from([("AGENTBOX_BOXD_TOKEN".into(), "x".into())])
        }),
        // It is in `env` too.
        ("secret_env", |r| {
            r.secret_env = BTreeMap::from([("MY_VAR".into(), "x".into())])
        }),
        // The limit is for both together.
        ("secret_env", |r| {
            r.env = BTreeMap::from([("A".into(), "x".repeat(MAX_MAIN_ENV_BYTES / 2))]);
            r.secret_env = BTreeMap::from([("B".into(), "x".repeat(MAX_MAIN_ENV_BYTES / 2))]);
        }),
        ("command", |r| r.command = Some(vec![])),
        ("command", |r| r.command = Some(vec![String::new()])),
        ("command", |r| r.command = Some(vec!["a\0".into()])),
        // It has a command too.
        ("use_entrypoint", |r| r.use_entrypoint = true),
        ("labels", |r| {
            r.labels = BTreeMap::from([("-a".into(), String::new())])
        }),
        ("labels", |r| {
            r.labels = BTreeMap::from([("a/b/c".into(), String::new())])
        }),
        ("labels", |r| {
            r.labels = BTreeMap::from([("a".into(), "b c".into())])
        }),
        ("labels", |r| {
            r.labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect()
        }),
        ("node_selector", |r| {
            r.node_selector = BTreeMap::from([("".into(), String::new())])
        }),
        ("tolerations[0]", |r| r.tolerations[0].operator = None),
        ("tolerations[0].operator", |r| {
            r.tolerations[0].operator = Some("Is".into())
        }),
        ("tolerations[0].value", |r| {
            r.tolerations[0].value = Some("x".into())
        }),
        ("tolerations[0].effect", |r| {
            r.tolerations[0].effect = Some("Never".into())
        }),
        ("tolerations[0]", |r| {
            r.tolerations[0].toleration_seconds = Some(1)
        }),
        ("isolation.runtime_class", |r| {
            isolation(r).runtime_class = Some("a/b".into())
        }),
        ("isolation.network_policy.allowed_egress_cidrs", |r| {
            policy(r).allowed_egress_cidrs = vec!["10.0.0.0".into()];
        }),
        ("isolation.network_policy.allowed_egress_cidrs", |r| {
            policy(r).allowed_egress_cidrs = vec!["10.0.0.0/33".into()];
        }),
        ("isolation.network_policy.allowed_ingress_ports", |r| {
            policy(r).allowed_ingress_ports = vec![0];
        }),
        ("isolation.network_policy.allowed_ingress_ports", |r| {
            policy(r).allowed_ingress_ports = vec![80, 10777];
        }),
        ("isolation.network_policy.allowed_ingress_ports", |r| {
            policy(r).allowed_ingress_ports = (1..=65).collect();
        }),
        ("isolation.network_policy.allowed_egress_cidrs", |r| {
            policy(r).allowed_egress_cidrs = vec!["10.0.0.0/8".into(); 65];
        }),
        ("isolation.security_context.run_as_user", |r| {
            context(r).run_as_user = Some(0)
        }),
        ("isolation.security_context.run_as_group", |r| {
            context(r).run_as_group = Some(u32::MAX);
        }),
    ];
    for (index, (field, break_it)) in table.iter().enumerate() {
        let mut request = valid();
        break_it(&mut request);
        let error = validate(&request).expect_err(&format!("row {index}, {field}"));
        assert_eq!(error.code, ErrorCode::Validation, "row {index}");
        assert!(
            error.message.starts_with(&format!("{field}: ")),
            "row {index}: {error}"
        );
    }
}

fn isolation(request: &mut EnvironmentRequest) -> &mut Isolation {
    request.isolation.as_mut().unwrap()
}

fn policy(request: &mut EnvironmentRequest) -> &mut NetworkPolicy {
    isolation(request).network_policy.as_mut().unwrap()
}

fn context(request: &mut EnvironmentRequest) -> &mut SecurityContext {
    isolation(request).security_context.as_mut().unwrap()
}

#[test]
fn egress_cidr_within_an_unreachable_range_is_refused_with_that_range() {
    for (cidr, rule) in [
        (
            "169.254.169.254/32",
            Some(
                "must not lie in 169.254.0.0/16, which no environment reaches, is `169.254.169.254/32`",
            ),
        ),
        (
            "127.0.0.0/8",
            Some("must not lie in 127.0.0.0/8, which no environment reaches, is `127.0.0.0/8`"),
        ),
        (
            "fe80::/64",
            Some("must not lie in fe80::/10, which no environment reaches, is `fe80::/64`"),
        ),
        (
            "::ffff:10.0.0.1/128",
            Some(
                "must not lie in ::ffff:0:0/96, which no environment reaches, is `::ffff:10.0.0.1/128`",
            ),
        ),
        (
            "10.0.0.0 /8",
            Some("must be CIDRs such as 10.0.0.0/8, is `10.0.0.0 /8`"),
        ),
        (
            "10.0.0.0/+8",
            Some("must be CIDRs such as 10.0.0.0/8, is `10.0.0.0/+8`"),
        ),
        ("0.0.0.0/0", None),
        ("::/0", None),
        ("192.168.1.7/32", None),
    ] {
        let mut request = valid();
        policy(&mut request).allowed_egress_cidrs = vec![cidr.into()];
        let expected = rule.map(|rule| {
            let field = "isolation.network_policy.allowed_egress_cidrs";
            format!("{field}: {rule}")
        });
        assert_eq!(
            validate(&request).err().map(|e| e.message),
            expected,
            "{cidr}"
        );
    }
}

#[test]
fn validation_error_has_field_rule_and_value() {
    let table: &[(Break, &str)] = &[
        (
            |r| isolation(r).runtime_class = Some("g/v\n".into()),
            "isolation.runtime_class: must be a name such as gvisor, is `g/v`",
        ),
        (
            |r| context(r).run_as_user = Some(u32::MAX),
            "isolation.security_context.run_as_user: must be at most 2147483647, is `4294967295`",
        ),
        (
            |r| r.tolerations[0].effect = Some("Never".into()),
            "tolerations[0].effect: must be NoSchedule, PreferNoSchedule or NoExecute, is `Never`",
        ),
    ];
    for (break_it, message) in table {
        let mut request = valid();
        break_it(&mut request);
        assert_eq!(validate(&request).unwrap_err().message, *message);
    }
}
