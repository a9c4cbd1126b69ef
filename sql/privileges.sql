--
-- Privileges: who may call, run, attach, operate and see.
--
\set ECHO none
\getenv srcdir PG_ABS_SRCDIR
\set nodes :srcdir '/sql/include/nodes.sql'
\o /dev/null
\i :nodes
\o
\set ECHO all
\pset format unaligned
\pset tuples_only on
-- contexts tell the transaction's id
\set SHOW_CONTEXT never

CREATE ROLE regress_tpc_app;
CREATE ROLE regress_tpc_plain;
CREATE ROLE regress_tpc_worker;
CREATE ROLE regress_tpc_admin;
CREATE ROLE regress_tpc_monitor IN ROLE pg_monitor;

\c regress_reviews
CREATE SCHEMA regress_privileges;
GRANT USAGE ON SCHEMA regress_privileges TO regress_tpc_worker;
CREATE TABLE regress_privileges.entry (value text NOT NULL, written_by text NOT NULL);
CREATE TABLE regress_privileges.secret (value text NOT NULL);
GRANT INSERT ON regress_privileges.entry TO regress_tpc_worker;
CREATE FUNCTION regress_privileges.add(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_privileges.entry VALUES ($1 #>> '{}', current_user)$$;
CREATE FUNCTION regress_privileges.steal(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_privileges.secret VALUES ('stolen')$$;
CREATE FUNCTION regress_privileges.become(jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN EXECUTE $1 #>> '{}'; END$$;
SELECT tpc_amqp.register_handler('add as superuser', 'regress_privileges.add(jsonb)');
SELECT tpc_amqp.register_handler('add', 'regress_privileges.add(jsonb)',
	run_as => 'regress_tpc_worker');
SELECT tpc_amqp.register_handler('steal', 'regress_privileges.steal(jsonb)',
	run_as => 'regress_tpc_worker');
SELECT tpc_amqp.register_handler('become', 'regress_privileges.become(jsonb)',
	run_as => 'regress_tpc_worker');
SELECT tpc_amqp.register_handler('for audit', 'regress_privileges.add(jsonb)',
	run_as => 'regress_tpc_worker', callers => '{audit}');
SELECT tpc_amqp.register_handler('for nobody', 'regress_privileges.add(jsonb)',
	run_as => 'regress_tpc_worker', callers => '{}');
SELECT tpc_amqp.register_handler('for both', 'regress_privileges.add(jsonb)',
	run_as => 'regress_tpc_worker', callers => '{audit,blog}');
\c regress_blog
CREATE SCHEMA regress_privileges;
CREATE TABLE regress_privileges.entry (value text NOT NULL);
GRANT ALL ON SCHEMA regress_privileges TO regress_tpc_app, regress_tpc_plain;
GRANT ALL ON regress_privileges.entry TO regress_tpc_app;

--
-- Calling: USAGE on the schema and EXECUTE on call, and no more
--
SET ROLE regress_tpc_app;
SELECT tpc_amqp.call('reviews', 'add', '"no usage"');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_app, regress_tpc_plain;
SET ROLE regress_tpc_app;
SELECT tpc_amqp.call('reviews', 'add', '"no execute"');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT EXECUTE ON FUNCTION tpc_amqp.call(text, text, jsonb, text) TO regress_tpc_app;
SET ROLE regress_tpc_app;
BEGIN;
INSERT INTO regress_privileges.entry VALUES ('granted');
SELECT tpc_amqp.call('reviews', 'add', '"granted"');
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT;
SELECT tpc_amqp.outcome(:'gtid');
SELECT * FROM regress_privileges.entry;
-- a role put on or off within the transaction makes no difference
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '"as another role"');
RESET ROLE;
SET ROLE regress_tpc_plain;
COMMIT;
RESET ROLE;
-- a security definer function lends it
CREATE FUNCTION regress_privileges.lend(text) RETURNS void
LANGUAGE sql SECURITY DEFINER AS
	$$SELECT tpc_amqp.call('reviews', 'add', to_jsonb($1))$$;
SET ROLE regress_tpc_plain;
SELECT regress_privileges.lend('lent');

--
-- What a plain role may not, with USAGE on the schema
--
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN format('%s: %s', SQLSTATE, SQLERRM);
END $$;
SELECT pg_temp.try(s) FROM unnest(ARRAY[
	'SELECT tpc_amqp.attach(''rabbit'')',
	'SELECT tpc_amqp.detach()',
	'SELECT tpc_amqp.register_handler(''a'', ''regress_privileges.lend(text)'')',
	'SELECT tpc_amqp.unregister_handler(''a'')',
	'SELECT tpc_amqp.call(''reviews'', ''add'')',
	'SELECT tpc_amqp.resolve()',
	'SELECT tpc_amqp.forget(''blog/00000000-0000-8000-8000-000000000001'')',
	'SELECT tpc_amqp.stat_reset()',
	'SECURITY LABEL FOR tpc_amqp ON DATABASE regress_blog IS NULL',
	'DROP EXTENSION tpc_amqp CASCADE']) s;
SELECT pg_temp.try('TABLE tpc_amqp.' || relname)
FROM pg_class WHERE relnamespace = 'tpc_amqp'::regnamespace AND relkind IN ('r', 'v')
ORDER BY relkind, relname;
-- nor write what it can read
RESET ROLE;
SET ROLE regress_tpc_app;
SELECT bool_and(NOT has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'))
FROM pg_class WHERE relnamespace = 'tpc_amqp'::regnamespace AND relkind IN ('r', 'v');
RESET ROLE;
SELECT name, state FROM tpc_amqp.node;

--
-- Seeing: pg_monitor sees the views, and does nothing.
--
SET ROLE regress_tpc_monitor;
SELECT name, state FROM tpc_amqp.node;
SELECT count(*) FROM tpc_amqp.stat;
SELECT count(*) FROM tpc_amqp.transactions WHERE gtid = :'gtid';
SELECT count(*) FROM tpc_amqp.branches;
SELECT count(*) FROM tpc_amqp.incidents;
SELECT count(*) FROM tpc_amqp.handlers;
SELECT tpc_amqp.stat_reset();
SELECT tpc_amqp.call('reviews', 'add');
SELECT count(*) FROM tpc_amqp.decision;
RESET ROLE;

--
-- Running: as the role the handler was registered with
--
SELECT tpc_amqp.call('reviews', 'add as superuser', '"superuser"');
SELECT tpc_amqp.call('reviews', 'steal');
\echo :LAST_ERROR_SQLSTATE
-- there is no way back to the superuser the worker is
SELECT tpc_amqp.call('reviews', 'become', '"RESET ROLE"');
SELECT tpc_amqp.call('reviews', 'become', '"SET ROLE postgres"');
SELECT tpc_amqp.call('reviews', 'become', '"SET SESSION AUTHORIZATION DEFAULT"');
SELECT tpc_amqp.call('reviews', 'become', '"TRUNCATE tpc_amqp.branch"');
\echo :LAST_ERROR_SQLSTATE
-- nor for a handler of another role after it
BEGIN;
SELECT tpc_amqp.call('reviews', 'add as superuser', '"superuser, again"');
SELECT tpc_amqp.call('reviews', 'add', '"and worker"');
SELECT tpc_amqp.call('reviews', 'add as superuser', '"and back"');
COMMIT;
BEGIN;
SELECT tpc_amqp.call('reviews', 'add as superuser', '"refused"');
SELECT tpc_amqp.call('reviews', 'steal');
COMMIT;
-- what the role has lost since it was registered
\c regress_reviews
REVOKE EXECUTE ON FUNCTION regress_privileges.add(jsonb) FROM PUBLIC;
\c regress_blog
SELECT tpc_amqp.call('reviews', 'add', '"refused"');
\echo :LAST_ERROR_SQLSTATE
\c regress_reviews
GRANT EXECUTE ON FUNCTION regress_privileges.add(jsonb) TO PUBLIC;

--
-- Callers
--
\c regress_blog
SELECT tpc_amqp.call('reviews', 'for audit', '"refused"');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'for nobody', '"refused"');
SELECT tpc_amqp.call('reviews', 'for both', '"blog, for both"');
\c regress_audit
SELECT tpc_amqp.call('reviews', 'for audit', '"audit, for audit"');
SELECT tpc_amqp.call('reviews', 'for both', '"audit, for both"');
\c regress_reviews
SELECT written_by, value FROM regress_privileges.entry ORDER BY written_by, value COLLATE "C";
SELECT * FROM regress_privileges.secret;

--
-- Attaching: by a role that is given the functions, the server and a database
--
\set ECHO none
\set node privileges
\o /dev/null
\i :make_node
SELECT tpc_amqp.detach();
\o
\set ECHO all
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_admin;
GRANT EXECUTE ON FUNCTION tpc_amqp.attach(name, text), tpc_amqp.detach(),
	tpc_amqp.resolve(text), tpc_amqp.forget(text), tpc_amqp.stat_reset()
	TO regress_tpc_admin;
SET ROLE regress_tpc_admin;
SELECT tpc_amqp.attach('rabbit', 'privileges');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER rabbit TO regress_tpc_admin;
SET ROLE regress_tpc_admin;
SELECT tpc_amqp.attach('rabbit', 'privileges');
SELECT tpc_amqp.resolve();
SELECT tpc_amqp.forget('privileges/00000000-0000-8000-8000-000000000001');
SELECT tpc_amqp.stat_reset();
SELECT tpc_amqp.detach();
RESET ROLE;

\c regress_reviews
SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_privileges CASCADE;
DROP OWNED BY regress_tpc_worker;
DROP DATABASE regress_privileges;
\c regress_blog
SET client_min_messages = warning;
DROP SCHEMA regress_privileges CASCADE;
DROP OWNED BY regress_tpc_app, regress_tpc_plain;
DROP ROLE regress_tpc_app, regress_tpc_plain, regress_tpc_worker,
	regress_tpc_admin, regress_tpc_monitor;
