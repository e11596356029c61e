//! Boxes whose boxd an init container copies, as on clusters without image volumes. In the other
//! tests boxd's image is a volume.

use agentbox_runtime::conformance::Subject;
use agentbox_runtime::{BoxPhase, FailureReason};
use agentbox_runtime_kubernetes::{Delivery, Driver};

use crate::cluster::{config, subject_with};

async fn init_container_subject() -> Subject<Driver> {
    let mut config = config().await;
    config.boxd_delivery = Delivery::InitContainer;
    subject_with(&config)
}

agentbox_runtime::conformance_tests! { @each init_container_subject();
    life: concurrent_ensures_make_one_box,
    life: boxd_is_reachable_until_the_box_ends,
    life: repeated_remove_leaves_nothing,
    ending: ended_box_keeps_exit_code_and_last_output,
    ending: root_image_fails_when_root_is_forbidden,
    ending: missing_image_fails_by_name_within_seconds,
    ending: requested_user_runs_the_command,
    ending: read_only_root_refuses_writes,
    files: files_have_the_user_of_their_operation_and_replace_no_mount,
    limits: memory_over_limit_is_oom_killed,
    hostile: capabilities_are_exactly_the_documented_ones,
    gvisor: command_on_gvisor_returns_its_exit_code,
}

#[tokio::test]
async fn missing_boxd_image_fails_without_naming_the_image() {
    let missing = "agentbox-conformance/no-such-boxd:1";
    for delivery in [Delivery::InitContainer, Delivery::ImageVolume] {
        let mut config = config().await;
        config.boxd_delivery = delivery;
        config.boxd_image = missing.to_owned();
        config.image_pull_deadline_s = 1;
        let s = subject_with(&config);
        let spec = s.spec();
        let phase = s.start(&spec).await.unwrap().phase;
        let is_operator_failure = matches!(
            &phase,
            BoxPhase::Failed { reason: FailureReason::ImagePull, message }
                if message.contains("operator") && !message.contains("no-such-boxd")
        );
        s.clean().await.unwrap();
        assert!(is_operator_failure, "{delivery:?}: {phase:?}");
    }
}
