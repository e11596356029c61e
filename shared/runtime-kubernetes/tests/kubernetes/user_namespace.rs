//! A box whose Pod has a user namespace, which the operator asks for.

use std::time::Duration;

use agentbox_runtime::conformance::boxd::exec;
use agentbox_runtime::{ExitReason, Runtime as _};

use crate::cluster::{config, subject_with};

#[tokio::test]
async fn box_with_a_user_namespace_runs_commands_keeps_output_and_stops() {
    let mut own = config().await;
    own.user_namespaces = true;
    let subject = subject_with(&own);
    let script =
        "trap 'echo bye; exit 5' TERM; cat /proc/self/uid_map; while :; do sleep 0.1; done";
    let spec = subject.script(script);
    subject.run(&spec).await.unwrap();
    let (map, code) = exec(&subject, &spec, &["cat", "/proc/self/uid_map"])
        .await
        .unwrap();
    let ids: Vec<u64> = map
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect();
    assert_eq!(code, 0);
    assert!(
        matches!(ids[..], [0, first, 65_536] if first >= 65_536),
        "{map}"
    );
    let grace = Duration::from_secs(20);
    subject.first.stop(&spec.id, grace).await.unwrap();
    let end = subject.end_of(&spec.id).await.unwrap();
    assert_eq!(
        (end.exit_code, end.reason),
        (5, ExitReason::Stopped),
        "{end:?}"
    );
    assert!(end.output.contains("bye"), "{end:?}");
    subject.clean().await.unwrap();
}
