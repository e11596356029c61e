use std::collections::BTreeMap;

use agentbox_contracts::environment::{ResourceRequest, SecurityContext, Toleration};
use agentbox_contracts::pool::PoolSource;
use chrono::{DateTime, Utc};

use super::*;
use crate::environment::request::validate;
use crate::pool::request::environment_request;

fn resources(memory: &str) -> ResourceRequest {
    ResourceRequest {
        cpu: "500m".into(),
        memory: memory.into(),
        storage: "1Gi".into(),
    }
}

fn pool(name: &str, change: impl FnOnce(&mut PoolSpec)) -> PoolRow {
    let mut spec = PoolSpec {
        image: "python:3.11-slim".into(),
        resources: resources("512Mi"),
        isolation: None,
        node_selector: BTreeMap::new(),
        cluster: None,
        min_ready: 1,
        max_ready: 2,
    };
    change(&mut spec);
    PoolRow {
        name: name.into(),
        spec,
        source: PoolSource::Api,
        revision: 1,
        target: 1,
        failures: 0,
        retry_at: None,
        last_error: None,
        created_at: DateTime::<Utc>::UNIX_EPOCH,
        updated_at: DateTime::<Utc>::UNIX_EPOCH,
    }
}

fn request(change: impl FnOnce(&mut EnvironmentRequest)) -> EnvironmentRequest {
    let mut request = environment_request(&pool("python", |_| {}).spec);
    request.env = BTreeMap::from([("A".into(), "b".into())]);
    request.labels = BTreeMap::from([("team".into(), "a".into())]);
    request.command = Some(vec!["sleep".into(), "60".into()]);
    change(&mut request);
    request
}

fn isolation(change: impl FnOnce(&mut Isolation)) -> Option<Isolation> {
    let mut isolation = Isolation::default();
    change(&mut isolation);
    Some(isolation)
}

/// The name of the pool and the reason.
fn matched(
    request: &EnvironmentRequest,
    pools: &[PoolRow],
) -> Option<(String, Option<MissReason>)> {
    let wanted = validate(request).unwrap();
    best(request, wanted, pools).map(|(pool, reason)| (pool.name.clone(), reason))
}

#[test]
fn request_that_differs_in_a_fixed_property_misses_with_that_reason() {
    let pools = [pool("python", |_| {})];
    for (request, reason) in [
        (request(|_| {}), None),
        (
            request(|r| r.image = "docker.io/library/python:3.11-slim".into()),
            None,
        ),
        (request(|r| r.resources.memory = "0.5Gi".into()), None),
        (request(|r| r.isolation = isolation(|_| {})), None),
        (
            request(|r| {
                r.isolation = isolation(|i| {
                    i.security_context = Some(SecurityContext::default());
                });
            }),
            None,
        ),
        (
            request(|r| r.resources.cpu = "1".into()),
            Some(MissReason::Resources),
        ),
        (
            request(|r| {
                r.isolation = isolation(|i| i.runtime_class = Some("gvisor".into()));
            }),
            Some(MissReason::RuntimeClass),
        ),
        (
            request(|r| {
                r.isolation = isolation(|i| {
                    i.security_context = Some(SecurityContext {
                        read_only_root_filesystem: Some(true),
                        ..SecurityContext::default()
                    });
                });
            }),
            Some(MissReason::SecurityContext),
        ),
        (
            request(|r| r.node_selector = BTreeMap::from([("disk".into(), "ssd".into())])),
            Some(MissReason::NodeSelector),
        ),
        (
            request(|r| {
                r.tolerations = vec![Toleration {
                    key: None,
                    operator: Some("Exists".into()),
                    value: None,
                    effect: None,
                    toleration_seconds: None,
                }];
            }),
            Some(MissReason::Tolerations),
        ),
    ] {
        let found = matched(&request, &pools);
        assert_eq!(found, Some(("python".to_owned(), reason)), "{request:?}");
    }
    let other = request(|r| r.image = "python:3.12-slim".into());
    assert_eq!(matched(&other, &pools), None);
}

