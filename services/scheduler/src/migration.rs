//! The schema `scheduler`, as the list of its changes. A released change is never edited.

use sea_orm_migration::prelude::*;

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Initial), Box::new(Terms), Box::new(Numbers)]
    }
}

struct Initial;

impl MigrationName for Initial {
    fn name(&self) -> &'static str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Initial {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(INITIAL).await?;
        Ok(())
    }
}

struct Terms;

impl MigrationName for Terms {
    fn name(&self) -> &'static str {
        "m0002_terms"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Terms {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(TERMS).await?;
        Ok(())
    }
}

struct Numbers;

impl MigrationName for Numbers {
    fn name(&self) -> &'static str {
        "m0003_numbers"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Numbers {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(NUMBERS).await?;
        Ok(())
    }
}

/// `environments` is what is true. `drives` has a row for each environment that still
/// needs work, so that looking for work never reads the whole table. Sums and lists are
/// answered from indexes alone.
const INITIAL: &str = "
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

/// Labels as an index has them, since no index over `labels` itself answers how many rows
/// match, or which are the newest of them, without reading each. A label `k: v` is two
/// terms, `k` and `k=v`. Like an index the table follows `environments` by itself.
const TERMS: &str = "
CREATE TABLE environment_terms (
    environment_id text NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    term text NOT NULL,
    owner text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (environment_id, term)
);
INSERT INTO environment_terms
    SELECT id, term, owner, status, created_at
    FROM environments, jsonb_each_text(labels), unnest(ARRAY[key, key || '=' || value]) AS term;
CREATE INDEX environment_terms_newest
    ON environment_terms (term, created_at DESC, environment_id DESC) INCLUDE (owner, status);
DROP INDEX environments_labels;

CREATE FUNCTION follow_terms() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.labels = OLD.labels THEN
        UPDATE environment_terms SET status = NEW.status WHERE environment_id = NEW.id;
    ELSE
        DELETE FROM environment_terms WHERE environment_id = NEW.id;
        INSERT INTO environment_terms
            SELECT NEW.id, term, NEW.owner, NEW.status, NEW.created_at
            FROM jsonb_each_text(NEW.labels), unnest(ARRAY[key, key || '=' || value]) AS term;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER terms_of_the_new AFTER INSERT ON environments
    FOR EACH ROW WHEN (NEW.labels <> '{}') EXECUTE FUNCTION follow_terms();
CREATE TRIGGER terms_of_the_changed AFTER UPDATE OF labels, status ON environments
    FOR EACH ROW WHEN (NEW.labels <> OLD.labels
        OR (NEW.status <> OLD.status AND NEW.labels <> '{}'))
    EXECUTE FUNCTION follow_terms();
";

/// Lists are in the order of `created_at` and, where that is equal, of `number`: two numbers
/// are compared far faster than two ids, and what both of two common terms have is found by
/// one walk along both.
const NUMBERS: &str = "
ALTER TABLE environments ADD COLUMN number bigint;
UPDATE environments SET number = by_age.number
    FROM (SELECT id, row_number() OVER (ORDER BY created_at, id) AS number FROM environments)
        AS by_age
    WHERE environments.id = by_age.id;
ALTER TABLE environments
    ALTER COLUMN number SET NOT NULL,
    ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY,
    ADD UNIQUE (number);
SELECT setval(
    pg_get_serial_sequence('environments', 'number'),
    (SELECT coalesce(max(number), 0) + 1 FROM environments), false
);

DROP INDEX environments_newest, environments_owner_newest, environments_status_newest,
    environments_owner_status_newest;
CREATE INDEX environments_newest ON environments (created_at DESC, number DESC);
CREATE INDEX environments_owner_newest ON environments (owner, created_at DESC, number DESC);
CREATE INDEX environments_status_newest ON environments (status, created_at DESC, number DESC);
CREATE INDEX environments_owner_status_newest
    ON environments (owner, status, created_at DESC, number DESC);

DROP TABLE environment_terms;
CREATE TABLE environment_terms (
    number bigint NOT NULL REFERENCES environments (number) ON DELETE CASCADE,
    term text NOT NULL,
    owner text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (number, term)
);
INSERT INTO environment_terms
    SELECT number, term, owner, status, created_at
    FROM environments, jsonb_each_text(labels), unnest(ARRAY[key, key || '=' || value]) AS term;
CREATE INDEX environment_terms_newest
    ON environment_terms (term, created_at DESC, number DESC) INCLUDE (owner, status);

CREATE OR REPLACE FUNCTION follow_terms() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.labels = OLD.labels THEN
        UPDATE environment_terms SET status = NEW.status WHERE number = NEW.number;
    ELSE
        DELETE FROM environment_terms WHERE number = NEW.number;
        INSERT INTO environment_terms
            SELECT NEW.number, term, NEW.owner, NEW.status, NEW.created_at
            FROM jsonb_each_text(NEW.labels), unnest(ARRAY[key, key || '=' || value]) AS term;
    END IF;
    RETURN NULL;
END
$$;
";
