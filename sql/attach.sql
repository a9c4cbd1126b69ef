--
-- attach() and detach(): what they do, refuse, and take back.
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
\set node attach
\o /dev/null
\i :make_node
SELECT tpc_amqp.detach();
\o
\set ECHO all
-- this database, once the workers of the last attach have left
CREATE PROCEDURE wait_until_free() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM tpc_amqp.node);
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
END $$;
CREATE PROCEDURE wait_until_connected() LANGUAGE plpgsql AS $$
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
CALL wait_until_free();

--
-- Nothing works before
--
SELECT count(*) FROM tpc_amqp.node;
SELECT tpc_amqp.call('blog', 'add');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.outcome('attach/018f0000-0000-8000-8000-000000000001');
SELECT tpc_amqp.resolve();
SELECT tpc_amqp.detach();
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.gtid() IS NULL;

--
-- Attached: at once in the transaction, in force with its COMMIT
--
BEGIN;
SELECT tpc_amqp.attach('rabbit', 'attach');
SELECT name, state FROM tpc_amqp.node;
SELECT tpc_amqp.call('blog', 'add');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
CALL wait_until_free();
SELECT count(*) FROM tpc_amqp.local_node;
SELECT count(*) FROM pg_shseclabel WHERE objoid = (SELECT oid FROM pg_database WHERE datname = current_database());
SELECT tpc_amqp.attach('rabbit', 'attach');
CALL wait_until_connected();
SELECT name, state, blocked, last_error FROM tpc_amqp.node;
-- the default is the name of the database, and what can be seen is the same
SELECT tpc_amqp.detach();
SELECT tpc_amqp.attach('rabbit');
CALL wait_until_connected();
SELECT name, state FROM tpc_amqp.node;
SELECT label FROM pg_shseclabel WHERE objoid = (SELECT oid FROM pg_database WHERE datname = current_database());

--
-- Twice
--
SELECT tpc_amqp.attach('rabbit');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.attach('rabbit', 'other');
BEGIN;
SELECT tpc_amqp.detach();
SELECT tpc_amqp.attach('rabbit');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- that was nothing: it is as before
SELECT name, state FROM tpc_amqp.node;
SELECT tpc_amqp.detach();
BEGIN;
SELECT tpc_amqp.attach('rabbit');
SELECT tpc_amqp.attach('rabbit');
ROLLBACK;
BEGIN;
SELECT tpc_amqp.attach('rabbit');
SELECT tpc_amqp.detach();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

--
-- Names
--
SELECT tpc_amqp.attach('rabbit', '');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.attach('rabbit', 'a/b');
SELECT tpc_amqp.attach('rabbit', 'a b');
SELECT tpc_amqp.attach('rabbit', 'ä');
SELECT tpc_amqp.attach('rabbit', repeat('n', 64));
SELECT tpc_amqp.attach('rabbit', NULL);
SELECT tpc_amqp.attach('rabbit', 'regress_-.' || repeat('N', 53));
SELECT length(name), state FROM tpc_amqp.node;
SELECT tpc_amqp.detach();
-- taken by another database of the cluster
SELECT tpc_amqp.attach('rabbit', 'blog');
\echo :LAST_ERROR_SQLSTATE
-- names differ by case
BEGIN;
SELECT tpc_amqp.attach('rabbit', 'BLOG');
ROLLBACK;

--
-- Brokers that are not there, and that do not let us in
--
CREATE SERVER nobody FOREIGN DATA WRAPPER tpc_amqp OPTIONS (host '127.0.0.1', port '1');
SELECT tpc_amqp.attach('nobody', 'attach');
\echo :LAST_ERROR_SQLSTATE
CREATE USER MAPPING FOR PUBLIC SERVER nobody OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('nobody', 'attach');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER stranger FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port');
CREATE USER MAPPING FOR PUBLIC SERVER stranger OPTIONS ("user" 'regress_stranger', password 'secret');
SELECT tpc_amqp.attach('stranger', 'attach');
\echo :LAST_ERROR_SQLSTATE
ALTER USER MAPPING FOR PUBLIC SERVER stranger OPTIONS (SET "user" 'guest', SET password 'guest');
ALTER SERVER stranger OPTIONS (ADD vhost '/regress_nowhere');
SELECT tpc_amqp.attach('stranger', 'attach');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER stranger OPTIONS (SET vhost '/');
BEGIN;
SELECT tpc_amqp.attach('stranger', 'attach');
ROLLBACK;
-- after all that, nothing is left
CALL wait_until_free();
SELECT count(*) FROM tpc_amqp.local_node;
SELECT count(*) FROM pg_shseclabel WHERE objoid = (SELECT oid FROM pg_database WHERE datname = current_database());

--
-- Savepoints
--
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.attach('rabbit', 'rolled-back');
ROLLBACK TO a;
SELECT tpc_amqp.attach('rabbit', 'attach');
SAVEPOINT b;
SELECT name, state FROM tpc_amqp.node;
ROLLBACK TO b;
RELEASE a;
COMMIT;
CALL wait_until_connected();
SELECT name, state FROM tpc_amqp.node;
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.detach();
ROLLBACK TO a;
COMMIT;
SELECT name, state FROM tpc_amqp.node;
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.detach();
RELEASE a;
COMMIT;
CALL wait_until_free();
SELECT count(*) FROM tpc_amqp.node;
-- caught
DO $$
BEGIN
	PERFORM tpc_amqp.attach('nobody', 'attach');
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '%', SQLSTATE;
	PERFORM tpc_amqp.attach('rabbit', 'attach');
END $$;
CALL wait_until_connected();
SELECT name, state FROM tpc_amqp.node;

--
-- Detached, it still knows; attached again, it goes on, in a new incarnation.
--
SELECT incarnation FROM tpc_amqp.node \gset
SELECT tpc_amqp.register_handler('now', 'pg_catalog.jsonb_typeof(jsonb)');
BEGIN;
SELECT tpc_amqp.call('attach', 'now');
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT;
SELECT tpc_amqp.detach();
SELECT tpc_amqp.call('attach', 'now');
SELECT tpc_amqp.attach('rabbit', 'attach');
SELECT tpc_amqp.outcome(:'gtid');
SELECT tpc_amqp.call('attach', 'now');
SELECT incarnation > :incarnation FROM tpc_amqp.node;
SELECT count(*) FROM tpc_amqp.incarnation WHERE incarnation >= :incarnation;

-- a transaction cannot both call and detach
BEGIN;
SELECT tpc_amqp.detach();
SELECT tpc_amqp.call('attach', 'now');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT tpc_amqp.call('attach', 'now');
SELECT tpc_amqp.detach();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.call('attach', 'now');
ROLLBACK TO a;
SELECT tpc_amqp.detach();
COMMIT;
CALL wait_until_free();
SELECT count(*) FROM tpc_amqp.node;

\c regress_blog
DROP DATABASE regress_attach;
