//! The lists of tests, for the tests of a driver.

/// Makes one test of each function. The argument is an expression, awaited in each test,
/// that makes a [`Subject`](crate::conformance::Subject).
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            life: ensure_twice_makes_one_box,
            life: concurrent_ensures_make_one_box,
            life: interrupted_ensure_is_completed_by_the_next,
            life: older_generation_is_fenced,
            life: newer_generation_adopts_running_box,
            life: repeated_remove_leaves_nothing,
            life: unknown_box_stop_and_remove_succeed,
            life: box_change_is_reported_by_watch,
            life: boxd_is_reachable_until_the_box_ends,
            life: unknown_runtime_class_fails_preflight,
            life: unmatched_node_selector_fails_preflight,
            life: capacity_excludes_reserved_resources,
            ending: ended_box_keeps_exit_code_and_last_output,
            ending: killed_box_keeps_its_unfinished_line,
            ending: missing_command_exits_127,
            executions: killed_box_keeps_its_executions,
            executions: execution_outlives_its_connection_and_is_resumed,
            ending: box_that_cannot_execute_boxd_does_not_report_an_exit_of_its_command,
            ending: stop_with_grace_lets_the_command_exit,
            ending: stop_without_grace_kills_at_once,
            ending: missing_image_fails_by_name_within_seconds,
            ending: root_image_fails_when_root_is_forbidden,
            ending: requested_user_runs_the_command,
            ending: read_only_root_refuses_writes,
            ending: command_sees_user_variables_and_no_secrets,
            start: command_and_variables_arrive_unchanged,
            start: hosts_file_names_the_box_and_nothing_of_the_machine,
            start: shared_memory_has_the_size_of_the_memory_limit,
            start: read_only_root_has_a_writable_tmp_in_memory,
            files: files_have_the_user_of_their_operation_and_replace_no_mount,
            files: box_without_root_acts_as_no_other_user_and_writes_to_volumes_only,
            ports: server_on_the_loopback_of_the_box_is_reached_and_listed,
            limits: memory_over_limit_is_oom_killed,
            limits: memory_bomb_ends_only_its_own_processes,
            limits: shared_memory_counts_as_memory,
            limits: storage_over_limit_is_refused_or_evicted_for_every_replica,
            limits: processes_over_limit_are_refused,
            limits: bomb_ends_neither_the_box_nor_later_commands,
            limits: system_v_objects_of_a_full_box_leave_others_theirs,
            limits: kernel_objects_of_a_full_box_leave_others_theirs,
            hostile: escape_attempts_are_refused,
            hostile: sender_forging_sockets_are_refused,
            hostile: ipv6_probes_get_no_answer,
            hostile: boxd_token_is_not_readable_in_the_box,
            hostile: boxd_refuses_calls_without_token,
            hostile: boxd_files_are_closed_to_other_users_of_the_box,
            hostile: forged_report_does_not_change_the_exit_code,
            hostile: filled_report_is_emptied_and_does_not_change_the_exit_code,
            hostile: capabilities_are_exactly_the_documented_ones,
            hostile: each_box_has_user_ids_of_its_own,
            hostile: setuid_program_gains_root_only_when_allowed,
            network: other_box_is_unreachable_by_default,
            network: cluster_internal_boxes_reach_each_other_but_not_boxd,
            network: box_of_another_owner_is_unreachable_under_every_policy,
            network: only_opened_ports_are_reachable,
            network: changed_policy_applies_to_new_and_to_open_connections,
            network: policy_of_an_older_generation_is_fenced,
            network: box_has_few_neighbours,
            network: first_packet_of_a_claimed_box_obeys_its_policy,
            claims: claimed_box_is_observed_as_a_cold_one,
            claims: same_claim_succeeds_again_and_another_is_refused,
            claims: one_of_two_concurrent_claims_succeeds,
            claims: interrupted_claim_is_completed_by_ensure,
            claims: claim_repeated_after_the_end_of_the_command_succeeds_and_starts_nothing,
            claims: cold_box_is_not_claimable,
            claims: ended_or_removed_warm_box_is_not_claimed,
            claims: warm_box_starts_no_command_before_its_claim,
            claims: two_claims_share_no_identity,
        }
    };
    (@each $subject:expr; $($noun:ident: $test:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let subject = $subject.await;
                let outcome = $crate::conformance::$noun::$test(&subject).await;
                subject.clean().await.expect("the created boxes can be removed");
                if let Err(violation) = outcome {
                    panic!("{violation}");
                }
            }
        )*
    };
}

/// Tests of [`conformance_tests`](crate::conformance_tests) for claimed boxes: those whose outcome a
/// claim could change. The subject is [`claiming`](crate::conformance::Subject::claiming).
#[macro_export]
macro_rules! claimed_box_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            life: newer_generation_adopts_running_box,
            life: repeated_remove_leaves_nothing,
            life: boxd_is_reachable_until_the_box_ends,
            ending: ended_box_keeps_exit_code_and_last_output,
            ending: killed_box_keeps_its_unfinished_line,
            ending: missing_command_exits_127,
            ending: stop_with_grace_lets_the_command_exit,
            ending: root_image_fails_when_root_is_forbidden,
            ending: requested_user_runs_the_command,
            ending: command_sees_user_variables_and_no_secrets,
            executions: killed_box_keeps_its_executions,
            start: command_and_variables_arrive_unchanged,
            start: hosts_file_names_the_box_and_nothing_of_the_machine,
            start: read_only_root_has_a_writable_tmp_in_memory,
            limits: memory_over_limit_is_oom_killed,
            limits: processes_over_limit_are_refused,
            hostile: boxd_token_is_not_readable_in_the_box,
            network: other_box_is_unreachable_by_default,
            network: box_of_another_owner_is_unreachable_under_every_policy,
            network: changed_policy_applies_to_new_and_to_open_connections,
            network: policy_of_an_older_generation_is_fenced,
        }
    };
}

/// As [`conformance_tests`](crate::conformance_tests), for a cluster with the images of
/// [`crate::conformance::accounts::images`].
#[macro_export]
macro_rules! account_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            accounts: image_user_has_its_own_groups_and_not_those_of_root,
            accounts: variables_of_the_image_do_not_configure_boxd,
            accounts: files_and_executions_of_a_user_need_no_program_of_the_image,
            accounts: boxes_share_no_machine_id_and_seed_of_their_image,
            accounts: claimed_box_has_the_user_of_its_claim,
            accounts: image_that_can_never_start_fails_soon_without_a_path_of_the_server,
            accounts: entrypoint_of_the_image_runs_with_its_cmd_if_it_is_requested,
            accounts: image_without_a_command_fails_if_its_entrypoint_is_requested,
        }
    };
}

/// As [`conformance_tests`](crate::conformance_tests), for boxes on gVisor.
#[macro_export]
macro_rules! gvisor_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @each $subject;
            gvisor: command_on_gvisor_returns_its_exit_code,
            gvisor: command_on_gvisor_streams_stdin_and_stdout,
            gvisor: terminal_on_gvisor_has_size_and_control_keys,
            gvisor: files_executions_and_ports_on_gvisor_work_as_elsewhere,
            gvisor: gvisor_boxes_are_killed_and_removed_repeatedly,
            gvisor: warm_box_on_gvisor_is_claimed,
        }
    };
}
