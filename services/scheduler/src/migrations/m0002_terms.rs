//! The table `environment_terms`, which indexes labels.

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

/// A table with a row for each term of each environment; a label `k: v` has two terms, `k` and
/// `k=v`. With an index over `labels` itself, Postgres would read every matching row to count them
/// or to find the newest. Triggers keep the table equal to `environments`.
const UP: &str = "
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
