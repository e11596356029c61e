//! The first schema: users, their credentials, deletions to notify, and the audit trail.

use sea_orm::ConnectionTrait;
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager, async_trait};

pub struct Migration;

/// The name under which released databases have recorded it; it must not change.
impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20261124_identity"
    }
}

// The database deletes every credential with its user, so that no code path can leave a login or
// a key of a deleted user.
const UP: &str = r"
CREATE TABLE users (
    id               text PRIMARY KEY,
    username         text NOT NULL,
    email            text NOT NULL,
    role             text NOT NULL CHECK (role IN ('user', 'admin')),
    password_hash    text NOT NULL,
    -- Rises with each new password: a login that verified the old one is not recorded.
    password_version bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_username_key ON users (lower(username));
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
CREATE INDEX users_newest ON users (created_at DESC, id DESC);
CREATE INDEX users_admins ON users (id) WHERE role = 'admin';

CREATE TABLE logins (
    id         text PRIMARY KEY,
    user_id    text NOT NULL REFERENCES users ON DELETE CASCADE,
    issued_at  timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX logins_user ON logins (user_id) WHERE revoked_at IS NULL;
CREATE INDEX logins_expiry ON logins (expires_at);

CREATE TABLE signing_keys (
    kid         text PRIMARY KEY,
    -- The Ed25519 seed, AES-256-GCM under a key derived from the deployment's secret.
    sealed_seed bytea NOT NULL,
    public_key  bytea NOT NULL,
    created_at  timestamptz NOT NULL,
    signs_until timestamptz NOT NULL,
    not_after   timestamptz NOT NULL
);

CREATE TABLE api_keys (
    id           text PRIMARY KEY,
    owner        text NOT NULL REFERENCES users ON DELETE CASCADE,
    hash         bytea NOT NULL,
    description  text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_keys_owner ON api_keys (owner, created_at DESC, id DESC) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_revoked ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX api_keys_expiry ON api_keys (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE api_key_permissions (
    key_id         text NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    environment_id text NOT NULL,
    permission     text NOT NULL CHECK (permission IN ('read', 'write', 'admin')),
    position       smallint NOT NULL,
    PRIMARY KEY (key_id, environment_id)
);

CREATE TABLE tickets (
    hash        bytea PRIMARY KEY,
    user_id     text NOT NULL REFERENCES users ON DELETE CASCADE,
    login_id    text REFERENCES logins ON DELETE CASCADE,
    key_id      text REFERENCES api_keys ON DELETE CASCADE,
    environment text NOT NULL,
    action      text NOT NULL CHECK (action IN ('logs', 'attach')),
    expires_at  timestamptz NOT NULL,
    used_at     timestamptz,
    CONSTRAINT tickets_issuer CHECK ((login_id IS NULL) <> (key_id IS NULL))
);
CREATE INDEX tickets_expiry ON tickets (expires_at);
CREATE INDEX tickets_login ON tickets (login_id) WHERE login_id IS NOT NULL;
CREATE INDEX tickets_key ON tickets (key_id) WHERE key_id IS NOT NULL;
CREATE INDEX tickets_user ON tickets (user_id);

-- Deleted users whose environments the scheduler has yet to end.
CREATE TABLE user_deletions (
    user_id         text PRIMARY KEY,
    requested_at    timestamptz NOT NULL DEFAULT now(),
    -- When the scheduler first answered; it is told once more after a while.
    told_at         timestamptz,
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX user_deletions_due ON user_deletions (next_attempt_at);

-- No reference to users: the trail outlives them.
CREATE TABLE audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text,
    action text NOT NULL,
    target text,
    result text NOT NULL CHECK (result IN ('ok', 'refused'))
);
CREATE INDEX audit_at ON audit (at);
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append only';
END $$;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(UP)
            .await
            .map(|_| ())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "there is no way back: restore a backup".to_owned(),
        ))
    }
}
