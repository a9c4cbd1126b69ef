--
-- Dropping what a node consists of, and the database itself.
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
\set ECHO none
\set node drop
\o /dev/null
\i :make_node
\o
\set ECHO all
\set SHOW_CONTEXT never
CREATE SCHEMA regress_drop;
CREATE PROCEDURE regress_drop.wait_until_connected() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN EXISTS (SELECT FROM tpc_amqp.node
						  WHERE state = 'connected' AND incarnation > 0
						  AND cardinality(prepare_pids) = 2
						  AND cardinality(resolve_pids) = 1);
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
END $$;
CREATE FUNCTION regress_drop.nothing(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT tpc_amqp.register_handler('nothing', 'regress_drop.nothing(jsonb)');
CALL regress_drop.wait_until_connected();

--
-- DROP EXTENSION
--
-- not what is part of it, and not with servers
DROP TABLE tpc_amqp.decision;
DROP EXTENSION tpc_amqp;
\echo :LAST_ERROR_SQLSTATE
-- the node is as before
CALL regress_drop.wait_until_connected();
SELECT tpc_amqp.call('drop', 'nothing');
-- nor is anything lost in what rolls back
BEGIN;
SET LOCAL client_min_messages = warning;
DROP EXTENSION tpc_amqp CASCADE;
SELECT count(*) FROM pg_extension WHERE extname = 'tpc_amqp';
ROLLBACK;
CALL regress_drop.wait_until_connected();
SELECT name, state FROM tpc_amqp.node;
SELECT tpc_amqp.call('drop', 'nothing');
BEGIN;
SET LOCAL client_min_messages = warning;
SAVEPOINT a;
DROP EXTENSION tpc_amqp CASCADE;
ROLLBACK TO a;
COMMIT;
CALL regress_drop.wait_until_connected();
SELECT tpc_amqp.call('drop', 'nothing');
-- it goes
SET client_min_messages = warning;
DROP EXTENSION tpc_amqp CASCADE;
RESET client_min_messages;
SELECT count(*) FROM pg_extension WHERE extname = 'tpc_amqp';
SELECT count(*) FROM pg_foreign_data_wrapper WHERE fdwname = 'tpc_amqp';
SELECT count(*) FROM pg_shseclabel
WHERE objoid = (SELECT oid FROM pg_database WHERE datname = current_database());
SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database();
-- others notice
\c regress_blog
\set VERBOSITY terse
SET tpc_amqp.prepare_timeout = '200ms';
SELECT tpc_amqp.call('drop', 'nothing');
\echo :LAST_ERROR_SQLSTATE
RESET tpc_amqp.prepare_timeout;
\set VERBOSITY default

-- and comes again
\c regress_drop
CREATE EXTENSION tpc_amqp;
SELECT count(*) FROM tpc_amqp.node;
SELECT count(*) FROM tpc_amqp.handlers;
SELECT tpc_amqp.call('blog', 'nothing');
CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port');
CREATE USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('rabbit', 'drop');
SELECT tpc_amqp.register_handler('nothing', 'regress_drop.nothing(jsonb)');
CALL regress_drop.wait_until_connected();
\c regress_blog
SELECT tpc_amqp.call('drop', 'nothing');
\c regress_drop

--
-- What a node uses
--
DROP FUNCTION regress_drop.nothing(jsonb);
SELECT tpc_amqp.call('drop', 'nothing');
-- its server, too, is looked up when it is needed: at the next connect
DROP SERVER rabbit CASCADE;
SELECT tpc_amqp.detach();
SELECT tpc_amqp.attach('rabbit', 'drop');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port');
CREATE USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('rabbit', 'drop');
CALL regress_drop.wait_until_connected();

--
-- Databases: workers are no reason not to drop, rename, move or copy one
--
\c regress_blog
ALTER DATABASE regress_drop RENAME TO regress_renamed;
\c regress_renamed
CALL regress_drop.wait_until_connected();
SELECT name, state FROM tpc_amqp.node;
SELECT DISTINCT datname FROM pg_stat_activity a, tpc_amqp.node n
WHERE a.pid = ANY (n.messenger_pid || n.prepare_pids || n.resolve_pids);
\c regress_blog
ALTER DATABASE regress_renamed RENAME TO regress_drop;
ALTER DATABASE regress_drop SET TABLESPACE pg_default;
-- a copy is not attached, and may be, by another name
CREATE DATABASE regress_copy TEMPLATE regress_drop;
\c regress_copy
SELECT count(*) FROM tpc_amqp.node;
SELECT tpc_amqp.attach('rabbit', 'drop');
SELECT tpc_amqp.attach('rabbit', 'copy');
CALL regress_drop.wait_until_connected();
SELECT name, state FROM tpc_amqp.node;

-- not the database one is in, nor that of others: the workers stay
DROP DATABASE regress_copy;
CALL regress_drop.wait_until_connected();
\c regress_blog
CREATE ROLE regress_tpc_drop CREATEDB;
SET ROLE regress_tpc_drop;
DROP DATABASE regress_drop;
ALTER DATABASE regress_drop RENAME TO regress_renamed;
CREATE DATABASE regress_renamed TEMPLATE regress_drop;
RESET ROLE;
DROP ROLE regress_tpc_drop;
\c regress_drop
CALL regress_drop.wait_until_connected();
SELECT name, state FROM tpc_amqp.node;
BEGIN;
DROP DATABASE regress_copy;
ROLLBACK;
-- each goes, and its name with it
\c regress_blog
DROP DATABASE regress_drop;
DROP DATABASE regress_copy WITH (FORCE);
SELECT count(*) FROM pg_shseclabel s
WHERE s.label IN ('drop', 'copy') AND s.provider = 'tpc_amqp';
SELECT count(*) FROM pg_stat_activity
WHERE backend_type LIKE 'tpc_amqp %' AND datname IN ('regress_drop', 'regress_copy');
CREATE DATABASE regress_copy;
\c regress_copy
CREATE EXTENSION tpc_amqp;
CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port');
CREATE USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('rabbit', 'drop');
SELECT name FROM tpc_amqp.node;
\c regress_blog
DROP DATABASE regress_copy;
