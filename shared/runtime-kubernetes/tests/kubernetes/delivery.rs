//! How boxd comes into a box. The other tests here have its image as a volume; these have it
//! copied by an init container, as on clusters without image volumes.

use agentbox_runtime::conformance::Subject;
use agentbox_runtime::{BoxPhase, FailureReason};
use agentbox_runtime_kubernetes::{Delivery, Driver};

use crate::cluster::{config, subject_with};

async fn copying() -> Subject<Driver> {
    let mut config = config().await;
    config.boxd_delivery = Delivery::InitContainer;
    subject_with(&config)
}

agentbox_runtime::conformance_tests! { @each copying();
    life: two_replicas_at_once_make_one_box,
    life: boxd_is_reached_and_an_end_is_unreachable,
    life: remove_leaves_nothing_and_may_be_repeated,
    ending: an_exit_code_and_the_last_output_outlive_the_box,
    ending: an_image_for_root_fails_where_root_is_forbidden,
    ending: an_image_that_does_not_exist_fails_by_name_within_seconds,
    ending: the_asked_user_runs_the_command,
    ending: a_read_only_root_is_read_only,
    limits: more_memory_than_the_limit_is_an_oom_kill,
    hostile: rights_are_exactly_the_documented_ones,
    gvisor: a_command_runs_on_gvisors_kernel_and_tells_its_end,
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
        let is_the_operators = matches!(
            &phase,
            BoxPhase::Failed { reason: FailureReason::ImagePull, message }
                if message.contains("operator") && !message.contains("no-such-boxd")
        );
        s.clean().await.unwrap();
        assert!(is_the_operators, "{delivery:?}: {phase:?}");
    }
}
