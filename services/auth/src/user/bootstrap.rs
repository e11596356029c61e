//! The first administrator, when there is no user at all.
//!
//! * I1. Of replicas that start together, one creates it.
//! * I2. A user table that is not empty is never changed, so a later start with other values of
//!   the variables changes no password.
//! * I3. The file with the password is read only if there is no user: it may be removed afterwards.

use agentbox_contracts::identity::Role;
use agentbox_contracts::identity::rpc::Secret;
use agentbox_database::sql::advisory_lock;
use anyhow::Context as _;
use sea_orm::DatabaseConnection;

use super::{rules, store};
use crate::audit::{self, Action, Entry};
use crate::config::Config;
use crate::password::{self, Hasher};
use crate::store::{ADVISORY_LOCK, begin, commit};

/// Creates the first administrator when there is no user.
///
/// # Errors
/// When a configured name, email or password breaks its rule, or Postgres fails.
pub async fn first_admin(
    database: &DatabaseConnection,
    hasher: &Hasher,
    config: &Config,
) -> Result<(), anyhow::Error> {
    if !store::is_empty(database).await? {
        return Ok(());
    }
    let (Some(username), Some((password, setting))) =
        (&config.admin_username, configured_password(config)?)
    else {
        tracing::error!(
            "there is no user and AGENTBOX_ADMIN_USERNAME or AGENTBOX_ADMIN_PASSWORD_FILE is not set: \
             start auth with both, so that an administrator can log in"
        );
        return Ok(());
    };
    rules::username(username).context("AGENTBOX_ADMIN_USERNAME")?;
    rules::email(&config.admin_email).context("AGENTBOX_ADMIN_EMAIL")?;
    password::check("password", &password, username).context(setting)?;
    let new = store::NewUser {
        username: username.clone(),
        email: config.admin_email.clone(),
        role: Role::Admin,
        password_hash: hasher.hash(&password).await?,
    };

    let transaction = begin(database).await?;
    // Replicas that start together take turns.
    advisory_lock(&transaction, ADVISORY_LOCK, "bootstrap").await?;
    if store::is_empty(&transaction).await? {
        let user = store::insert(&transaction, new).await?;
        let entry = Entry {
            actor: None,
            action: Action::BootstrapAdmin,
            target: Some(user.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        tracing::info!(user = %user.id, "first administrator created");
    }
    Ok(commit(transaction).await?)
}

/// The first administrator's password, and the variable that gives it.
fn configured_password(config: &Config) -> Result<Option<(Secret, &'static str)>, anyhow::Error> {
    const FILE: &str = "AGENTBOX_ADMIN_PASSWORD_FILE";
    let Some(path) = &config.admin_password_file else {
        let password = config.admin_password.clone();
        return Ok(password.map(|text| (Secret(text), "AGENTBOX_ADMIN_PASSWORD")));
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{FILE}: cannot read {}", path.display()))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    Ok(Some((Secret(line.to_owned()), FILE)))
}
