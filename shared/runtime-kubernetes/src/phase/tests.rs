use serde_json::{Value, json};

use super::*;
use crate::box_state::tests::state_with;

const DEADLINES: Deadlines = Deadlines {
    image_pull: Duration::from_secs(120),
    unschedulable: Duration::from_secs(120),
    node_lost: Duration::from_secs(60),
};

/// When the namespace of [`state_with`] was created.
const CREATED_AT: i64 = 1_767_323_045;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "main", "creationTimestamp": "1970-01-01T00:01:40Z" },
        "spec": {
            "initContainers": [{ "name": "boxd", "image": "boxd:1" }],
            "containers": [{ "name": "main", "image": "user:1" }],
        },
        "status": status,
    }))
    .unwrap()
}

fn main_state(state: Value) -> Value {
    json!([{ "name": "main", "image": "user:1", "imageID": "", "ready": false,
             "restartCount": 0, "state": state }])
}

/// At 110 s, ten seconds after the creation of the Pod.
fn phase_of(annotations: Value, status: Value) -> BoxPhase {
    phase_at(annotations, status, 110, None)
}

fn phase_at(annotations: Value, status: Value, now: i64, unready: Option<i64>) -> BoxPhase {
    let pod = pod(status);
    phase(&Observation {
        state: &state_with(annotations),
        pod: Some(&pod),
        node_unready_since: unready.map(at),
        now: at(now),
        deadlines: DEADLINES,
    })
}

fn running() -> Value {
    json!({ "phase": "Running", "podIP": "10.244.0.7", "containerStatuses":
        main_state(json!({ "running": { "startedAt": "1970-01-01T00:01:45Z" } })) })
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({ "phase": "Failed", "containerStatuses": main_state(json!({ "terminated": {
        "exitCode": code, "reason": reason, "message": message,
        "finishedAt": "1970-01-01T00:01:47Z",
    }})) })
}

fn termination_message(code: i32, oom_killed: bool) -> String {
    json!({ "exit_code": code, "oom_killed": oom_killed, "message": "",
        "started_at": "1970-01-01T00:01:45Z", "finished_at": "1970-01-01T00:01:46Z" })
    .to_string()
}

fn exit(phase: &BoxPhase) -> Option<(i32, ExitReason)> {
    match phase {
        BoxPhase::Exited {
            exit_code, reason, ..
        } => Some((*exit_code, *reason)),
        _ => None,
    }
}

fn reason(phase: &BoxPhase) -> Option<FailureReason> {
    match phase {
        BoxPhase::Failed { reason, .. } => Some(*reason),
        _ => None,
    }
}

#[test]
fn running_container_is_a_running_box() {
    assert_eq!(
        phase_of(json!({}), running()),
        BoxPhase::Running {
            address: "10.244.0.7:10777".parse().unwrap(),
            started_at: at(105),
        }
    );
}

#[test]
fn unready_node_loses_its_boxes_after_the_deadline() {
    let briefly = phase_at(json!({}), running(), 159, Some(100));
    assert!(matches!(briefly, BoxPhase::Running { .. }), "{briefly:?}");
    let long = phase_at(json!({}), running(), 160, Some(100));
    assert_eq!(exit(&long), Some((137, ExitReason::NodeLost)), "{long:?}");
}

