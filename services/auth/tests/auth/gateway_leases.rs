//! Leases of gateways: every change of a credential waits for them, and for nothing else.

use std::time::{Duration, Instant};

use agentbox_bus::Bus;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{
    ChangePassword, ChangePasswordRequest, CredentialRevision, DeleteUser, DeleteUserRequest,
    ForgetCredentials, LeaseRequest, PatchUser, PatchUserRequest, ReleaseLease, RenewLease,
    RevokeKey, RevokeKeyRequest, Secret,
};
use agentbox_contracts::identity::{CREDENTIAL_LEASE, Role};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::limits::UserLimits;
use agentbox_contracts::rpc::Empty;
use agentbox_testing::repeat_until_below;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{PASSWORD, Replica, World};

/// How long a change may take in all, if a gateway does not answer.
const LONGEST: Duration = Duration::from_secs(2);
/// The time of a change that waits for no lease, on a slow machine.
const AT_ONCE: Duration = Duration::from_millis(500);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const ROWS: &str = "SELECT count(*) FROM gateway_leases";

/// A stand-in for a gateway.
struct Gateway {
    bus: Bus,
    shutdown: CancellationToken,
    /// The revision of the last request to forget.
    asked: watch::Sender<i64>,
    /// Requests up to this revision are answered.
    answered: watch::Sender<i64>,
}

impl Gateway {
    /// A gateway that answers no request.
    async fn silent(beside: &Replica) -> Self {
        Self {
            bus: beside.bus_of("api-gateway").await,
            shutdown: CancellationToken::new(),
            asked: watch::Sender::new(0),
            answered: watch::Sender::new(0),
        }
    }

    /// A gateway that answers requests up to the revision in [`Self::answered`].
    async fn start(beside: &Replica) -> Self {
        let gateway = Self::silent(beside).await;
        let (asked, answered) = (gateway.asked.clone(), gateway.answered.clone());
        let server = gateway
            .bus
            .serve("api-gateway")
            .on_instance::<ForgetCredentials, _, _>(gateway.bus.instance(), move |request| {
                asked.send_replace(request.revision);
                let mut answered = answered.subscribe();
                async move {
                    let may_answer = answered.wait_for(|up_to| *up_to >= request.revision);
                    drop(may_answer.await.unwrap());
                    Ok(Empty {})
                }
            })
            .listen()
            .await
            .unwrap();
        tokio::spawn(server.run(gateway.shutdown.clone()));
        gateway
    }

    fn lease(&self) -> LeaseRequest {
        LeaseRequest {
            gateway: self.bus.instance().clone(),
        }
    }

    async fn renew(&self) -> i64 {
        let lease = self.lease();
        let renewed = self.bus.call::<RenewLease>(&lease, CALL_DEADLINE);
        let CredentialRevision { revision } = renewed.await.unwrap();
        revision
    }

