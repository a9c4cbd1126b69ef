--
-- PREPARE TRANSACTION: that of others passes through; that of a transaction
-- with calls gathers votes, and COMMIT PREPARED is its decision.
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

\c regress_reviews
CREATE SCHEMA regress_prepare;
CREATE TABLE regress_prepare.entry (value text NOT NULL);
CREATE FUNCTION regress_prepare.add(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_prepare.entry VALUES ($1 #>> '{}')$$;
SELECT tpc_amqp.register_handler('add', 'regress_prepare.add(jsonb)');
CREATE FUNCTION regress_prepare.count(jsonb) RETURNS bigint LANGUAGE sql AS
	'SELECT count(*) FROM regress_prepare.entry';
CREATE FUNCTION regress_prepare.long(jsonb) RETURNS text LANGUAGE sql AS
	$$SELECT repeat('é', 1000)$$;
SELECT tpc_amqp.register_handler(f, ('regress_prepare.' || f || '(jsonb)')::regprocedure)
FROM unnest('{count,long}'::text[]) f;
\c regress_blog
CREATE SCHEMA regress_prepare;
CREATE TABLE regress_prepare.entry (value text NOT NULL);
SELECT tpc_amqp.stat_reset();

--
-- Others' transactions, in a session that has not called anybody
--
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('commit');
PREPARE TRANSACTION 'regress_prepare 1';
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('rollback');
SELECT tpc_amqp.gtid() IS NULL;
PREPARE TRANSACTION 'regress_prepare 2';
-- GIDs are the user's, whatever they look like
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('blog/1');
PREPARE TRANSACTION 'blog/00000000-0000-0000-0000-000000000001';
SELECT gid FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY gid COLLATE "C";
-- none is a branch, nor a transaction of this node
SELECT count(*) FROM tpc_amqp.branches;
SELECT count(*) FROM tpc_amqp.transactions
WHERE state IN ('active', 'preparing');
-- not even by calling resolve()
SELECT tpc_amqp.resolve();
COMMIT PREPARED 'regress_prepare 1';
ROLLBACK PREPARED 'regress_prepare 2';
COMMIT PREPARED 'blog/00000000-0000-0000-0000-000000000001';
SELECT value FROM regress_prepare.entry ORDER BY value;
TRUNCATE regress_prepare.entry;

-- and in one that has; the session of a node can be another's participant
SELECT tpc_amqp.call('reviews', 'add', '"a call before"');
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('after a call');
PREPARE TRANSACTION 'regress_prepare 3';
SELECT tpc_amqp.call('reviews', 'add', '"a call between"');
COMMIT PREPARED 'regress_prepare 3';
-- one that fails is rolled back
BEGIN;
SELECT 1 / 0;
PREPARE TRANSACTION 'regress_prepare 4';
COMMIT PREPARED 'regress_prepare 4';
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM regress_prepare.entry ORDER BY value;
TRUNCATE regress_prepare.entry;

--
-- With calls
--
\set VERBOSITY terse
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('committed');
SELECT tpc_amqp.call('reviews', 'add', '"committed"');
SELECT tpc_amqp.gtid() AS gtid \gset
PREPARE TRANSACTION 'regress_prepare 5';
SELECT tpc_amqp.gtid() IS NULL;
-- every called node has voted; nothing is visible yet
SELECT state, participants, votes, missing, pid FROM tpc_amqp.transactions
WHERE gtid = :'gtid';
SELECT gid, node, kind, vote, acked FROM tpc_amqp.participants
WHERE gtid = :'gtid';
SELECT tpc_amqp.outcome(:'gtid');
SELECT count(*) FROM regress_prepare.entry;
-- not inside of a transaction, as without us
BEGIN;
COMMIT PREPARED 'regress_prepare 5';
ROLLBACK;
-- a GID is used once at a time
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '"duplicate"');
PREPARE TRANSACTION 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
COMMIT PREPARED 'regress_prepare 5';
SELECT tpc_amqp.outcome(:'gtid');
SELECT value FROM regress_prepare.entry;
-- again: nothing to do, or too late
COMMIT PREPARED 'regress_prepare 5';
ROLLBACK PREPARED 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
-- the GID can be used again, by anybody
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('same GID');
PREPARE TRANSACTION 'regress_prepare 5';
ROLLBACK PREPARED 'regress_prepare 5';
ROLLBACK PREPARED 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM regress_prepare.entry;

BEGIN;
INSERT INTO regress_prepare.entry VALUES ('rolled back');
SELECT tpc_amqp.call('reviews', 'add', '"rolled back"');
SELECT tpc_amqp.gtid() AS gtid \gset
PREPARE TRANSACTION 'regress_prepare 5';
ROLLBACK PREPARED 'regress_prepare 5';
SELECT tpc_amqp.outcome(:'gtid') IN ('aborted', 'unknown');
ROLLBACK PREPARED 'regress_prepare 5';
COMMIT PREPARED 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE

-- refused by the node
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('refused');
SELECT tpc_amqp.call('reviews', 'nonesuch', '"refused"');
PREPARE TRANSACTION 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT tpc_amqp.call('nowhere', 'add', '"refused"');
PREPARE TRANSACTION 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database();
-- by the server, after the votes
BEGIN;
CREATE TEMP TABLE temporary (a int);
SELECT tpc_amqp.call('reviews', 'add', '"refused"');
PREPARE TRANSACTION 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
-- GIDs of this form are the workers'
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '"refused"');
PREPARE TRANSACTION 'tpc_amqp:blog/01a2025e-d9cd-81bc-8000-000000000002:reviews';
\echo :LAST_ERROR_SQLSTATE

