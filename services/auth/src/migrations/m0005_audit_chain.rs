//! The audit trail as a hash chain: an outbox, the log, and the checkpoints of the retention.

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

/// The entries so far are chained as if they were new: the outbox gets them in their order. The
/// triggers bind every role, the owner of the tables and superusers too. They name the schema of
/// their tables, because a temporary table of the same name would be found first.
const UP: &str = "
-- A replica of the former version may still add entries.
LOCK TABLE audit IN ACCESS EXCLUSIVE MODE;
-- The copy takes as long as a year of entries needs.
SET LOCAL statement_timeout = 0;
CREATE TABLE audit_outbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry  text NOT NULL
);
INSERT INTO audit_outbox (entry)
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'id', 'audit-' || lpad(id::text, 16, '0'), 'at', at, 'user', actor,
        'action', action, 'target', target, 'outcome', result))::text
    FROM audit ORDER BY id;
DROP TABLE audit;

CREATE TABLE audit_log (
    sequence bigint PRIMARY KEY,
    id       text NOT NULL UNIQUE,
    at       timestamptz NOT NULL,
    actor    text,
    action   text NOT NULL,
    target   text,
    -- The JSON that the hash covers. The columns before repeat parts of it, for filters.
    entry    text NOT NULL,
    -- SHA-256 of the hash of the entry before, the sequence (8 bytes, big-endian) and the entry.
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX audit_log_actor ON audit_log (actor, sequence DESC);
CREATE INDEX audit_log_action ON audit_log (action, sequence DESC);
CREATE INDEX audit_log_target ON audit_log (target, sequence DESC) WHERE target IS NOT NULL;
CREATE INDEX audit_log_at ON audit_log (at);

CREATE TABLE audit_checkpoints (
    sequence  bigint PRIMARY KEY,
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    at        timestamptz NOT NULL DEFAULT now(),
    signature bytea NOT NULL
);

CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_checkpoints_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE FUNCTION audit_delete_needs_checkpoint() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_covered boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I.audit_checkpoints WHERE sequence >= $1)',
        TG_TABLE_SCHEMA) INTO is_covered USING OLD.sequence;
    IF is_covered THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit trail is append only: no checkpoint covers entry %', OLD.sequence;
END
$$;
CREATE TRIGGER audit_log_delete BEFORE DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_delete_needs_checkpoint();

CREATE FUNCTION audit_checkpoint_is_of_an_entry() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_of_entry boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I.audit_log WHERE sequence = $1 AND hash = $2)',
        TG_TABLE_SCHEMA) INTO is_of_entry USING NEW.sequence, NEW.hash;
    IF is_of_entry THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the audit trail has no entry % with that hash', NEW.sequence;
END
$$;
CREATE TRIGGER audit_checkpoint_insert BEFORE INSERT ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit_checkpoint_is_of_an_entry();
";
