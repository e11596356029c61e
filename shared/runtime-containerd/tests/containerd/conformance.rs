//! The conformance suite.

agentbox_runtime::conformance_tests!(crate::machine::subject());
agentbox_runtime::account_tests!(crate::machine::subject_with_accounts());

/// The suite's boxes, claimed from warm ones.
mod claimed {
    agentbox_runtime::claimed_box_tests!(async { crate::machine::subject().await.claiming() });
}
