--
-- Transactions that may not write, and branches that do not.
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

\c regress_audit
CREATE SCHEMA regress_readonly;
CREATE TABLE regress_readonly.entry (value int NOT NULL);
INSERT INTO regress_readonly.entry VALUES (1);
CREATE FUNCTION regress_readonly.check(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM regress_readonly.entry WHERE value = $1::int) THEN
		RAISE EXCEPTION 'no entry %', $1;
	END IF;
END $$;
CREATE FUNCTION regress_readonly.lock(jsonb) RETURNS void LANGUAGE sql AS
	'SELECT FROM regress_readonly.entry WHERE value = $1::int FOR UPDATE';
CREATE FUNCTION regress_readonly.nothing(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_readonly.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_readonly.entry VALUES ($1::int)';
SELECT tpc_amqp.register_handler(proname, oid)
FROM pg_proc WHERE pronamespace = 'regress_readonly'::regnamespace;
\c regress_reviews
CREATE SCHEMA regress_readonly;
CREATE TABLE regress_readonly.entry (value int NOT NULL);
CREATE FUNCTION regress_readonly.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_readonly.entry VALUES ($1::int)';
CREATE FUNCTION regress_readonly.readonly(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('transaction_read_only', 'on', true);
	INSERT INTO regress_readonly.entry VALUES ($1::int);
END $$;
SELECT tpc_amqp.register_handler(proname, oid)
FROM pg_proc WHERE pronamespace = 'regress_readonly'::regnamespace;
\c regress_blog

--
-- A read-only transaction calls nobody.
--
BEGIN READ ONLY;
SELECT tpc_amqp.call('reviews', 'add', '1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SET default_transaction_read_only = on;
SELECT tpc_amqp.call('reviews', 'add', '1');
BEGIN READ WRITE;
SELECT tpc_amqp.call('reviews', 'add', '2');
COMMIT;
RESET default_transaction_read_only;
-- what has been named before it became one is done, as what was written is
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '3');
SET TRANSACTION READ ONLY;
SELECT tpc_amqp.call('reviews', 'add', '1');
ROLLBACK;
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '4');
SET TRANSACTION READ ONLY;
COMMIT;
-- the rest only looks
BEGIN READ ONLY;
SELECT tpc_amqp.gtid() IS NULL;
SELECT tpc_amqp.outcome('blog/00000000-0000-8000-8000-000000000001');
SELECT state FROM tpc_amqp.node;
SELECT tpc_amqp.detach();
ROLLBACK;
BEGIN READ ONLY;
SELECT tpc_amqp.attach('rabbit', 'blog');
ROLLBACK;
BEGIN READ ONLY;
SELECT tpc_amqp.forget('blog/00000000-0000-8000-8000-000000000001');
ROLLBACK;
-- a database whose transactions are read-only by default takes part
ALTER DATABASE regress_reviews SET default_transaction_read_only = on;
SELECT tpc_amqp.call('reviews', 'add', '5');
ALTER DATABASE regress_reviews RESET default_transaction_read_only;
-- and a handler that is read-only is refused its write
SELECT tpc_amqp.call('reviews', 'readonly', '6');
\echo :LAST_ERROR_SQLSTATE
\c regress_reviews
SELECT value FROM regress_readonly.entry ORDER BY value;
TRUNCATE regress_readonly.entry;

--
-- A branch that wrote nothing has no second phase; taking a row lock is
-- writing.
--
\c regress_audit
SELECT tpc_amqp.stat_reset();
\c regress_blog
SELECT tpc_amqp.stat_reset();
BEGIN;
SELECT tpc_amqp.call('audit', 'check', '1');
SELECT tpc_amqp.call('audit', 'nothing');
SELECT tpc_amqp.gtid() AS gtid1 \gset
COMMIT;
BEGIN;
SELECT tpc_amqp.call('audit', 'check', '1');
SELECT tpc_amqp.call('reviews', 'add', '10');
SELECT tpc_amqp.gtid() AS gtid2 \gset
COMMIT;
SELECT tpc_amqp.outcome(:'gtid1'), tpc_amqp.outcome(:'gtid2');
-- the record is of those who have to hear of it
SELECT participants FROM tpc_amqp.decision
WHERE gtid IN (split_part(:'gtid1', '/', 2)::uuid, split_part(:'gtid2', '/', 2)::uuid)
ORDER BY gtid;
SELECT votes_read_only, votes_yes, commits_sent, acks, commits FROM tpc_amqp.stat;
SELECT tpc_amqp.call('audit', 'lock', '1');
SELECT votes_read_only, votes_yes, commits_sent, acks, commits FROM tpc_amqp.stat;
-- one that reads can refuse
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '11');
SELECT tpc_amqp.call('audit', 'check', '2');
COMMIT;
\c regress_audit
SELECT branches_read_only, branches_prepared, branches_committed, branches_refused
FROM tpc_amqp.stat;
SELECT count(*) FROM tpc_amqp.branches;
-- its own writes are seen by a check that comes after them
\c regress_blog
BEGIN;
SELECT tpc_amqp.call('audit', 'add', '3');
SELECT tpc_amqp.call('audit', 'check', '3');
COMMIT;

\c regress_reviews
SELECT value FROM regress_readonly.entry ORDER BY value;
SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_readonly CASCADE;
\c regress_audit
SELECT value FROM regress_readonly.entry ORDER BY value;
SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_readonly CASCADE;
