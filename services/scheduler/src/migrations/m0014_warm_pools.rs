//! Warm pools, their boxes and the requests for them; and the claim of an environment.

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

/// A box keeps the definition that it was started with, and outlives its pool until it is removed:
/// `warm_boxes` refers to no row of `pools`. Requests are rows of their own, so that creates of one
/// pool do not wait for a counter.
const UP: &str = "
CREATE TABLE pools (
    name text PRIMARY KEY,
    -- The complete form of the image reference, to find the pool by.
    image text NOT NULL,
    spec jsonb NOT NULL,
    source text NOT NULL CHECK (source IN ('api', 'configuration')),
    -- Changes when the boxes of the pool change.
    revision bigint NOT NULL,
    target bigint NOT NULL,
    failures bigint NOT NULL DEFAULT 0,
    retry_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX pools_image ON pools (image);

CREATE TABLE warm_boxes (
    id text PRIMARY KEY,
    pool text NOT NULL,
    revision bigint NOT NULL,
    cluster text NOT NULL,
    spec jsonb NOT NULL,
    cpu_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    storage_bytes bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('starting', 'ready', 'draining')),
    address text,
    image_digest text,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- When the cluster last reported that it runs. NULL: it must be observed first.
    seen_at timestamptz,
    due_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX warm_boxes_due ON warm_boxes (cluster, due_at);
CREATE INDEX warm_boxes_pool ON warm_boxes (pool, created_at);

CREATE TABLE pool_requests (
    pool text NOT NULL,
    outcome text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pool_requests_pool ON pool_requests (pool, requested_at);
CREATE TABLE pool_totals (
    pool text NOT NULL,
    outcome text NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (pool, outcome)
);

ALTER TABLE environments
    ADD COLUMN pool jsonb,
    ADD COLUMN claim text CHECK (claim IN ('pending', 'unrecorded')),
    ADD COLUMN claim_address text;
";
