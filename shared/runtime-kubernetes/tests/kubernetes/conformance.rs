//! What every driver must hold.

agentbox_runtime::conformance_tests!(crate::cluster::subject());
