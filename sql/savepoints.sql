--
-- Calls and subtransactions: what rolls back is not sent.
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
CREATE SCHEMA regress_savepoints;
CREATE TABLE regress_savepoints.entry (
	id int GENERATED ALWAYS AS IDENTITY,
	value text NOT NULL CHECK (value <> 'refused'));
CREATE FUNCTION regress_savepoints.add(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_savepoints.entry (value) VALUES ($1 #>> '{}')$$;
-- what has come in since the last look
CREATE FUNCTION regress_savepoints.take() RETURNS SETOF text LANGUAGE sql AS $$
	WITH taken AS (DELETE FROM regress_savepoints.entry RETURNING *)
	SELECT value FROM taken ORDER BY id
$$;
SELECT tpc_amqp.register_handler('add', 'regress_savepoints.add(jsonb)');
\c regress_blog
CREATE SCHEMA regress_savepoints;
CREATE FUNCTION regress_savepoints.add(text) RETURNS void LANGUAGE sql AS
	$$SELECT tpc_amqp.call('reviews', 'add', to_jsonb($1))$$;

--
-- SAVEPOINT
--
BEGIN;
SELECT regress_savepoints.add('before');
SAVEPOINT a;
SELECT regress_savepoints.add('rolled back');
ROLLBACK TO a;
SELECT regress_savepoints.add('after');
COMMIT;
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

-- released, and released into one that rolls back
BEGIN;
SAVEPOINT a;
SELECT regress_savepoints.add('released');
RELEASE a;
SAVEPOINT b;
SELECT regress_savepoints.add('rolled back outside');
SAVEPOINT c;
SELECT regress_savepoints.add('released inside');
RELEASE c;
ROLLBACK TO b;
COMMIT;
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

-- nested: the innermost, one in between, and the order of the rest
BEGIN;
SELECT regress_savepoints.add('0');
SAVEPOINT a;
SELECT regress_savepoints.add('1');
SAVEPOINT b;
SELECT regress_savepoints.add('2');
SAVEPOINT c;
SELECT regress_savepoints.add('rolled back');
ROLLBACK TO c;
SELECT regress_savepoints.add('3');
RELEASE b;
SAVEPOINT d;
SELECT regress_savepoints.add('rolled back');
SAVEPOINT e;
SELECT regress_savepoints.add('rolled back');
ROLLBACK TO d;
SELECT regress_savepoints.add('4');
COMMIT;
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

-- an error is what rolls back; a savepoint is used again
BEGIN;
SAVEPOINT a;
SELECT regress_savepoints.add('failed');
SELECT 1 / 0;
ROLLBACK TO a;
SELECT regress_savepoints.add('rolled back');
ROLLBACK TO a;
SELECT regress_savepoints.add('kept');
COMMIT;
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

-- Everything rolled back: a transaction as any other, and nobody is asked.
SELECT tpc_amqp.stat_reset();
BEGIN;
SAVEPOINT a;
SELECT regress_savepoints.add('refused');
ROLLBACK TO a;
SELECT tpc_amqp.gtid() AS gtid \gset
COMMIT;
SELECT tpc_amqp.gtid() IS NULL;
SELECT prepares_sent, commits, aborts FROM tpc_amqp.stat;
SELECT count(*) FROM tpc_amqp.transactions WHERE gtid = :'gtid';
SELECT tpc_amqp.outcome(:'gtid');
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

--
-- Exception blocks
--
DO $$
BEGIN
	PERFORM regress_savepoints.add('block');
	BEGIN
		PERFORM regress_savepoints.add('caught');
		RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN
		PERFORM regress_savepoints.add('handler');
	END;
	BEGIN
		PERFORM regress_savepoints.add('no exception');
		BEGIN
			PERFORM regress_savepoints.add('caught');
			PERFORM tpc_amqp.call('no such/node', 'add');
		EXCEPTION WHEN invalid_name THEN
			NULL;
		END;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
END $$;
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

--
-- Procedures that commit: several transactions in a command
--
CREATE PROCEDURE regress_savepoints.batch() LANGUAGE plpgsql AS $$
DECLARE
	gtids text[] := '{}';
BEGIN
	FOR i IN 1 .. 4 LOOP
		PERFORM regress_savepoints.add('batch ' || i);
		gtids := gtids || tpc_amqp.gtid();
		IF i % 2 = 0 THEN
			COMMIT;
		ELSIF i = 3 THEN
			ROLLBACK;
		END IF;
		RAISE NOTICE 'after %: %', i,
			CASE WHEN tpc_amqp.gtid() IS NULL THEN 'none' ELSE 'one' END;
	END LOOP;
	RAISE NOTICE '% transactions',
		(SELECT count(DISTINCT g) FROM unnest(gtids) g);
END $$;
CALL regress_savepoints.batch();
\c regress_reviews
SELECT regress_savepoints.take();
\c regress_blog

-- The COMMIT inside fails: the procedure ends there.
\set VERBOSITY terse
CREATE PROCEDURE regress_savepoints.failing() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM regress_savepoints.add('first');
	COMMIT;
	PERFORM regress_savepoints.add('second');
	PERFORM regress_savepoints.add('refused');
	COMMIT;
	RAISE NOTICE 'not reached';
END $$;
CALL regress_savepoints.failing();
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.gtid() IS NULL;
\set VERBOSITY default
\c regress_reviews
SELECT regress_savepoints.take();

SELECT tpc_amqp.unregister_handler('add');
SET client_min_messages = warning;
DROP SCHEMA regress_savepoints CASCADE;
\c regress_blog
SET client_min_messages = warning;
DROP SCHEMA regress_savepoints CASCADE;
