//! Users and their roles.
//!
//! Owns table `users`. Has no data about a user's environments: it notifies the scheduler when a
//! user is deleted.
//!
//! * I1. The last administrator can be neither deleted nor demoted.
//! * I2. A new password revokes every login of its user, in the same transaction; API keys
//!   stay, unless the request revokes them too.
//! * I3. Deleting a user deletes all its credentials in one transaction. Its environments are
//!   ended afterwards: the scheduler is notified until it has confirmed ([`deletion`]).

pub mod bootstrap;
pub mod deletion;
pub mod rules;
pub mod store;

use std::sync::Arc;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    ChangePasswordRequest, CreateUserRequest, DeleteUserRequest, ListUsersReply, PageRequest,
    PatchUserRequest,
};
use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use sea_orm::DatabaseConnection;
use tokio::sync::Notify;

use crate::api_key;
use crate::audit::{self, Action, Entry};
use crate::password::{self, Hasher};
use crate::store::{StoreError, begin, commit, snapshot};

pub struct Users {
    database: DatabaseConnection,
    hasher: Arc<Hasher>,
    /// Wakes the worker that notifies the scheduler of deletions.
    deleted: Arc<Notify>,
}

impl Users {
    pub fn new(database: DatabaseConnection, hasher: Arc<Hasher>, deleted: Arc<Notify>) -> Self {
        Self {
            database,
            hasher,
            deleted,
        }
    }

    /// Returns one user.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, id: &UserId) -> Result<User, Error> {
        let user = store::find(&self.database, id).await?;
        user.map(User::from).ok_or_else(not_found)
    }

    pub async fn list(&self, page: PageRequest) -> Result<ListUsersReply, Error> {
        let snapshot = snapshot(&self.database).await?;
        let (users, total) = store::page(&snapshot, page.limit, page.offset).await?;
        Ok(ListUsersReply { users, total })
    }

    /// Creates a user.
    ///
    /// # Errors
    /// Validation; Conflict when the username or the email is taken.
    pub async fn create(&self, request: CreateUserRequest) -> Result<User, Error> {
        rules::username(&request.username)?;
        rules::email(&request.email)?;
        password::check("password", &request.password, &request.username)?;
        let new = store::NewUser {
            username: request.username,
            email: request.email,
            role: request.role,
            password_hash: self.hasher.hash(&request.password).await?,
        };
        let transaction = begin(&self.database).await?;
        let user = store::insert(&transaction, new)
            .await
            .map_err(conflict_error)?;
        let entry = Entry {
            actor: request.actor.as_ref(),
            action: Action::CreateUser,
            target: Some(user.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(user)
    }

    /// Changes the email, the role, the password or the limits of a user, and revokes its keys if asked
    /// to.
    ///
    /// # Errors
    /// Validation; NotFound; Conflict when the email is taken or the user is the last
    /// administrator and would lose the role.
    pub async fn patch(&self, request: PatchUserRequest) -> Result<User, Error> {
        if let Some(email) = &request.email {
            rules::email(email)?;
        }
        let password_hash = match &request.password {
            Some(password) => {
                let user = store::find(&self.database, &request.id).await?;
                let user = user.ok_or_else(not_found)?;
                password::check("password", password, &user.username)?;
                Some(self.hasher.hash(password).await?)
            }
            None => None,
        };
        let transaction = begin(&self.database).await?;
        if request.role == Some(Role::User) {
            let other_admins = store::lock_other_admins(&transaction, &request.id).await?;
            let user = store::find(&transaction, &request.id).await?;
            let user = user.ok_or_else(not_found)?;
            rules::may_lose_admin(user.role.0, other_admins)?;
        }
        let user = store::update(
            &transaction,
            &request.id,
            request.email,
            request.role,
            request.limits.as_ref(),
        )
        .await
        .map_err(conflict_error)?
        .ok_or_else(not_found)?;
        if let Some(hash) = password_hash {
            store::set_password(&transaction, &request.id, &hash, None).await?;
        }
        if request.revoke_keys {
            api_key::revoke_all(&transaction, request.actor.as_ref(), &request.id).await?;
        }
        let entry = Entry {
            actor: request.actor.as_ref(),
            action: Action::PatchUser,
            target: Some(request.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(user)
    }

    /// Deletes a user and its credentials.
    ///
    /// # Errors
    /// NotFound; Conflict for the last administrator.
    pub async fn delete(&self, request: DeleteUserRequest) -> Result<(), Error> {
        let DeleteUserRequest { actor, id } = &request;
        let transaction = begin(&self.database).await?;
        let other_admins = store::lock_other_admins(&transaction, id).await?;
        let user = store::find(&transaction, id).await?.ok_or_else(not_found)?;
        rules::may_lose_admin(user.role.0, other_admins)?;
        // The database deletes logins, keys and tickets with the row.
        if !store::delete(&transaction, id).await? {
            return Err(not_found());
        }
        deletion::store::insert(&transaction, id).await?;
        let entry = Entry {
            actor: actor.as_ref(),
            action: Action::DeleteUser,
            target: Some(id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        self.deleted.notify_one();
        Ok(())
    }

    /// Replaces the password of a user. Revokes every login of the user, the caller's too.
    ///
    /// # Errors
    /// Validation; InvalidCredentials when the current password is wrong.
    pub async fn change_password(&self, request: ChangePasswordRequest) -> Result<(), Error> {
        let user = store::find(&self.database, &request.user).await?;
        let username = user.as_ref().map_or("", |user| user.username.as_str());
        password::check("new_password", &request.new_password, username)?;
        let hash = user.as_ref().map(|user| user.password_hash.as_str());
        let password_matches = self.hasher.verify(&request.current_password, hash).await?;
        let entry = Entry {
            actor: Some(&request.user),
            action: Action::ChangePassword,
            target: Some(request.user.as_str()),
            ok: password_matches,
        };
        let Some(user) = user.filter(|_| password_matches) else {
            audit::record(&self.database, entry).await?;
            return Err(wrong_password());
        };
        let hash = self.hasher.hash(&request.new_password).await?;
        let transaction = begin(&self.database).await?;
        // Of two concurrent changes, the second one was verified against a replaced password.
        let version = Some(user.password_version);
        if !store::set_password(&transaction, &request.user, &hash, version).await? {
            return Err(wrong_password());
        }
        if request.revoke_keys {
            api_key::revoke_all(&transaction, Some(&request.user), &request.user).await?;
        }
        audit::record(&transaction, entry).await?;
        Ok(commit(transaction).await?)
    }
}

fn not_found() -> Error {
    Error::not_found("user")
}

fn wrong_password() -> Error {
    Error::new(
        ErrorCode::InvalidCredentials,
        "current_password: is not the current password",
    )
}

/// The public error of a write that may violate a unique constraint.
fn conflict_error(error: StoreError) -> Error {
    match error.unique_violation() {
        Some(constraint) if constraint.contains("email") => {
            Error::new(ErrorCode::Conflict, "email: is taken by another user")
        }
        Some(_) => Error::new(ErrorCode::Conflict, "username: is taken by another user"),
        None => error.into(),
    }
}
