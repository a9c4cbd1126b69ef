--
-- call(): work for other nodes, named in a transaction and done at its COMMIT.
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

-- The participants
\c regress_audit
CREATE SCHEMA regress_call;
CREATE TABLE regress_call.entry (id int GENERATED ALWAYS AS IDENTITY, value jsonb NOT NULL);
CREATE FUNCTION regress_call.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_call.entry (value) VALUES ($1)';
SELECT tpc_amqp.register_handler('add', 'regress_call.add(jsonb)');
\c regress_reviews
CREATE SCHEMA regress_call;
CREATE TABLE regress_call.entry (id int GENERATED ALWAYS AS IDENTITY, value jsonb NOT NULL);
CREATE FUNCTION regress_call.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_call.entry (value) VALUES ($1)';
CREATE FUNCTION regress_call.double(jsonb) RETURNS bigint LANGUAGE sql AS
	$$UPDATE regress_call.entry SET value = to_jsonb(value::int * 2)
	  WHERE value = $1; SELECT 1::bigint$$;
SELECT tpc_amqp.register_handler('add', 'regress_call.add(jsonb)');
SELECT tpc_amqp.register_handler('double', 'regress_call.double(jsonb)');

-- The coordinator
\c regress_blog
CREATE SCHEMA regress_call;
CREATE TABLE regress_call.entry (id int GENERATED ALWAYS AS IDENTITY, value jsonb NOT NULL);
CREATE FUNCTION regress_call.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_call.entry (value) VALUES ($1)';

--
-- One call, and what the transaction is called meanwhile
--
SELECT tpc_amqp.gtid() IS NULL;
BEGIN;
SELECT tpc_amqp.gtid() IS NULL;
INSERT INTO regress_call.entry (value) VALUES ('"here"');
SELECT tpc_amqp.call('reviews', 'add', '"there"');
SELECT tpc_amqp.gtid() ~ '^blog/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$';
SELECT tpc_amqp.gtid() AS gtid \gset
SELECT tpc_amqp.outcome(:'gtid');
COMMIT;
SELECT tpc_amqp.gtid() IS NULL;
SELECT tpc_amqp.outcome(:'gtid');
SELECT value FROM regress_call.entry ORDER BY id;
\c regress_reviews
SELECT value FROM regress_call.entry ORDER BY id;
-- the participant knows of its branch
SELECT tpc_amqp.outcome(:'gtid');
TRUNCATE regress_call.entry;
\c regress_blog
TRUNCATE regress_call.entry;

--
-- ROLLBACK, a failed transaction and a session that ends: nowhere
--
BEGIN;
INSERT INTO regress_call.entry (value) VALUES ('"rolled back"');
SELECT tpc_amqp.call('reviews', 'add', '"rolled back"');
SELECT tpc_amqp.gtid() AS gtid \gset
ROLLBACK;
SELECT tpc_amqp.gtid() IS NULL, tpc_amqp.outcome(:'gtid');
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', '"failed"');
SELECT 1 / 0;
COMMIT;
BEGIN;
INSERT INTO regress_call.entry (value) VALUES ('"gone"');
SELECT tpc_amqp.call('reviews', 'add', '"gone"');
SELECT tpc_amqp.gtid() AS gtid \gset
\c regress_reviews
SELECT count(*) FROM regress_call.entry;
SELECT tpc_amqp.outcome(:'gtid');
\c regress_blog
SELECT count(*) FROM regress_call.entry;
-- its backend may take a moment to end
CREATE PROCEDURE regress_call.wait_until(query text) LANGUAGE plpgsql AS $$
DECLARE
	reached bool;
BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXECUTE query INTO reached;
		EXIT WHEN reached;
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
	IF reached IS NOT TRUE THEN RAISE 'timed out'; END IF;
END $$;
CALL regress_call.wait_until(format(
	'SELECT tpc_amqp.outcome(%L) = ''aborted''', :'gtid'));

--
-- Several calls: in their order; several nodes; this node itself
--
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', n::text::jsonb)
FROM generate_series(1, 3) n;
SELECT tpc_amqp.call('reviews', 'double', '2');
SELECT tpc_amqp.call('audit', 'add', '"all"');
SELECT tpc_amqp.call('reviews', 'add', '2');
COMMIT;
\c regress_audit
SELECT value FROM regress_call.entry ORDER BY id;
TRUNCATE regress_call.entry;
\c regress_reviews
SELECT value FROM regress_call.entry ORDER BY id;
TRUNCATE regress_call.entry;
\c regress_blog
SELECT tpc_amqp.register_handler('add', 'regress_call.add(jsonb)');
BEGIN;
INSERT INTO regress_call.entry (value) VALUES ('"directly"');
SELECT tpc_amqp.call('blog', 'add', '"through a call"');
COMMIT;
SELECT value FROM regress_call.entry ORDER BY value;
TRUNCATE regress_call.entry;

--
-- Out of functions, blocks and triggers, deferred ones as well
--
CREATE FUNCTION regress_call.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tpc_amqp.call('reviews', 'add',
		jsonb_build_object(TG_NAME, NEW.value));
	RETURN NULL;
END $$;
CREATE TRIGGER at_once AFTER INSERT ON regress_call.entry
	FOR EACH ROW WHEN (NEW.value = '1') EXECUTE FUNCTION regress_call.announce();
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON regress_call.entry
	DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.value = '2') EXECUTE FUNCTION regress_call.announce();