    async fn release(&self) {
        let lease = self.lease();
        let released = self.bus.call::<ReleaseLease>(&lease, CALL_DEADLINE);
        released.await.unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Logs a new login out, and returns how long that took.
async fn log_out(auth: &Replica) -> Duration {
    let caller = auth.caller(Role::User).await;
    let begun = Instant::now();
    auth.logout(&caller.principal).await;
    begun.elapsed()
}

fn patch(user: &UserId) -> PatchUserRequest {
    PatchUserRequest {
        actor: None,
        id: user.clone(),
        email: None,
        role: None,
        password: None,
        revoke_keys: false,
        limits: None,
    }
}

#[tokio::test]
async fn change_is_answered_after_the_gateway_has_forgotten() {
    let world = World::start().await;
    let auth = world.auth();
    let gateway = Gateway::start(auth).await;
    repeat_until_below(CREDENTIAL_LEASE, async || {
        let before = gateway.renew().await;
        let caller = auth.caller(Role::User).await;
        let begun = Instant::now();
        let logged_out = async {
            auth.logout(&caller.principal).await;
            Instant::now()
        };
        let answered = async {
            let mut asked = gateway.asked.subscribe();
            let asked = timeout(LONGEST, asked.wait_for(|revision| *revision > before));
            let revision = asked.await.map_or(before, |revision| *revision.unwrap());
            // Auth has time to answer too early.
            for _ in 0..10 {
                let _ = auth.bearer(&caller.token).await;
            }
            let released = Instant::now();
            gateway.answered.send_replace(revision);
            (released, revision)
        };
        let (ended, (released, asked)) = tokio::join!(logged_out, answered);
        let took = ended - begun;
        if took < CREDENTIAL_LEASE {
            assert!(ended >= released, "the change was answered too early");
            // The gateway knows the revision that the next renewal shows.
            assert_eq!(gateway.renew().await, asked);
        }
        took
    })
    .await;
    assert_eq!(world.count(ROWS).await, 1, "a gateway that answers stays");
}

#[tokio::test]
async fn silent_gateway_costs_one_change_the_rest_of_its_lease() {
    // The gateway is not on the NATS server of the replica that makes the changes.
    let world = World::with(2, &[]).await;
    let [first, second] = world.replicas.as_slice() else {
        panic!("two replicas")
    };
    let gateway = Gateway::silent(first).await;
    let removed = async || {
        second
            .metric("agentbox_auth_gateway_leases_expired_total", "")
            .await
    };
    repeat_until_below(LONGEST, async || {
        let before = removed().await;
        gateway.renew().await;
        let took = log_out(second).await;
        assert!(took >= CREDENTIAL_LEASE, "{took:?}");
        // On a machine that stalls, auth may not get the answer to the removal, and the row may stay.
        match world.count(ROWS).await == 0 && removed().await > before {
            true => took,
            false => LONGEST,
        }
    })
    .await;
    repeat_until_below(AT_ONCE, async || log_out(second).await).await;

    // A gateway that has released its lease costs nothing.
    gateway.renew().await;
    gateway.release().await;
    repeat_until_below(AT_ONCE, async || log_out(second).await).await;

    // A lease that was renewed meanwhile is kept.
    let caller = second.caller(Role::User).await;
    let stop = CancellationToken::new();
    let renewing = async {
        while !stop.is_cancelled() {
            gateway.renew().await;
        }
    };
    gateway.renew().await;
    let before = removed().await;
    let logged_out = async {
        second.logout(&caller.principal).await;
        stop.cancel();
    };
    tokio::join!(logged_out, renewing);
    assert_eq!(world.count(ROWS).await, 1);
    assert_eq!(removed().await, before);

    // If the leases cannot be read, there may be any.
    world
        .execute("ALTER TABLE gateway_leases RENAME TO hidden_leases")
        .await;
    repeat_until_below(LONGEST, async || {
        let took = log_out(second).await;
        assert!(took >= CREDENTIAL_LEASE, "{took:?}");
        took
    })
    .await;
}

#[tokio::test]
async fn every_change_of_a_credential_raises_the_revision_once() {
    let world = World::start().await;
    let auth = world.auth();
    let revision = async || {
        world
            .count("SELECT revision FROM credential_revision")
            .await
    };
    let caller = auth.caller(Role::User).await;
    let user = &caller.user.id;
    let key = auth.key(user, Vec::new()).await;
    let first = revision().await;
    // What changes no answer of before.
    let other = auth.caller_as(caller.user.clone()).await;
    auth.bearer(&key.key).await.unwrap();
    let wrong = ChangePasswordRequest {
        user: user.clone(),
        current_password: Secret("not the password".to_owned()),
        new_password: Secret("another passphrase".to_owned()),
        revoke_keys: false,
    };
    let error = auth.call::<ChangePassword>(wrong.clone()).await;
    assert_eq!(error.unwrap_err().code, ErrorCode::InvalidCredentials);
    world
        .execute("UPDATE api_keys SET last_used_at = now()")
        .await;
    world.execute("UPDATE users SET email = email").await;
    assert_eq!(revision().await, first);

    let mut expected = first;
    let mut expect_raised = async |what: &str| {
        expected += 1;
        assert_eq!(revision().await, expected, "{what}");
    };
    auth.logout(&other.principal).await;
    expect_raised("a logout").await;
    let changed = ChangePasswordRequest {
        current_password: Secret(PASSWORD.to_owned()),
        revoke_keys: true,
        ..wrong
    };
    auth.call::<ChangePassword>(changed).await.unwrap();
    expect_raised("a password, with logins and keys").await;
    let changes = [
        PatchUserRequest {
            email: Some("again@example.com".to_owned()),
            ..patch(user)
        },
        PatchUserRequest {
            role: Some(Role::Admin),
            ..patch(user)
        },
        PatchUserRequest {
            limits: Some(UserLimits {
                sessions: Some(7),
                ..UserLimits::default()
            }),
            ..patch(user)
        },
    ];
    for change in changes {
        auth.call::<PatchUser>(change).await.unwrap();
        expect_raised("a change of a user").await;
    }
    let key = auth.key(user, Vec::new()).await;
    let revoke = RevokeKeyRequest {
        owner: user.clone(),
        id: key.api_key.id,
        creator: None,
    };
    auth.call::<RevokeKey>(revoke).await.unwrap();
    expect_raised("a key").await;
    let delete = DeleteUserRequest {
        actor: None,
        id: user.clone(),
    };
    auth.call::<DeleteUser>(delete).await.unwrap();
    expect_raised("a deleted user, with its credentials").await;

    // No method of auth makes these.
    let caller = auth.caller(Role::User).await;
    auth.key(&caller.user.id, Vec::new()).await;
    for change in [
        "UPDATE api_keys SET expires_at = now()",
        "DELETE FROM api_keys",
        "DELETE FROM logins",
        "UPDATE signing_keys SET not_after = now()",
        "TRUNCATE api_key_permissions",
        "TRUNCATE users CASCADE",
    ] {
        world.execute(change).await;
        expect_raised(change).await;
    }
}

#[tokio::test]
async fn concurrent_changes_of_one_user_do_not_block_each_other() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let mut logins = vec![caller.principal.clone()];
    for _ in 0..4 {
        logins.push(auth.caller_as(caller.user.clone()).await.principal);
    }
    let change = PatchUserRequest {
        password: Some(Secret("another passphrase".to_owned())),
        ..patch(&caller.user.id)
    };
    let logouts = join_all(logins.iter().map(|login| auth.logout(login)));
    let (_, changed) = tokio::join!(logouts, auth.call::<PatchUser>(change));
    changed.unwrap();
}
