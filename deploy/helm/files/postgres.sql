-- Creates the database, and a role and a schema for each service that stores data. The superuser runs
-- it with psql, any number of times. psql's variables auth_password, scheduler_password and
-- webhooks_password contain the passwords:
--   psql -v auth_password=… -v scheduler_password=… -v webhooks_password=… -f postgres.sql
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SELECT 'CREATE DATABASE agentbox' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'agentbox') \gexec
\connect agentbox
SET client_min_messages = warning;
REVOKE ALL ON DATABASE agentbox FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

SELECT 'CREATE ROLE auth LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'auth') \gexec
ALTER ROLE auth LOGIN PASSWORD :'auth_password';
-- CREATE, because migrations begin with `CREATE SCHEMA IF NOT EXISTS`.
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE agentbox TO auth;
CREATE SCHEMA IF NOT EXISTS auth AUTHORIZATION auth;
ALTER ROLE auth IN DATABASE agentbox SET search_path = auth;

SELECT 'CREATE ROLE scheduler LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'scheduler') \gexec
ALTER ROLE scheduler LOGIN PASSWORD :'scheduler_password';
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE agentbox TO scheduler;
CREATE SCHEMA IF NOT EXISTS scheduler AUTHORIZATION scheduler;
ALTER ROLE scheduler IN DATABASE agentbox SET search_path = scheduler;

SELECT 'CREATE ROLE webhooks LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'webhooks') \gexec
ALTER ROLE webhooks LOGIN PASSWORD :'webhooks_password';
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE agentbox TO webhooks;
CREATE SCHEMA IF NOT EXISTS webhooks AUTHORIZATION webhooks;
ALTER ROLE webhooks IN DATABASE agentbox SET search_path = webhooks;
