//! The conformance suite.

agentbox_runtime::conformance_tests!(crate::cluster::subject());
agentbox_runtime::account_tests!(crate::cluster::subject_with_accounts());
