--
-- Views: their columns, what they show, and the counters.
--
\set ECHO none
\getenv srcdir PG_ABS_SRCDIR
\set nodes :srcdir '/sql/include/nodes.sql'
\o /dev/null
\i :nodes
\o
\set ECHO all
\d tpc_amqp.node
\d tpc_amqp.transactions
\d tpc_amqp.branches
\d tpc_amqp.incidents
\d tpc_amqp.handlers
\d tpc_amqp.stat
\pset format unaligned
\pset tuples_only on

\c regress_reviews
CREATE SCHEMA regress_views;
CREATE TABLE regress_views.entry (value jsonb NOT NULL);
CREATE FUNCTION regress_views.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_views.entry VALUES ($1)';
SELECT tpc_amqp.register_handler('add', 'regress_views.add(jsonb)');
SELECT tpc_amqp.stat_reset();
\c regress_audit
CREATE SCHEMA regress_views;
CREATE FUNCTION regress_views.nothing(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT tpc_amqp.register_handler('nothing', 'regress_views.nothing(jsonb)');
SELECT tpc_amqp.stat_reset();
\c regress_blog

--
-- node
--
SELECT name, state, broker = '127.0.0.1:' || :'broker_port' || '/',
	connected_since < clock_timestamp(), blocked, last_error, last_error_at,
	incarnation > 0, timeline, cardinality(prepare_pids), cardinality(resolve_pids)
FROM tpc_amqp.node;
-- its processes are what it says they are
SELECT replace(a.backend_type, 'tpc_amqp ', ''), a.datname, count(*)
FROM tpc_amqp.node n, pg_stat_activity a
WHERE a.pid = ANY (n.messenger_pid || n.prepare_pids || n.resolve_pids)
GROUP BY 1, 2 ORDER BY 1;

--
-- transactions
--
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '1');
SELECT gtid = tpc_amqp.gtid(), state, participants, votes, missing,
	started = now(), decided, age >= '0', pid = pg_backend_pid()
