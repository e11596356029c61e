//! A gateway that does not run while access is revoked through another one.

use agentbox_testing::System;

use super::Frozen;
use crate::support::access::Access;
use crate::support::caller::admin_of;
use crate::support::system::{options, unlimited};

#[tokio::test]
async fn gateway_stopped_during_a_revocation_refuses_the_first_request_after_it() {
    let system = System::start(unlimited(options()).replicas(2)).await;
    let system = system.unwrap();
    let admin = admin_of(&system).await.patient();
    for access in Access::of_every_kind(&admin).await {
        // Both gateways know the credential.
        for gateway in 0..admin.gateways() {
            access.expect_granted(gateway).await;
        }
        {
            let _frozen = Frozen::new(&system, "api-gateway");
            access.revoke_on(1).await;
        }
        access.expect_revoked(0).await;
    }
    system.stop().await;
}
