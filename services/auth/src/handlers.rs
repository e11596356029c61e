//! Auth's RPCs: each method of the contract and the part that answers it.

use std::sync::Arc;

use agentbox_bus::Server;
use agentbox_contracts::audit::rpc::ListAudit;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    Authenticate, ChangePassword, CreateKey, CreateUser, DeleteUser, GetKey, GetUser, IssueTicket,
    ListKeys, ListUsers, Login, Logout, PatchUser, PublicKeys, PublicKeysReply, Ready,
    ReleaseLease, RenewLease, RevokeKey,
};
use agentbox_contracts::preview::rpc::{CreatePreview, DeletePreview, ListPreviews, OpenPreview};
use agentbox_contracts::rpc::Empty;
use chrono::Utc;
use sea_orm::DatabaseConnection;
use tokio::sync::Semaphore;

use crate::api_key::ApiKeys;
use crate::audit;
use crate::authenticate::Authenticator;
use crate::gateway_lease::GatewayLeases;
use crate::login::Logins;
use crate::preview::Previews;
use crate::signing_key::Keyring;
use crate::store::StoreError;
use crate::ticket::Tickets;
use crate::user::Users;

/// The most changes of credentials at once: half of the requests that a server processes. Each may wait 2 s for
/// a gateway, and callers must be authenticated meanwhile.
pub const MAX_CHANGES: usize = 128;

/// The parts of the service, shared by all requests.
pub struct Auth {
    pub database: DatabaseConnection,
    pub authenticator: Authenticator,
    pub logins: Logins,
    pub users: Users,
    pub api_keys: ApiKeys,
    pub tickets: Arc<Tickets>,
    pub previews: Previews,
    pub gateway_leases: GatewayLeases,
    /// [`MAX_CHANGES`] permits.
    pub changes: Semaphore,
    pub keyring: Arc<Keyring>,
}

impl Auth {
    async fn public_keys(&self) -> Result<PublicKeysReply, Error> {
        let keys = self.keyring.jwks(Utc::now()).await?;
        Ok(PublicKeysReply { keys })
    }

    /// Makes a change that may alter what auth has confirmed of a credential, and waits until it is in force on
    /// every gateway.
    ///
    /// # Errors
    /// Those of the change; Unavailable, before anything is changed, when too many are being made.
    async fn in_force<T>(
        &self,
        change: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Ok(_permit) = self.changes.try_acquire() else {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "too many changes of credentials at once; try again",
            ));
        };
        let outcome = change.await;
        if !outcome.as_ref().is_err_and(has_changed_nothing) {
            self.gateway_leases.settle().await;
        }
        outcome
    }

    /// Succeeds when this replica can serve requests.
    ///
    /// # Errors
    /// Unavailable when Postgres does not answer or there is no signing key.
    pub async fn ready(&self) -> Result<(), Error> {
        self.database.ping().await.map_err(StoreError::from)?;
        self.keyring
            .signer(Utc::now())
            .await
            .map(|_| ())
            .map_err(|_| Error::new(ErrorCode::Unavailable, "there is no signing key"))
    }
}

/// Adds the methods of auth to `server`.
pub fn register(server: Server, auth: &Arc<Auth>) -> Server {
    server
        .on_shared::<Authenticate, _, _, _>(auth, async |a, r| {
            a.authenticator.authenticate(r).await
        })
        .on_shared::<Login, _, _, _>(auth, async |a, r| a.logins.login(r).await)
        .on_shared::<Logout, _, _, _>(auth, async |a, r| {
            a.in_force(a.logins.logout(r)).await.map(empty)
        })
        .on_shared::<ChangePassword, _, _, _>(auth, async |a, r| {
            a.in_force(a.users.change_password(r)).await.map(empty)
        })
        .on_shared::<GetUser, _, _, _>(auth, async |a, r| a.users.get(&r.id).await)
        .on_shared::<CreateUser, _, _, _>(auth, async |a, r| a.users.create(r).await)
        .on_shared::<ListUsers, _, _, _>(auth, async |a, r| a.users.list(r).await)
        .on_shared::<PatchUser, _, _, _>(auth, async |a, r| a.in_force(a.users.patch(r)).await)
        .on_shared::<DeleteUser, _, _, _>(auth, async |a, r| {
            a.in_force(a.users.delete(r)).await.map(empty)
        })
        .on_shared::<CreateKey, _, _, _>(auth, async |a, r| a.api_keys.create(r).await)
        .on_shared::<ListKeys, _, _, _>(auth, async |a, r| a.api_keys.list(r).await)
        .on_shared::<GetKey, _, _, _>(auth, async |a, r| a.api_keys.get(r).await)
        .on_shared::<RevokeKey, _, _, _>(auth, async |a, r| {
            a.in_force(a.api_keys.revoke(r)).await.map(empty)
        })
        .on_shared::<IssueTicket, _, _, _>(auth, async |a, r| a.tickets.issue(r).await)
        .on_shared::<CreatePreview, _, _, _>(auth, async |a, r| a.previews.create(r).await)
        .on_shared::<ListPreviews, _, _, _>(auth, async |a, r| a.previews.list(r).await)
        .on_shared::<DeletePreview, _, _, _>(auth, async |a, r| {
            a.previews.delete(r).await.map(empty)
        })
        .on_shared::<OpenPreview, _, _, _>(auth, async |a, r| {
            a.previews.open(r, &a.authenticator).await
        })
        .on_shared::<ListAudit, _, _, _>(auth, async |a, r| audit::list(&a.database, r).await)
        .on_shared::<RenewLease, _, _, _>(auth, async |a, r| a.gateway_leases.renew(r).await)
        .on_shared::<ReleaseLease, _, _, _>(auth, async |a, r| {
            a.gateway_leases.release(r).await.map(empty)
        })
        .on_shared::<PublicKeys, _, _, _>(auth, async |a, _| a.public_keys().await)
        .on_shared::<Ready, _, _, _>(auth, async |a, _| a.ready().await.map(empty))
}

/// Whether a change was refused. After every other error it may have been made: its commit was not confirmed,
/// or an earlier request made it whose caller got no answer, and nothing is left to be found.
const fn has_changed_nothing(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Validation
            | ErrorCode::Forbidden
            | ErrorCode::Conflict
            | ErrorCode::InvalidCredentials
    )
}

fn empty((): ()) -> Empty {
    Empty {}
}
