//! The column `number`: the order of creation, for lists.

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

/// Lists are in the order of `created_at`, and of `number` where the times are equal. Postgres
/// compares two numbers far faster than two ids, and can merge the rows of two common terms.
const UP: &str = "
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