-- without waiting for the votes
SET tpc_amqp.prepare_wait = off;
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('not waiting');
SELECT tpc_amqp.call('reviews', 'add', '"not waiting"');
PREPARE TRANSACTION 'regress_prepare 5';
COMMIT PREPARED 'regress_prepare 5';
SELECT value FROM regress_prepare.entry ORDER BY value;
-- a no comes later, and leaves it prepared
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('refused');
SELECT tpc_amqp.call('reviews', 'nonesuch', '"refused"');
SELECT tpc_amqp.gtid() AS gtid \gset
PREPARE TRANSACTION 'regress_prepare 5';
\set VERBOSITY default
\set SHOW_CONTEXT never
COMMIT PREPARED 'regress_prepare 5';
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SELECT node, kind, vote, sqlstate, message FROM tpc_amqp.participants
WHERE gtid = :'gtid';
SELECT gid FROM pg_prepared_xacts WHERE database = current_database();
ROLLBACK PREPARED 'regress_prepare 5';
RESET tpc_amqp.prepare_wait;

-- what handlers return can be seen before the decision
BEGIN;
SELECT tpc_amqp.call('reviews', 'count');
SELECT tpc_amqp.call('reviews', 'add', '"counted"');
SELECT tpc_amqp.call('reviews', 'count');
PREPARE TRANSACTION 'regress_prepare 5';
SELECT vote, results FROM tpc_amqp.participants WHERE gid = 'regress_prepare 5';
ROLLBACK PREPARED 'regress_prepare 5';
BEGIN;
SELECT tpc_amqp.call('reviews', 'long');
PREPARE TRANSACTION 'regress_prepare 5';
SELECT vote, array_length(results, 1), octet_length(convert_to(results[1], 'UTF8'))
FROM tpc_amqp.participants WHERE gid = 'regress_prepare 5';
COMMIT PREPARED 'regress_prepare 5';

-- calls that rolled back are none
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('no calls');
SAVEPOINT a;
SELECT tpc_amqp.call('reviews', 'add', '"savepoint"');
SELECT tpc_amqp.gtid() AS gtid \gset
ROLLBACK TO a;
PREPARE TRANSACTION 'regress_prepare 6';
SELECT tpc_amqp.gtid() IS NULL;
SELECT count(*) FROM tpc_amqp.transactions WHERE gtid = :'gtid';
SELECT tpc_amqp.outcome(:'gtid');
COMMIT PREPARED 'regress_prepare 6';
SELECT tpc_amqp.outcome(:'gtid');
SELECT value FROM regress_prepare.entry ORDER BY value;
-- one that comes in a deferred trigger, while it is being prepared
CREATE FUNCTION regress_prepare.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tpc_amqp.call('reviews', 'add', '"deferred"');
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER announce AFTER INSERT ON regress_prepare.entry
	DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION regress_prepare.announce();
BEGIN;
INSERT INTO regress_prepare.entry VALUES ('deferred');
PREPARE TRANSACTION 'regress_prepare 7';
COMMIT PREPARED 'regress_prepare 7';
-- attaching and detaching
BEGIN;
SELECT tpc_amqp.detach();
PREPARE TRANSACTION 'regress_prepare 8';
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM tpc_amqp.node;

SELECT commits FROM tpc_amqp.stat;
SET client_min_messages = warning;
DROP SCHEMA regress_prepare CASCADE;
\c regress_reviews
SELECT value FROM regress_prepare.entry ORDER BY value;
SELECT tpc_amqp.unregister_handler(f) FROM unnest('{add,count,long}'::text[]) f;
SET client_min_messages = warning;
DROP SCHEMA regress_prepare CASCADE;
