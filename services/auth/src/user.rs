//! Users: who may log in, and as what.
//!
//! Owns table `users`. Never knows what a user runs: the scheduler is told when one goes.
//!
//! * I1. There is always an administrator once there was one.
//! * I2. A new password ends every login of its user, in the same transaction; API keys stay.
//! * I3. Deleting a user ends all that proves it in one transaction; its environments
//!   follow, however often the scheduler must be asked ([`deletion`]).

pub mod bootstrap;
pub mod deletion;
pub mod rules;
pub mod store;

use std::sync::Arc;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    ChangePasswordRequest, CreateUserRequest, ListUsersReply, PageRequest, PatchUserRequest,
};
use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use sea_orm::{DatabaseConnection, DatabaseTransaction};
use tokio::sync::Notify;

use crate::audit::{self, Action, Entry};
use crate::error::StoreError;
use crate::login;
use crate::password::{self, Hasher};

pub struct Users {
    database: DatabaseConnection,
    hasher: Arc<Hasher>,
    /// Wakes the worker that tells the scheduler of deletions.
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

    pub async fn get(&self, id: &UserId) -> Result<User, Error> {
        store::find(&self.database, id).await?.ok_or_else(not_found)
    }

    pub async fn list(&self, page: PageRequest) -> Result<ListUsersReply, Error> {
        let (users, total) = store::page(&self.database, page.limit, page.offset).await?;
        Ok(ListUsersReply { users, total })
    }

    /// # Errors
    /// Validation; Conflict when the username or the email is taken.
    pub async fn create(&self, request: CreateUserRequest) -> Result<User, Error> {
        rules::username(&request.username)?;
        rules::email(&request.email)?;
        password::rules::check("password", &request.password)?;
        let password_hash = self.hasher.hash(&request.password).await?;
        let new = store::NewUser {
            username: request.username,
            email: request.email,
            role: request.role,
            password_hash,
        };
        let transaction = begin(&self.database).await?;
        let user = store::insert(&transaction, &new).await.map_err(taken)?;
        let entry = Entry {
            actor: None,
            action: Action::CreateUser,
            target: Some(user.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(user)
    }

    /// # Errors
    /// Validation; NotFound; Conflict when the email is taken or the last administrator
    /// would be one no more.
    pub async fn patch(&self, request: PatchUserRequest) -> Result<User, Error> {
        if let Some(email) = &request.email {
            rules::email(email)?;
        }
        let password_hash = match &request.password {
            Some(password) => {
                password::rules::check("password", password)?;
                Some(self.hasher.hash(password).await?)
            }
            None => None,
        };
        let transaction = begin(&self.database).await?;
        if request.role == Some(Role::User) {
            let others = store::lock_other_admins(&transaction, &request.id).await?;
            let user = store::find(&transaction, &request.id)
                .await?
                .ok_or_else(not_found)?;
            rules::may_lose_admin(user.role, others)?;
        }
        let user = store::update(&transaction, &request.id, request.email, request.role)
            .await
            .map_err(taken)?
            .ok_or_else(not_found)?;
        if let Some(hash) = password_hash {
            store::set_password(&transaction, &request.id, &hash, None).await?;
            login::store::revoke_all(&transaction, &request.id).await?;
        }
        let entry = Entry {
            actor: None,
            action: Action::PatchUser,
            target: Some(request.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(user)
    }

    /// # Errors
    /// NotFound; Conflict for the last administrator.
    pub async fn delete(&self, id: &UserId) -> Result<(), Error> {
        let transaction = begin(&self.database).await?;
        let others = store::lock_other_admins(&transaction, id).await?;
        let user = store::find(&transaction, id).await?.ok_or_else(not_found)?;
        rules::may_lose_admin(user.role, others)?;
        // Logins, keys and tickets go with the row.
        if !store::delete(&transaction, id).await? {
            return Err(not_found());
        }
        deletion::store::insert(&transaction, id).await?;
        let entry = Entry {
            actor: None,
            action: Action::DeleteUser,
            target: Some(id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        self.deleted.notify_one();
        Ok(())
    }

    /// Every login of the user dies, the caller's too.
    ///
    /// # Errors
    /// Validation; InvalidCredentials when the current password is another.
    pub async fn change_password(&self, request: ChangePasswordRequest) -> Result<(), Error> {
        password::rules::check("new_password", &request.new_password)?;
        let account = store::find_account(&self.database, &request.user).await?;
        let hash = account
            .as_ref()
            .map(|account| account.password_hash.as_str());
        let is_right = self.hasher.verify(&request.current_password, hash).await?;
        let entry = Entry {
            actor: Some(&request.user),
            action: Action::ChangePassword,
            target: Some(request.user.as_str()),
            ok: is_right,
        };
        let Some(account) = account.filter(|_| is_right) else {
            audit::record(&self.database, entry).await?;
            return Err(wrong_password());
        };
        let hash = self.hasher.hash(&request.new_password).await?;
        let transaction = begin(&self.database).await?;
        // Two changes at once: the second one's current password is no longer current.
        let version = Some(account.password_version);
        if !store::set_password(&transaction, &request.user, &hash, version).await? {
            return Err(wrong_password());
        }
        login::store::revoke_all(&transaction, &request.user).await?;
        audit::record(&transaction, entry).await?;
        commit(transaction).await
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

fn taken(error: StoreError) -> Error {
    match error.unique_violation() {
        Some(constraint) if constraint.contains("email") => {
            Error::new(ErrorCode::Conflict, "email: is taken")
        }
        Some(_) => Error::new(ErrorCode::Conflict, "username: is taken"),
        None => error.into(),
    }
}

async fn begin(database: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
    agentbox_database::begin(database)
        .await
        .map_err(|error| StoreError::from(error).into())
}

async fn commit(transaction: DatabaseTransaction) -> Result<(), Error> {
    transaction
        .commit()
        .await
        .map_err(|error| StoreError::from(error).into())
}
