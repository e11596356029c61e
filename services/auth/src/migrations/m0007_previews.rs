//! Previews of ports.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await?;
        Ok(())
    }
}

/// A preview ends with its creator's credential, so it is deleted with it too.
const UP: &str = "
CREATE TABLE previews (
    id          text PRIMARY KEY,
    environment text NOT NULL,
    port        integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    user_id     text NOT NULL REFERENCES users ON DELETE CASCADE,
    login_id    text REFERENCES logins ON DELETE CASCADE,
    key_id      text REFERENCES api_keys ON DELETE CASCADE,
    token_hash  bytea,
    link_hash   bytea,
    cookie_hash bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    CONSTRAINT previews_creator CHECK ((login_id IS NULL) <> (key_id IS NULL))
);
CREATE INDEX previews_environment ON previews (environment);
CREATE INDEX previews_expiry ON previews (expires_at);
CREATE INDEX previews_login ON previews (login_id) WHERE login_id IS NOT NULL;
CREATE INDEX previews_key ON previews (key_id) WHERE key_id IS NOT NULL;
CREATE INDEX previews_user ON previews (user_id);
";
