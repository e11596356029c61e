//! The conformance suite.

agentbox_runtime::conformance_tests!(crate::machine::subject());
agentbox_runtime::account_tests!(crate::machine::subject_with_accounts());
