//! The uses of system calls that this driver's filter refuses, and that a runtime's own allows.

use agentbox_runtime::conformance::hostile::{all_refused, python};

use crate::machine::subject;

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_boxd_and_netlink_protocols_are_closed() {
    let s = subject().await;
    let end = s
        .run_to_end(&python(&s, include_str!("system_calls.py")))
        .await;
    s.clean().await.unwrap();
    all_refused(&end.unwrap(), &["EPERM", "EPROTONOSUPPORT"], 24).unwrap();
}
