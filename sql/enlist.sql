--
-- enlist() and join(): branches that the application prepares itself.
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
\set VERBOSITY terse

\c regress_reviews
CREATE SCHEMA regress_enlist;
CREATE TABLE regress_enlist.entry (value text NOT NULL);
\c regress_blog
CREATE SCHEMA regress_enlist;
CREATE TABLE regress_enlist.entry (value text NOT NULL);

--
-- What cannot be
--
SELECT tpc_amqp.enlist('blog');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.enlist('no such/node');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.enlist(NULL) IS NULL;
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '1');
SELECT tpc_amqp.enlist('reviews');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT tpc_amqp.enlist('reviews') = tpc_amqp.gtid();
SELECT tpc_amqp.call('reviews', 'add', '1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT tpc_amqp.enlist('reviews');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT tpc_amqp.join('nonsense');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT tpc_amqp.enlist('reviews') AS gtid \gset
SELECT tpc_amqp.join(:'gtid');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- an enlisted node that never votes
SET tpc_amqp.prepare_timeout = '50ms';
BEGIN;
SELECT tpc_amqp.enlist('reviews') AS gtid \gset
COMMIT;
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.outcome(:'gtid') IN ('aborted', 'unknown');
RESET tpc_amqp.prepare_timeout;

--
-- The participant.  This coordinator does not exist, so that the branch stays
-- in doubt until somebody forces it.
--
\set gtid 'elsewhere/01a2025e-d9cd-81bc-8000-000000000002'
\set other 'elsewhere/01a2025e-d9cd-81bc-8000-000000000003'
\c regress_reviews
BEGIN;
SELECT tpc_amqp.join(:'gtid');
-- the same again
SELECT tpc_amqp.join(:'gtid');
SELECT tpc_amqp.join(:'other');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- it cannot be committed alone
BEGIN;
SELECT tpc_amqp.join(:'gtid');
INSERT INTO regress_enlist.entry VALUES ('alone');
COMMIT;
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.join(:'gtid');
\echo :LAST_ERROR_SQLSTATE
-- but what joined in a savepoint that rolled back can
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.join(:'gtid');
ROLLBACK TO a;
INSERT INTO regress_enlist.entry VALUES ('not joined');
COMMIT;
SELECT value FROM regress_enlist.entry;
BEGIN READ ONLY;
SELECT tpc_amqp.join(:'gtid');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT tpc_amqp.join(:'gtid');
INSERT INTO regress_enlist.entry VALUES ('joined');
PREPARE TRANSACTION 'tpc_amqp:elsewhere/01a2025e-d9cd-81bc-8000-000000000002:reviews';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT tpc_amqp.join(:'gtid');
INSERT INTO regress_enlist.entry VALUES ('joined');
PREPARE TRANSACTION 'regress_enlist 1';
SELECT gtid, coordinator, state, gid, waiting FROM tpc_amqp.branches
WHERE coordinator = 'elsewhere';
-- a node has one branch of a transaction
BEGIN;
SELECT tpc_amqp.join(:'gtid');
PREPARE TRANSACTION 'regress_enlist 2';
\echo :LAST_ERROR_SQLSTATE
-- its end is not the application's to choose
SET tpc_amqp.prepare_timeout = '100ms';
COMMIT PREPARED 'regress_enlist 1';
\echo :LAST_ERROR_SQLSTATE
ROLLBACK PREPARED 'regress_enlist 1';
\echo :LAST_ERROR_SQLSTATE
RESET tpc_amqp.prepare_timeout;

--
-- force()
--
SELECT tpc_amqp.force('nonsense', 'commit');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.force(:'gtid', 'maybe');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.force(:'other', 'commit');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT tpc_amqp.force(:'gtid', 'rollback');
ROLLBACK;
SELECT gid FROM tpc_amqp.branches WHERE coordinator = 'elsewhere';
SELECT tpc_amqp.force(:'gtid', 'commit');
DO $$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		PERFORM FROM tpc_amqp.branches WHERE coordinator = 'elsewhere';
		EXIT WHEN NOT FOUND;
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
SELECT gid FROM tpc_amqp.branches WHERE coordinator = 'elsewhere';
SELECT value FROM regress_enlist.entry ORDER BY value;
SELECT kind, node, detail LIKE '"%" decided to commit the branch without its coordinator.'
FROM tpc_amqp.incidents WHERE gtid = :'gtid';
COMMIT PREPARED 'regress_enlist 1';
ROLLBACK PREPARED 'regress_enlist 1';
\echo :LAST_ERROR_SQLSTATE
-- it took effect, once for all
BEGIN;
SELECT tpc_amqp.join(:'gtid');
PREPARE TRANSACTION 'regress_enlist 2';
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.forget(:'gtid');

SET client_min_messages = warning;
DELETE FROM tpc_amqp.branch WHERE coordinator = 'elsewhere';
DELETE FROM tpc_amqp.heuristic WHERE coordinator = 'elsewhere';
DROP SCHEMA regress_enlist CASCADE;
\c regress_blog
SET client_min_messages = warning;
DROP SCHEMA regress_enlist CASCADE;
