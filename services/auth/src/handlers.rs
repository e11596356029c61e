//! Auth's edge: each method of the contract, and who answers it.

use std::sync::Arc;

use agentbox_bus::Server;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    Authenticate, ChangePassword, CreateKey, CreateUser, DeleteUser, GetKey, GetUser, IssueTicket,
    ListKeys, ListUsers, Login, Logout, PatchUser, PublicKeys, PublicKeysReply, Ready, RevokeKey,
};
use agentbox_contracts::rpc::Empty;
use chrono::Utc;
use sea_orm::DatabaseConnection;

use crate::api_key::ApiKeys;
use crate::authenticate::Authenticator;
use crate::error::StoreError;
use crate::login::Logins;
use crate::signing_key::Keyring;
use crate::ticket::Tickets;
use crate::user::Users;

/// Everything that answers.
pub struct Auth {
    pub database: DatabaseConnection,
    pub authenticator: Authenticator,
    pub logins: Logins,
    pub users: Users,
    pub api_keys: ApiKeys,
    pub tickets: Arc<Tickets>,
    pub keyring: Arc<Keyring>,
}

impl Auth {
    async fn public_keys(&self) -> Result<PublicKeysReply, Error> {
        let keys = self.keyring.jwks(Utc::now()).await?;
        Ok(PublicKeysReply { keys })
    }

    /// # Errors
    /// Unavailable when Postgres is, or when there is no key to sign with.
    pub async fn ready(&self) -> Result<(), Error> {
        self.database.ping().await.map_err(StoreError::from)?;
        self.keyring
            .signer(Utc::now())
            .await
            .map(|_| ())
            .map_err(|_| Error::new(ErrorCode::Unavailable, "there is no signing key"))
    }
}

/// A handler that lends `$auth` and the request to one expression.
macro_rules! handler {
    ($shared:ident, |$auth:ident, $request:pat_param| $answer:expr) => {{
        let shared = Arc::clone($shared);
        move |$request| {
            let $auth = Arc::clone(&shared);
            async move { $answer }
        }
    }};
}

pub fn register(server: Server, auth: &Arc<Auth>) -> Server {
    server
        .on::<Authenticate, _, _>(handler!(auth, |a, r| a.authenticator.authenticate(r).await))
        .on::<Login, _, _>(handler!(auth, |a, r| a.logins.login(r).await))
        .on::<Logout, _, _>(handler!(auth, |a, r| a.logins.logout(r).await.map(empty)))
        .on::<ChangePassword, _, _>(handler!(auth, |a, r| {
            a.users.change_password(r).await.map(empty)
        }))
        .on::<GetUser, _, _>(handler!(auth, |a, r| a.users.get(&r.id).await))
        .on::<CreateUser, _, _>(handler!(auth, |a, r| a.users.create(r).await))
        .on::<ListUsers, _, _>(handler!(auth, |a, r| a.users.list(r).await))
        .on::<PatchUser, _, _>(handler!(auth, |a, r| a.users.patch(r).await))
        .on::<DeleteUser, _, _>(handler!(auth, |a, r| a
            .users
            .delete(&r.id)
            .await
            .map(empty)))
        .on::<CreateKey, _, _>(handler!(auth, |a, r| a.api_keys.create(r).await))
        .on::<ListKeys, _, _>(handler!(auth, |a, r| a.api_keys.list(r).await))
        .on::<GetKey, _, _>(handler!(auth, |a, r| a.api_keys.get(r).await))
        .on::<RevokeKey, _, _>(handler!(auth, |a, r| a.api_keys.revoke(r).await.map(empty)))
        .on::<IssueTicket, _, _>(handler!(auth, |a, r| a.tickets.issue(r).await))
        .on::<PublicKeys, _, _>(handler!(auth, |a, _| a.public_keys().await))
        .on::<Ready, _, _>(handler!(auth, |a, _| a.ready().await.map(empty)))
}

fn empty((): ()) -> Empty {
    Empty {}
}
