//! The conformance suite.

agentbox_runtime::conformance_tests!(crate::cluster::subject());
