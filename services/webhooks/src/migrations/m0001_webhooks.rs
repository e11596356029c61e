//! Webhooks, their deliveries, and the leases of the replicas.

use agentbox_database::lease::CREATE_LEASES;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        connection.execute_unprepared(CREATE_LEASES).await?;
        connection.execute_unprepared(UP).await?;
        Ok(())
    }
}

/// `kinds` is a list separated by commas; empty: all. `message` is the id of the event's message, of which
/// each webhook has one delivery; `event` is its number in the stream, the `id` of `GET /events`.
/// `next_attempt_at` is also the end of the lease of a running attempt.
const UP: &str = "
CREATE TABLE webhooks (
    id               text PRIMARY KEY,
    owner            text NOT NULL,
    url              text NOT NULL,
    kinds            text NOT NULL,
    description      text,
    sealed_key       bytea NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    owner_checked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhooks_owner ON webhooks (owner, created_at DESC);
CREATE INDEX webhooks_owner_checked ON webhooks (owner_checked_at);
CREATE TABLE deliveries (
    id              text PRIMARY KEY,
    webhook         text NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    message         text NOT NULL,
    event           bigint NOT NULL,
    environment     text NOT NULL,
    kind            text NOT NULL,
    body            text NOT NULL,
    state           text NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts        integer NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    response_status integer,
    error           text,
    CONSTRAINT deliveries_once UNIQUE (webhook, message)
);
CREATE INDEX deliveries_due ON deliveries (webhook, next_attempt_at) WHERE state = 'pending';
CREATE INDEX deliveries_history ON deliveries (webhook, created_at DESC, id DESC);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE ended_at IS NOT NULL;
";