FROM tpc_amqp.transactions WHERE state = 'active';
ROLLBACK;
SELECT count(*) FROM tpc_amqp.transactions WHERE state = 'active';
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '2');
SELECT tpc_amqp.call('audit', 'nothing');
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT;
-- all have applied it; who wrote nothing had nothing to apply
CREATE FUNCTION pg_temp.wait_until(query text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	reached bool;
BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXECUTE query INTO reached;
		EXIT WHEN reached;
		PERFORM pg_sleep(0.02);
	END LOOP;
	IF reached IS NOT TRUE THEN RAISE 'timed out'; END IF;
END $$;
SELECT pg_temp.wait_until(format(
	'SELECT state = ''finished'' FROM tpc_amqp.transactions WHERE gtid = %L', :'gtid'));
SELECT state, participants, missing, started, decided <= clock_timestamp(),
	age >= '0', pid
FROM tpc_amqp.transactions WHERE gtid = :'gtid';
-- of another database, nothing
\c regress_reviews
SELECT count(*) FROM tpc_amqp.transactions WHERE gtid = :'gtid';
\c regress_blog
CREATE FUNCTION pg_temp.wait_until(query text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	reached bool;
BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXECUTE query INTO reached;
		EXIT WHEN reached;
		PERFORM pg_sleep(0.02);
	END LOOP;
	IF reached IS NOT TRUE THEN RAISE 'timed out'; END IF;
END $$;

--
-- stat
--
SELECT tpc_amqp.stat_reset();
SELECT stats_reset <= clock_timestamp(), commits, votes_yes, connects,
	messages_sent, prepare_wait_time
FROM tpc_amqp.stat;
SELECT stats_reset AS before FROM tpc_amqp.stat \gset
SELECT tpc_amqp.call('reviews', 'add', '3');
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '4');
SELECT tpc_amqp.call('audit', 'nothing');
COMMIT;
\set VERBOSITY terse
SELECT tpc_amqp.call('regress-nowhere', 'add', '5');
SELECT tpc_amqp.call('audit', 'no such handler', '5');
-- the messenger counts what is rolled back, and what it has written, in its
-- own time
SELECT pg_temp.wait_until('SELECT aborts = 2 AND messages_sent >= 7
	AND publishes > 0 AND socket_writes > 0 FROM tpc_amqp.stat');
\pset expanded on
SELECT commits, aborts, timeouts, prepares_sent, prepares_returned,
	votes_yes, votes_no, votes_read_only, commits_sent, rollbacks_sent, acks,
	decisions_resent, inquiries, prepares, bad_messages, connects,
	messages_sent >= prepares_sent + commits_sent AS messages_sent,
	messages_received >= votes_yes + votes_no + votes_read_only + acks AS messages_received,
	publishes BETWEEN 1 AND messages_sent AS publishes,
	socket_writes > 0 AS socket_writes,
	prepare_wait_time > 0 AS prepare_wait_time,
	apply_wait_time >= 0 AS apply_wait_time,
	stats_reset = :'before' AS stats_reset
FROM tpc_amqp.stat;
-- and the participants
\c regress_reviews
SELECT prepares, branches_prepared, branches_read_only, branches_refused,
	branches_committed, branches_rolled_back, inquiries_sent, duplicates,
	commits, prepares_sent
FROM tpc_amqp.stat;
\c regress_audit
SELECT prepares, branches_prepared, branches_read_only, branches_refused,
	branches_committed, branches_rolled_back, inquiries_sent, duplicates
FROM tpc_amqp.stat;
\pset expanded off
SELECT tpc_amqp.stat_reset();
SELECT prepares, branches_read_only, branches_refused FROM tpc_amqp.stat;

--
-- A branch that is rolled back for another's refusal: whether it was finished,
-- running or not begun is a race, but nothing stays.
--
\c regress_blog
SELECT tpc_amqp.stat_reset();
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '6');
SELECT tpc_amqp.call('audit', 'no such handler', '6');
COMMIT;
\c regress_reviews
DO $$ BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN (SELECT prepares = 4 AND branches_prepared - branches_rolled_back = 3
				   FROM tpc_amqp.stat)
			AND NOT EXISTS (SELECT FROM tpc_amqp.branches);
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT prepares, branches_prepared - branches_rolled_back, branches_committed
FROM tpc_amqp.stat;
\c regress_blog
SELECT prepares_sent, votes_no, rollbacks_sent > 0 OR decisions_resent > 0
FROM tpc_amqp.stat;
\c regress_audit

--
-- What operators can ask, badly
--
\set VERBOSITY default
SELECT tpc_amqp.outcome('');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.outcome('audit/1');
SELECT tpc_amqp.outcome('018f0000-0000-8000-8000-000000000001');
SELECT tpc_amqp.outcome('au dit/018f0000-0000-8000-8000-000000000001');
SELECT tpc_amqp.resolve('x');
SELECT tpc_amqp.forget('x');
SELECT tpc_amqp.outcome(NULL) IS NULL;
-- of a history that is not this node's, and of a node that is not this one
SELECT tpc_amqp.outcome('audit/00000000-0000-8000-8000-000000000001');
SELECT tpc_amqp.outcome('elsewhere/00000000-0000-8000-8000-000000000001');
SELECT tpc_amqp.forget('audit/00000000-0000-8000-8000-000000000001');
-- a transaction that is not decided is not to be forgotten
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '6');
SELECT tpc_amqp.forget(tpc_amqp.gtid());
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

SELECT tpc_amqp.unregister_handler('nothing');
SET client_min_messages = warning;
DROP SCHEMA regress_views CASCADE;
\c regress_reviews
SELECT value FROM regress_views.entry ORDER BY value;
SELECT tpc_amqp.unregister_handler('add');
SET client_min_messages = warning;
DROP SCHEMA regress_views CASCADE;
