-- Takes the tables of the audit trail from the role `auth`, so that it can neither alter nor drop
-- them, nor disable their triggers. Optional; run it once as a superuser, after the first start of
-- auth, in its database:
--
--   psql --dbname agentbox --file seal-audit.sql
--
-- The role keeps what it needs: to read and to add, and to delete what a checkpoint covers, which
-- a trigger checks.
ALTER SCHEMA auth OWNER TO CURRENT_USER;
GRANT USAGE, CREATE ON SCHEMA auth TO auth;
ALTER TABLE auth.audit_log OWNER TO CURRENT_USER;
ALTER TABLE auth.audit_checkpoints OWNER TO CURRENT_USER;
ALTER FUNCTION auth.audit_is_append_only() OWNER TO CURRENT_USER;
ALTER FUNCTION auth.audit_delete_needs_checkpoint() OWNER TO CURRENT_USER;
ALTER FUNCTION auth.audit_checkpoint_is_of_an_entry() OWNER TO CURRENT_USER;
GRANT SELECT, INSERT, DELETE ON auth.audit_log TO auth;
GRANT SELECT, INSERT ON auth.audit_checkpoints TO auth;
