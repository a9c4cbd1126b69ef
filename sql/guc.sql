--
-- Settings: names, units, ranges, and who may set them when.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS tpc_amqp;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
SELECT name, vartype, unit, context, min_val, max_val, boot_val, enumvals
FROM pg_settings WHERE name LIKE 'tpc\_amqp.%'
	AND name NOT LIKE '%failpoint%' ORDER BY name COLLATE "C";
-- each says what it is
SELECT name FROM pg_settings WHERE name LIKE 'tpc\_amqp.%' AND short_desc = '';

--
-- Of a session
--
SET tpc_amqp.prepare_timeout = '2s';
SHOW tpc_amqp.prepare_timeout;
SET tpc_amqp.prepare_timeout = 1;
SHOW tpc_amqp.prepare_timeout;
SET tpc_amqp.prepare_timeout = '1.5 min';
SHOW tpc_amqp.prepare_timeout;
-- (the words of these errors are the server's, and not those of each version)
\set VERBOSITY sqlstate
SET tpc_amqp.prepare_timeout = 0;
SET tpc_amqp.prepare_timeout = -1;
SET tpc_amqp.prepare_timeout = '100d';
SET tpc_amqp.prepare_timeout = '5 parsecs';
SET tpc_amqp.prepare_timeout = 'MB';
\set VERBOSITY default
SHOW tpc_amqp.prepare_timeout;
RESET tpc_amqp.prepare_timeout;
SHOW tpc_amqp.prepare_timeout;
SET tpc_amqp.apply_timeout = 0;
SHOW tpc_amqp.apply_timeout;
\set VERBOSITY sqlstate
SET tpc_amqp.apply_timeout = -1;
\set VERBOSITY default
SET tpc_amqp.commit_wait = decided;
SHOW tpc_amqp.commit_wait;
SET tpc_amqp.commit_wait = 'Applied';
SHOW tpc_amqp.commit_wait;
SET tpc_amqp.commit_wait = off;
-- of a transaction, a function, a role and a database
BEGIN;
SET LOCAL tpc_amqp.commit_wait = decided;
SHOW tpc_amqp.commit_wait;
COMMIT;
SHOW tpc_amqp.commit_wait;
CREATE FUNCTION pg_temp.shown() RETURNS text LANGUAGE sql
	SET tpc_amqp.prepare_timeout = '3s' AS
	$$SELECT current_setting('tpc_amqp.prepare_timeout')$$;
SELECT pg_temp.shown(), current_setting('tpc_amqp.prepare_timeout');
CREATE ROLE regress_tpc_guc;
ALTER ROLE regress_tpc_guc SET tpc_amqp.commit_wait = decided;
ALTER ROLE regress_tpc_guc SET tpc_amqp.commit_wait = sometimes;
-- by anybody
SET ROLE regress_tpc_guc;
SET tpc_amqp.prepare_timeout = '4s';
SHOW tpc_amqp.prepare_timeout;
RESET ROLE;
DROP ROLE regress_tpc_guc;

--
-- Of the server: with a reload or a restart
--
SET tpc_amqp.lock_timeout = '1s';
\echo :LAST_ERROR_SQLSTATE
SET tpc_amqp.prepare_workers = 3;
SET tpc_amqp.resolve_workers = 3;
SET tpc_amqp.resolve_interval = '1s';
SET tpc_amqp.forget_after = '1s';
SET tpc_amqp.max_payload = '1MB';
SET tpc_amqp.failover_presumes_abort = on;
SET tpc_amqp.max_transactions = 100;
SET tpc_amqp.max_nodes = 100;
SET tpc_amqp.max_memory = '1GB';
-- out of range
\set VERBOSITY sqlstate
ALTER SYSTEM SET tpc_amqp.prepare_workers = 0;
ALTER SYSTEM SET tpc_amqp.prepare_workers = 65;
ALTER SYSTEM SET tpc_amqp.resolve_workers = 17;
ALTER SYSTEM SET tpc_amqp.resolve_interval = '9ms';
ALTER SYSTEM SET tpc_amqp.max_payload = '1GB';
ALTER SYSTEM SET tpc_amqp.max_transactions = 9;
ALTER SYSTEM SET tpc_amqp.max_nodes = 0;
ALTER SYSTEM SET tpc_amqp.max_memory = '1MB';
ALTER SYSTEM SET tpc_amqp.failover_presumes_abort = maybe;
\set VERBOSITY default

--
-- Names that are none
--
SET tpc_amqp.commit_wiat = decided;
\echo :LAST_ERROR_SQLSTATE
SHOW tpc_amqp.commit_wiat;
ALTER DATABASE :"DBNAME" SET tpc_amqp.nothing = 1;