#[test]
fn exit_reason_comes_from_the_most_reliable_source() {
    let stopped = json!({ "agentbox.dev/ending": "stopped" });
    let evicted = |code: i32| {
        let mut status = ended(code, "Error", "");
        status["reason"] = json!("Evicted");
        status["message"] = json!("exceeded its local ephemeral storage limit \"16Mi\"");
        status
    };
    let tainted = {
        let mut status = ended(137, "Error", "");
        status["conditions"] = json!([{ "type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByTaintManager", "message": "taint" }]);
        status
    };
    for (case, annotations, status, code, why) in [
        (
            "by itself",
            json!({}),
            ended(3, "Error", &termination_message(3, false)),
            3,
            ExitReason::Exited,
        ),
        (
            "with a forged report",
            json!({}),
            ended(7, "Error", &termination_message(0, true)),
            7,
            ExitReason::Exited,
        ),
        (
            "killed after its report",
            stopped.clone(),
            ended(137, "Error", &termination_message(0, false)),
            137,
            ExitReason::Stopped,
        ),
        (
            "without a report",
            json!({ "agentbox.dev/started-at": "2026-01-02T03:04:05Z" }),
            ended(3, "Error", "\n"),
            3,
            ExitReason::NodeLost,
        ),
        (
            "its command OOM-killed",
            json!({}),
            ended(137, "Error", &termination_message(137, true)),
            137,
            ExitReason::OomKilled,
        ),
        (
            "boxd OOM-killed",
            json!({}),
            ended(137, "OOMKilled", ""),
            137,
            ExitReason::OomKilled,
        ),
        (
            "a child OOM-killed before",
            json!({}),
            ended(0, "OOMKilled", &termination_message(0, false)),
            0,
            ExitReason::Exited,
        ),
        (
            "stopped",
            stopped.clone(),
            ended(5, "Error", &termination_message(5, false)),
            5,
            ExitReason::Stopped,
        ),
        ("evicted", json!({}), evicted(137), 137, ExitReason::Evicted),
        (
            "stopped, then evicted",
            stopped,
            evicted(137),
            137,
            ExitReason::Stopped,
        ),
        (
            "evicted by a taint",
            json!({}),
            tainted,
            137,
            ExitReason::NodeLost,
        ),
        (
            "unknown to its node",
            json!({}),
            ended(137, "ContainerStatusUnknown", ""),
            137,
            ExitReason::NodeLost,
        ),
    ] {
        let phase = phase_of(annotations, status);
        assert_eq!(exit(&phase), Some((code, why)), "{case}: {phase:?}");
    }
}

#[test]
fn box_that_ends_without_a_report_before_it_ran_has_failed_to_start() {
    let phase = phase_of(json!({}), ended(1, "Error", ""));
    assert_eq!(
        reason(&phase),
        Some(FailureReason::ImageInvalid),
        "{phase:?}"
    );
    let killed = phase_of(json!({}), ended(137, "Error", ""));
    assert_eq!(
        exit(&killed),
        Some((137, ExitReason::NodeLost)),
        "{killed:?}"
    );
}

#[test]
fn eviction_is_reported_after_the_container_is_removed() {
    let status = json!({ "phase": "Failed", "reason": "Evicted", "message": "over 16Mi" });
    let started = json!({ "agentbox.dev/started-at": "2026-01-02T03:04:05Z" });
    for annotations in [started, json!({})] {
        let phase = phase_of(annotations, status.clone());
        assert_eq!(exit(&phase), Some((137, ExitReason::Evicted)), "{phase:?}");
    }
}

#[test]
fn report_of_the_end_is_what_the_kubelet_has_read() {
    assert_eq!(end_report(&pod(running())), None);
    assert_eq!(end_report(&pod(json!({}))), None);
    assert_eq!(end_report(&pod(ended(137, "Error", "{}"))), Some("{}"));
}

#[test]
fn box_without_pod_has_exited_if_it_ever_ran() {
    let without_pod = |annotations: Value| {
        phase(&Observation {
            state: &state_with(annotations),
            pod: None,
            node_unready_since: None,
            now: at(110),
            deadlines: DEADLINES,
        })
    };
    let started = "2026-01-02T03:04:05Z";
    assert!(matches!(without_pod(json!({})), BoxPhase::Starting { .. }));
    let lost = without_pod(json!({ "agentbox.dev/started-at": started }));
    assert_eq!(exit(&lost), Some((137, ExitReason::NodeLost)));
    let stopped = without_pod(
        json!({ "agentbox.dev/started-at": started, "agentbox.dev/ending": "stopped" }),
    );
    assert_eq!(exit(&stopped), Some((137, ExitReason::Stopped)));
}

