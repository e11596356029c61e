//! A box whose `runtime_class` is `gvisor` runs on gVisor's kernel, and ends as any other.

use std::time::Duration;

use agentbox_runtime::conformance::eventually;
use agentbox_runtime::conformance::gvisor::on_gvisor;
use agentbox_runtime::{BoxConnector as _, ExitReason, NetworkPolicy, Runtime as _};

use crate::cluster::{config, subject, subject_with};
use crate::network::hosts::{Listener, PRIVATE, PUBLIC, remote_machine};
use crate::network::probe::{Targets, probe_spec, run_probe, tcp, udp};

agentbox_runtime::gvisor_tests!(crate::cluster::subject());

#[tokio::test]
async fn gvisor_box_runs_prints_exits_and_is_removed() {
    let subject = subject().await;
    let spec = on_gvisor(subject.script("dmesg | head -n 3; exit 3"));
    subject.first.preflight(&spec).await.unwrap();
    let end = subject.run_to_end(&spec).await.unwrap();
    assert_eq!(
        (end.exit_code, end.reason),
        (3, ExitReason::Exited),
        "{end:?}"
    );
    assert!(end.output.contains("gVisor"), "{end:?}");
    let capacity = subject.first.capacity().await.unwrap();
    assert!(capacity.runtime_classes.contains(&"gvisor".to_owned()));
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn default_runtime_class_is_gvisor_and_others_are_refused() {
    let mut config = config().await;
    config.default_runtime_class = Some("gvisor".to_owned());
    config.allowed_runtime_classes = Some(vec!["gvisor".to_owned()]);
    let subject = subject_with(&config);
    let mut spec = on_gvisor(subject.script("dmesg | head -n 3"));
    spec.isolation.runtime_class = None;
    subject.first.preflight(&spec).await.unwrap();
    let end = subject.run_to_end(&spec).await.unwrap();
    assert!(end.output.contains("gVisor"), "{end:?}");
    // A class that the cluster has, and the list does not.
    config.default_runtime_class = None;
    config.allowed_runtime_classes = Some(vec!["other".to_owned()]);
    let other = subject_with(&config);
    let refused = other.first.preflight(&on_gvisor(other.spec())).await;
    let field = refused.err().map(|error| error.field);
    assert_eq!(field, Some("isolation.runtime_class"));
    subject.clean().await.unwrap();
    other.clean().await.unwrap();
}

#[tokio::test]
async fn gvisor_box_is_reached_and_stopped() {
    let subject = subject().await;
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let spec = on_gvisor(subject.script(script));
    subject.run(&spec).await.unwrap();
    eventually("the command is up", || async {
        let output = subject.first.last_output(&spec.id, 1_000).await?;
        Ok((!output.is_empty()).then_some(()))
    })
    .await
    .unwrap();
    subject
        .first
        .stop(&spec.id, Duration::from_secs(20))
        .await
        .unwrap();
    let end = subject.end_of(&spec.id).await.unwrap();
    assert_eq!(
        (end.exit_code, end.reason),
        (5, ExitReason::Stopped),
        "{end:?}"
    );
    assert!(end.output.contains("bye"), "{end:?}");
    let spec = on_gvisor(subject.script("trap '' TERM; while :; do sleep 0.1; done"));
    subject.run(&spec).await.unwrap();
    subject.first.stop(&spec.id, Duration::ZERO).await.unwrap();
    let end = subject.end_of(&spec.id).await.unwrap();
    assert_eq!(
        (end.exit_code, end.reason),
        (137, ExitReason::Stopped),
        "{end:?}"
    );
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn gvisor_box_keeps_its_network_policy() {
    let subject = subject().await;
    let remote = remote_machine().await;
    let public = Listener::on(remote, PUBLIC, 0);
    let private = Listener::on(remote, PRIVATE, 0);
    let open = Targets::from([tcp(PUBLIC, public.port), udp(PUBLIC, public.port)]);
    let mut all = open.clone();
    all.extend([tcp(PRIVATE, private.port), udp(PRIVATE, private.port)]);
    let everything = NetworkPolicy {
        allowed_egress_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
        ..Default::default()
    };
    for (policy, expected) in [
        (None, &open),
        (Some(NetworkPolicy::default()), &Targets::new()),
        (Some(everything), &all),
    ] {
        let spec = on_gvisor(probe_spec(&subject, policy.clone(), &all));
        let reached = run_probe(&subject, &spec).await.unwrap();
        assert_eq!(&reached, expected, "{policy:?}");
    }
    subject.clean().await.unwrap();
}
