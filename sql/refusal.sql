--
-- A participant refuses: its own error on the client's COMMIT, and nothing is
-- done anywhere.
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
CREATE SCHEMA regress_refusal;
CREATE TABLE regress_refusal.entry (value jsonb NOT NULL);
CREATE FUNCTION regress_refusal.add(jsonb) RETURNS void LANGUAGE sql AS
	'INSERT INTO regress_refusal.entry VALUES ($1)';
SELECT tpc_amqp.register_handler('add', 'regress_refusal.add(jsonb)');

\c regress_reviews
CREATE SCHEMA regress_refusal;
CREATE TABLE regress_refusal.post (id int PRIMARY KEY);
CREATE TABLE regress_refusal.review (
	id int PRIMARY KEY,
	post int NOT NULL CONSTRAINT review_of_a_post
		REFERENCES regress_refusal.post DEFERRABLE INITIALLY DEFERRED,
	stars int CONSTRAINT stars_from_1_to_5 CHECK (stars BETWEEN 1 AND 5));
INSERT INTO regress_refusal.post VALUES (1), (2);
INSERT INTO regress_refusal.review VALUES (1, 1, 5);
CREATE FUNCTION regress_refusal.add(jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_refusal.review
	VALUES (($1->>'id')::int, ($1->>'post')::int, ($1->>'stars')::int)
$$;
CREATE FUNCTION regress_refusal.touch(jsonb) RETURNS void LANGUAGE sql
	SET lock_timeout = '50ms' AS
	$$UPDATE regress_refusal.post SET id = id WHERE id = $1::int$$;
CREATE FUNCTION regress_refusal.raise(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_refusal.post VALUES (9);
	IF NOT $1 ? 'detail' THEN
		RAISE EXCEPTION USING errcode = $1->>'code', message = $1->>'message';
	END IF;
	RAISE EXCEPTION USING errcode = $1->>'code', message = $1->>'message',
		detail = $1->>'detail', hint = $1->>'hint';
END $$;
CREATE FUNCTION regress_refusal.temporary(jsonb) RETURNS void LANGUAGE sql AS
	'CREATE TEMPORARY TABLE t (a int)';
CREATE FUNCTION regress_refusal.notify(jsonb) RETURNS void LANGUAGE sql AS
	'NOTIFY regress_refusal';
CREATE FUNCTION regress_refusal.commit(jsonb) RETURNS void LANGUAGE plpgsql AS
	'BEGIN COMMIT; END';
CREATE FUNCTION regress_refusal.nested(jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN PERFORM tpc_amqp.call('audit', 'no such handler', $1); END$$;
CREATE FUNCTION regress_refusal.dropped(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT tpc_amqp.register_handler(proname, oid)
FROM pg_proc WHERE pronamespace = 'regress_refusal'::regnamespace;
SELECT tpc_amqp.register_handler('not for blog', 'regress_refusal.add(jsonb)',
	callers => '{audit,blog2}');
DROP FUNCTION regress_refusal.dropped(jsonb);

\c regress_blog
CREATE SCHEMA regress_refusal;
CREATE TABLE regress_refusal.entry (value jsonb NOT NULL);

--
-- What the handler raised
--
BEGIN;
INSERT INTO regress_refusal.entry VALUES ('1');
SELECT tpc_amqp.call('reviews', 'raise', '{"code": "UE123",
	"message": "no reviews on sundays", "detail": "It is Sunday, \u00e4h \u2026",
	"hint": "Come back tomorrow.\nOr later."}');
COMMIT;
\echo :LAST_ERROR_SQLSTATE
-- the session goes on
SELECT tpc_amqp.gtid() IS NULL, count(*) FROM regress_refusal.entry;
SELECT tpc_amqp.call('reviews', 'raise', '{"code": "P0001", "message": "only a message"}');
SELECT tpc_amqp.call('reviews', 'raise', '{"code": "P0001", "message": "100% %s %d %n"}');
-- as long as it may be
SELECT tpc_amqp.call('reviews', 'raise', jsonb_build_object('code', '22000',
	'message', repeat('0123456789abcdef', 64)));
-- what the server raised
SELECT tpc_amqp.call('reviews', 'add', '{"id": 1, "post": 1, "stars": 4}');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'add', '{"id": 2, "post": 1, "stars": 6}');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'add', '{"id": "two"}');
\echo :LAST_ERROR_SQLSTATE
-- what is checked only when the branch is prepared
SELECT tpc_amqp.call('reviews', 'add', '{"id": 2, "post": 7, "stars": 4}');
\echo :LAST_ERROR_SQLSTATE

--
-- What cannot be part of a prepared transaction, nor of one of a function
--
SELECT tpc_amqp.call('reviews', 'temporary');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'notify');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'commit');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'nested', '1');
\echo :LAST_ERROR_SQLSTATE