#[test]
fn box_that_cannot_start_fails_with_the_reason() {
    let waiting = |reason: &str, message: &str| {
        json!({ "phase": "Pending", "containerStatuses":
            main_state(json!({ "waiting": { "reason": reason, "message": message } })) })
    };
    let unscheduled = json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled",
        "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" }] });
    let refused = json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "no cpu" });
    let broken_install = json!({ "phase": "Failed", "initContainerStatuses": [{
        "name": "boxd", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": 125, "reason": "Error" } } }] });
    for (case, status, now, expected) in [
        ("pulling", waiting("ContainerCreating", ""), 110, None),
        (
            "an unknown image at the first attempt",
            waiting("ErrImagePull", "not found"),
            110,
            None,
        ),
        (
            "an invalid image name",
            waiting("InvalidImageName", "couldn't parse image name"),
            110,
            Some(FailureReason::ImagePull),
        ),
        ("unschedulable early", unscheduled.clone(), 110, None),
        (
            "unschedulable late",
            unscheduled,
            220,
            Some(FailureReason::Unschedulable),
        ),
        ("rejected early", refused.clone(), CREATED_AT + 119, None),
        (
            "rejected late",
            refused,
            CREATED_AT + 120,
            Some(FailureReason::Unschedulable),
        ),
        (
            "a failed installation of boxd",
            broken_install,
            110,
            Some(FailureReason::ImageInvalid),
        ),
        (
            "a missing program",
            ended(128, "StartError", "exec: no such file"),
            110,
            Some(FailureReason::ImageInvalid),
        ),
    ] {
        let phase = phase_at(json!({}), status, now, None);
        assert_eq!(reason(&phase), expected, "{case}: {phase:?}");
    }
    let recorded = json!({ "agentbox.dev/failure": "QUOTA", "agentbox.dev/failure-message": "m" });
    assert_eq!(
        reason(&phase_of(recorded, running())),
        Some(FailureReason::Quota)
    );
}

fn blocked_status(kind: &str, container: &str, reason: &str, message: &str) -> Value {
    json!({ "phase": "Pending", (kind): [{
        "name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": reason, "message": message } } }] })
}

fn blocked_since(key: &str, since: &str) -> Value {
    json!({ "agentbox.dev/blocked": json!({ "key": key, "since": since }).to_string() })
}

#[test]
fn refused_pull_fails_the_box_when_it_lasts() {
    let first = blocked_status("containerStatuses", "main", "ErrImagePull", "x: not found");
    let phase = phase_of(json!({}), first.clone());
    let BoxPhase::Starting { message } = &phase else {
        panic!("{phase:?}");
    };
    assert!(message.contains("user:1"), "{message}");
    let later_status = blocked_status(
        "containerStatuses",
        "main",
        "ImagePullBackOff",
        "Back-off pulling image \"user:1\": ErrImagePull: x: not found",
    );
    for (case, key, status, now, expected) in [
        ("before the retry", "main: pull", &later_status, 129, None),
        (
            "after the retry",
            "main: pull",
            &later_status,
            130,
            Some(FailureReason::ImagePull),
        ),
        (
            "after the retry, refused again",
            "main: pull",
            &first,
            130,
            Some(FailureReason::ImagePull),
        ),
        (
            "another container was blocked",
            "boxd: pull",
            &first,
            500,
            None,
        ),
        (
            "another step was blocked",
            "main: create",
            &first,
            500,
            None,
        ),
    ] {
        let known = blocked_since(key, "1970-01-01T00:01:50Z");
        let phase = phase_at(known, status.clone(), now, None);
        assert_eq!(reason(&phase), expected, "{case}: {phase:?}");
    }
}

/// The kubelet may not have seen a new pull secret at its first attempt.
#[test]
fn first_pull_without_credentials_is_not_final() {
    let message = "failed to pull and unpack image \"registry:5000/boxd:1\": failed to resolve \
                   reference: pull access denied: no basic auth credentials";
    let refused = |kind, container| blocked_status(kind, container, "ErrImagePull", message);
    for status in [
        refused("initContainerStatuses", "boxd"),
        refused("containerStatuses", "main"),
    ] {
        let phase = phase_of(json!({}), status);
        assert!(matches!(phase, BoxPhase::Starting { .. }), "{phase:?}");
    }
}

#[test]
fn failure_of_a_deployment_image_does_not_name_it() {
    let status = blocked_status(
        "initContainerStatuses",
        "boxd",
        "ErrImagePull",
        "boxd:1: not found",
    );
    let BoxPhase::Starting { message } = phase_of(json!({}), status.clone()) else {
        panic!("the pull is not retried");
    };
    assert!(!message.contains("boxd"), "{message}");
    let known = blocked_since("boxd: pull", "1970-01-01T00:01:40Z");
    let BoxPhase::Failed { message, .. } = phase_at(known, status, 220, None) else {
        panic!("the box has not failed");
    };
    assert!(!message.contains("boxd"), "{message}");
}

#[test]
fn pod_rejected_by_its_node_is_replaced_only_if_nothing_ran() {
    let rejected = json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "no cpu" });
    let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": "over 16Mi" });
    let mut ran = rejected.clone();
    ran["containerStatuses"] = ended(3, "Error", "")["containerStatuses"].clone();
    for (case, status, expected) in [
        ("rejected", rejected, true),
        ("evicted", evicted, false),
        ("rejected after it ran", ran, false),
        ("running", running(), false),
    ] {
        assert_eq!(is_rejected_by_node(&pod(status)), expected, "{case}");
    }
}
