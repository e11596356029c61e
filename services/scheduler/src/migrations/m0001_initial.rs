//! The first schema: environments, the reconcile queue (`drives`), the outbox, idempotency keys,
//! leases. Later migrations rename some of it.

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

/// `environments` has the requested and the recorded state. `drives`, later `reconcile_queue`, has
/// a row for each environment that still needs work, so that finding work never reads the whole
/// table. Sums and lists are answered from indexes alone.
const UP: &str = "
CREATE TABLE environments (
    id text PRIMARY KEY,
    owner text NOT NULL,
    owner_username text NOT NULL,
    cluster text NOT NULL,
    name text NOT NULL,
    labels jsonb NOT NULL,
    timeout_s bigint NOT NULL,
    -- The whole request as it came; name, labels and timeout_s above are newer.
    request jsonb NOT NULL,
    cpu_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    storage_bytes bigint NOT NULL,
    status text NOT NULL
        CHECK (status IN ('pending', 'running', 'terminating', 'terminated', 'failed')),
    status_reason text,
    status_message text,
    exit_code integer,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    expires_at timestamptz NOT NULL,
    endpoint text NOT NULL,
    namespace text NOT NULL,
    address text,
    generation bigint NOT NULL,
    observed_generation bigint NOT NULL DEFAULT 0,
    start_deadline timestamptz NOT NULL,
    admitted boolean NOT NULL,
    terminating_at timestamptz,
    grace_ms bigint NOT NULL,
    box_removed boolean NOT NULL DEFAULT false,
    CHECK ((status IN ('terminated', 'failed')) = (ended_at IS NOT NULL))
);
CREATE INDEX environments_newest ON environments (created_at DESC, id DESC);
CREATE INDEX environments_owner_newest ON environments (owner, created_at DESC, id DESC);
CREATE INDEX environments_status_newest ON environments (status, created_at DESC, id DESC);
CREATE INDEX environments_owner_status_newest
    ON environments (owner, status, created_at DESC, id DESC);
CREATE INDEX environments_labels ON environments USING gin (labels);
CREATE INDEX environments_expiry ON environments (expires_at)
    WHERE status IN ('pending', 'running');
CREATE INDEX environments_used_by_owner ON environments (owner)
    INCLUDE (cpu_milli, memory_bytes)
    WHERE status IN ('pending', 'running', 'terminating');
CREATE INDEX environments_promised_by_cluster ON environments (cluster)
    INCLUDE (cpu_milli, memory_bytes)
    WHERE admitted AND status IN ('pending', 'running', 'terminating');
CREATE INDEX environments_ended ON environments (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE drives (
    environment_id text PRIMARY KEY REFERENCES environments (id) ON DELETE CASCADE,
    cluster text NOT NULL,
    -- When somebody must look, whatever messages came or were lost.
    due_at timestamptz,
    holder text,
    until timestamptz,
    -- Something happened while it was held: the holder goes round again.
    again boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);
CREATE INDEX drives_due ON drives (due_at);
CREATE INDEX drives_cluster ON drives (cluster);

CREATE TABLE outbox (
    id bigserial PRIMARY KEY,
    environment_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('event', 'command', 'route')),
    body jsonb NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz
);
CREATE INDEX outbox_unpublished ON outbox (environment_id, id) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;

CREATE TABLE idempotency (
    owner text NOT NULL,
    key text NOT NULL,
    body_hash text NOT NULL,
    environment_id text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    until timestamptz NOT NULL
);
";