--
-- Handlers that cannot be called
--
SELECT tpc_amqp.call('reviews', 'no such handler');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'dropped');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.call('reviews', 'not for blog', '{"id": 2, "post": 1, "stars": 4}');
\echo :LAST_ERROR_SQLSTATE

--
-- One of several: the rest does not happen either
--
BEGIN;
INSERT INTO regress_refusal.entry VALUES ('2');
SELECT tpc_amqp.call('audit', 'add', '2');
SELECT tpc_amqp.call('reviews', 'add', '{"id": 2, "post": 1, "stars": 4}');
SELECT tpc_amqp.call('reviews', 'add', '{"id": 1, "post": 1, "stars": 4}');
SELECT tpc_amqp.call('reviews', 'add', '{"id": 3, "post": 1, "stars": 4}');
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT;
SELECT tpc_amqp.outcome(:'gtid');
SELECT count(*) FROM regress_refusal.entry;

--
-- A node the broker does not know; one it knows and that does not answer.
-- (Details tell the transaction's id.)
--
\set VERBOSITY terse
BEGIN;
SELECT tpc_amqp.call('audit', 'add', '3');
SELECT tpc_amqp.call('regress-nowhere', 'add', '3');
COMMIT;
\echo :LAST_ERROR_SQLSTATE
\set ECHO none
\set node silent
\o /dev/null
\i :make_node
\o
\set ECHO all
SELECT tpc_amqp.detach();
-- its workers leave
DO $$ BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM tpc_amqp.node);
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT count(*) FROM tpc_amqp.node;
\c regress_blog
DROP DATABASE regress_silent;
SET tpc_amqp.prepare_timeout = '200ms';
BEGIN;
SELECT tpc_amqp.call('audit', 'add', '3');
SELECT tpc_amqp.call('silent', 'add', '3');
COMMIT;
\echo :LAST_ERROR_SQLSTATE
RESET tpc_amqp.prepare_timeout;
\set VERBOSITY default

--
-- A lock the handler does not get: here, of somebody else's prepared
-- transaction; then, of the calling transaction itself.
--
\c regress_reviews
BEGIN;
UPDATE regress_refusal.post SET id = 3 WHERE id = 2;
PREPARE TRANSACTION 'regress_refusal';
\c regress_blog
SELECT tpc_amqp.call('reviews', 'touch', '2');
\echo :LAST_ERROR_SQLSTATE
\c regress_reviews
COMMIT PREPARED 'regress_refusal';
BEGIN;
UPDATE regress_refusal.post SET id = 2 WHERE id = 3;
SELECT tpc_amqp.call('reviews', 'touch', '3');
COMMIT;
\echo :LAST_ERROR_SQLSTATE
-- without the lock it goes well
SELECT tpc_amqp.call('reviews', 'touch', '3');

--
-- Nothing has been done anywhere, and nothing is left.
--
SELECT * FROM regress_refusal.post ORDER BY id;
SELECT * FROM regress_refusal.review ORDER BY id;
DO $$ BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM tpc_amqp.branches);
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT count(*) FROM tpc_amqp.branches;
SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_refusal CASCADE;
\c regress_audit
SELECT count(*) FROM regress_refusal.entry;
DO $$ BEGIN
	FOR i IN 1 .. 3000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM tpc_amqp.branches);
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT count(*) FROM tpc_amqp.branches;
SELECT tpc_amqp.unregister_handler('add');
SET client_min_messages = warning;
DROP SCHEMA regress_refusal CASCADE;
\c regress_blog
SELECT count(*) FROM regress_refusal.entry;
SET client_min_messages = warning;
DROP SCHEMA regress_refusal CASCADE;
