//! Renews the lease under which the gateway answers for credentials that auth has confirmed.
//!
//! * I1. A lease is renewed only while there are requests, and no request waits for it.
//! * I2. It lasts from before auth was asked, by a clock that goes on while the machine sleeps or the process
//!   is stopped. No time of day decides.

use std::time::Duration;

use agentbox_bus::Listening;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    CredentialRevision, ForgetCredentials, LeaseRequest, ReleaseLease, RenewLease,
};
use agentbox_contracts::rpc::Empty;
use nix::time::{ClockId, clock_gettime};
use tokio::time::timeout;

use crate::state::{AUTH_DEADLINE, Gateway};

/// How long auth may take to renew the lease. A later answer would leave little of it.
const RENEWAL_DEADLINE: Duration = Duration::from_millis(750);
/// The pause after a renewal that failed.
const RETRY: Duration = Duration::from_millis(250);
/// How long auth may take to release the lease of a gateway that stops.
const RELEASE_DEADLINE: Duration = Duration::from_secs(1);

/// The time since the machine was started, sleep included. [`Duration::MAX`] if it cannot be read: then the
/// gateway holds no lease.
pub(crate) fn boot_time() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// Serves auth's requests to forget. Until it does, the gateway must hold no lease.
///
/// # Errors
/// When NATS does not confirm the subscription.
pub(crate) async fn listen(gateway: &Gateway) -> Result<Listening, anyhow::Error> {
    let forgetting = gateway.clone();
    let server = gateway
        .bus
        .serve("api-gateway")
        .on_instance::<ForgetCredentials, _, _>(
            gateway.bus.instance(),
            move |CredentialRevision { revision }| {
                forgetting.confirmed_tokens.forget(revision);
                async { Ok(Empty {}) }
            },
        );
    Ok(server.listen().await?)
}

/// Renews the lease whenever a request has found it due, until the gateway stops.
///
/// # Errors
/// None: without a lease the gateway asks auth.
pub(crate) async fn run(gateway: Gateway) -> Result<(), anyhow::Error> {
    let request = LeaseRequest {
        gateway: gateway.bus.instance().clone(),
    };
    let tokens = &gateway.confirmed_tokens;
    let due = || {
        gateway
            .shutdown
            .run_until_cancelled(tokens.wait_for_renewal())
    };
    while due().await.is_some() {
        // Perhaps it was renewed since the request.
        if tokens.is_renewal_due(boot_time()) {
            renew(&gateway, &request).await;
        }
    }
    tokens.release();
    let released = gateway
        .bus
        .call::<ReleaseLease>(&request, RELEASE_DEADLINE)
        .await;
    if let Err(error) = released {
        tracing::debug!(error = %ErrorChain(&error), "lease of credentials not released; it runs out");
    }
    Ok(())
}

async fn renew(gateway: &Gateway, request: &LeaseRequest) {
    let asked_at = boot_time();
    // Auth ignores a request whose deadline has passed by its own clock. So the clocks may differ by as much as
    // for other requests.
    let renewing = gateway.bus.call::<RenewLease>(request, AUTH_DEADLINE);
    let late = |_| Err(Error::new(ErrorCode::Timeout, "auth was too slow"));
    let renewed = timeout(RENEWAL_DEADLINE, renewing).await;
    match renewed.unwrap_or_else(late) {
        Ok(CredentialRevision { revision }) => {
            gateway
                .confirmed_tokens
                .renew(revision, asked_at, boot_time());
        }
        Err(error) => {
            tracing::debug!(error = %ErrorChain(&error), "lease of credentials not renewed; retried");
            tokio::time::sleep(RETRY).await;
        }
    }
}