BEGIN;
INSERT INTO regress_call.entry (value) VALUES ('2'), ('1');
DO $$ BEGIN PERFORM tpc_amqp.call('reviews', 'add', '"block"'); END $$;
COMMIT;
-- only the deferred one: there is no call before COMMIT
BEGIN;
INSERT INTO regress_call.entry (value) VALUES ('2');
SELECT tpc_amqp.gtid() IS NULL;
COMMIT;
\c regress_reviews
SELECT value FROM regress_call.entry ORDER BY id;
TRUNCATE regress_call.entry;
\c regress_blog
DROP TRIGGER at_once ON regress_call.entry;
DROP TRIGGER deferred ON regress_call.entry;
TRUNCATE regress_call.entry;

--
-- Kinds of transactions
--
-- without BEGIN, alone and several statements in one message
SELECT tpc_amqp.call('reviews', 'add', '"alone"');
INSERT INTO regress_call.entry (value) VALUES ('"together"')\; SELECT tpc_amqp.call('reviews', 'add', '"together"');
-- a chain: each has its own id
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT tpc_amqp.call('reviews', 'add', '"chain 1"');
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT AND CHAIN;
SELECT tpc_amqp.gtid() IS NULL, current_setting('transaction_isolation');
SELECT tpc_amqp.call('reviews', 'add', '"chain 2"');
SELECT tpc_amqp.gtid() > :'gtid';
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT tpc_amqp.call('reviews', 'add', '"repeatable read"');
COMMIT;
-- one that returns at the decision
BEGIN;
SET LOCAL tpc_amqp.commit_wait = decided;
SELECT tpc_amqp.call('reviews', 'add', '"decided"');
COMMIT;
-- and one that would not wait for its own log
BEGIN;
SET LOCAL synchronous_commit = off;
SELECT tpc_amqp.call('reviews', 'add', '"asynchronous"');
COMMIT;
SELECT value FROM regress_call.entry ORDER BY id;
\c regress_reviews
DO $$ BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN (SELECT count(*) FROM regress_call.entry) >= 7;
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT value FROM regress_call.entry ORDER BY value;
TRUNCATE regress_call.entry;
\c regress_blog
TRUNCATE regress_call.entry;

--
-- Arguments
--
CREATE TEMPORARY TABLE argument (n int, value jsonb);
INSERT INTO argument VALUES
	(1, 'null'),
	(2, 'true'),
	(3, '0'),
	(4, '-1.50'),
	(5, '12345678901234567890123456789.0123456789'),
	(6, '1e400'),
	(7, '""'),
	(8, '"a \"quoted\" \\ \/ \b\f\n\r\t\u0001 text"'),
	(9, '"Grüße, Ελλάδα, 東京, 🐘"'),
	(10, '[]'),
	(11, '{}'),
	(12, '[null, [], {"": {"b": [1, "2", false]}, "a b": "\u00e4"}]'),
	(13, '{"text": "''$1'' %s -- ; DROP TABLE x"}'),
	(14, to_jsonb(repeat('0123456789', 90000))),
	(15, (SELECT jsonb_agg(jsonb_build_object('n', n, 'md5', md5(n::text)))
		  FROM generate_series(1, 10000) n)),
	(16, (repeat('[', 500) || repeat(']', 500))::jsonb);
SELECT count(tpc_amqp.call('reviews', 'add', value)) FROM argument WHERE n <= 13;
SELECT count(tpc_amqp.call('reviews', 'add', value)) FROM argument WHERE n = 14;
SELECT count(tpc_amqp.call('reviews', 'add', value)) FROM argument WHERE n = 15;
SELECT count(tpc_amqp.call('reviews', 'add', value)) FROM argument WHERE n = 16;
-- JSON's null is the default
SELECT tpc_amqp.call('reviews', 'add');
SELECT n, length(value::text), md5(value::text) FROM argument ORDER BY n;
\c regress_reviews
SELECT row_number() OVER (ORDER BY id), length(value::text), md5(value::text)
FROM regress_call.entry ORDER BY id;
SELECT value FROM regress_call.entry WHERE length(value::text) < 500 ORDER BY id;
TRUNCATE regress_call.entry;
\c regress_blog

--
-- What cannot be named
--
SELECT tpc_amqp.call('', 'add');
SELECT tpc_amqp.call('no such/node', 'add');
SELECT tpc_amqp.call(repeat('n', 64), 'add');
SELECT tpc_amqp.call('reviews', '');
SELECT tpc_amqp.call('reviews', repeat('h', 64));
\echo :LAST_ERROR_SQLSTATE
-- SQL's null is an argument somebody forgot, not one to skip the call for
SELECT tpc_amqp.call('reviews', 'add', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', NULL);
SELECT tpc_amqp.call(NULL, 'add');
-- too much for one message, alone and with others of the same node
SELECT tpc_amqp.call('reviews', 'add', to_jsonb(repeat('x', 1048576)));
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT tpc_amqp.call('reviews', 'add', to_jsonb(repeat('x', 600000)));
SELECT tpc_amqp.call('audit', 'add', to_jsonb(repeat('x', 600000)));
SELECT tpc_amqp.call('reviews', 'add', to_jsonb(repeat('x', 600000)));
ROLLBACK;
SELECT count(tpc_amqp.call('reviews', 'add', '1')) FROM generate_series(1, 10001);
\echo :LAST_ERROR_SQLSTATE
\c regress_reviews
SELECT count(*) FROM regress_call.entry;

-- Nothing is left over.
SELECT count(*) FROM tpc_amqp.branches;
SELECT tpc_amqp.unregister_handler(name) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_call CASCADE;
\c regress_audit
SELECT tpc_amqp.unregister_handler(name) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_call CASCADE;
\c regress_blog
SELECT tpc_amqp.unregister_handler(name) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_call CASCADE;