#[test]
fn pool_that_matches_is_chosen_before_the_closest_one() {
    let large = || pool("large", |spec| spec.resources = resources("1Gi"));
    let gvisor = || {
        pool("gvisor", |spec| {
            spec.isolation = isolation(|i| i.runtime_class = Some("gvisor".into()));
        })
    };
    let pools = [
        large(),
        gvisor(),
        pool("python", |_| {}),
        pool("python-2", |_| {}),
    ];
    let found = matched(&request(|_| {}), &pools);
    assert_eq!(found, Some(("python".to_owned(), None)));
    let found = matched(&request(|_| {}), &[large(), gvisor()]);
    let expected = ("gvisor".to_owned(), Some(MissReason::RuntimeClass));
    assert_eq!(found, Some(expected), "it has the resources");
}

/// A security context with this `run_as_user`, changed by `change`.
fn with_user(user: Option<u32>, change: impl FnOnce(&mut SecurityContext)) -> Option<Isolation> {
    let mut context = SecurityContext {
        run_as_user: user,
        ..SecurityContext::default()
    };
    change(&mut context);
    isolation(|i| i.security_context = Some(context))
}

#[test]
fn claim_gives_a_user_to_a_box_that_may_be_root_and_nothing_else_of_the_context() {
    let user = |user| with_user(user, |_| {});
    let group = |user| with_user(user, |context| context.run_as_group = Some(1000));
    let non_root = |user| with_user(user, |context| context.run_as_non_root = Some(true));
    for (asked, given, is_match, gives) in [
        (user(Some(1000)), None, true, true),
        (user(Some(0)), None, true, true),
        (user(Some(1000)), user(Some(0)), true, true),
        (user(Some(1000)), user(Some(1000)), true, false),
        (user(Some(65_536)), None, false, false),
        (user(Some(1000)), user(Some(1001)), false, false),
        (None, user(Some(0)), false, false),
        (group(Some(1000)), None, false, false),
        (group(Some(1000)), group(Some(0)), false, false),
        (group(Some(1000)), group(Some(1000)), true, false),
        (non_root(Some(1000)), None, false, false),
        (non_root(Some(1000)), non_root(Some(1000)), true, false),
    ] {
        let request = request(|r| r.isolation.clone_from(&asked));
        let pool = pool("python", |spec| spec.isolation.clone_from(&given));
        let reason = (!is_match).then_some(MissReason::SecurityContext);
        let found = matched(&request, std::slice::from_ref(&pool));
        assert_eq!(found, Some(("python".to_owned(), reason)), "{asked:?}");
        assert_eq!(gives_user(&request, &pool.spec), gives, "{asked:?}");
    }
}

#[test]
fn pool_with_the_user_of_the_request_is_chosen_first() {
    let asked = with_user(Some(1000), |_| {});
    let pools = [
        pool("any", |_| {}),
        pool("of-user", |spec| spec.isolation.clone_from(&asked)),
    ];
    let request = request(|r| r.isolation.clone_from(&asked));
    let found = matched(&request, &pools);
    assert_eq!(found, Some(("of-user".to_owned(), None)));
}

#[test]
fn network_policy_is_part_of_the_match_on_kubernetes_only() {
    let policy = |internal| {
        isolation(|i| {
            i.network_policy = Some(NetworkPolicy {
                allowed_ingress_ports: vec![8080],
                allow_cluster_internal: internal,
                ..NetworkPolicy::default()
            });
        })
    };
    let with = |isolation: Option<Isolation>| request(move |r| r.isolation = isolation);
    let pool_with = |isolation| pool("python", move |spec| spec.isolation = isolation).spec;
    let with_entrypoint = |mut request: EnvironmentRequest| {
        request.command = None;
        request.use_entrypoint = true;
        request
    };
    for (request, pool, reason) in [
        (with(None), pool_with(None), None),
        (with(policy(false)), pool_with(policy(false)), None),
        (
            with(policy(false)),
            pool_with(None),
            Some(MissReason::NetworkPolicy),
        ),
        (
            with(None),
            pool_with(policy(false)),
            Some(MissReason::NetworkPolicy),
        ),
        (
            with(policy(true)),
            pool_with(policy(true)),
            Some(MissReason::NetworkPolicy),
        ),
        (
            with_entrypoint(with(None)),
            pool_with(None),
            Some(MissReason::Entrypoint),
        ),
    ] {
        let found = driver_mismatch(DriverKind::Kubernetes, &request, &pool);
        assert_eq!(found, reason, "{request:?}");
        assert_eq!(
            driver_mismatch(DriverKind::Containerd, &request, &pool),
            None
        );
    }
}
