--
-- What workers remember of handlers, and sessions of the extension's tables:
-- every change shows at the next call.
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
\set SHOW_CONTEXT never
\set VERBOSITY terse

\c regress_reviews
CREATE ROLE regress_tpc_remembered;
CREATE SCHEMA regress_remembered;
GRANT USAGE ON SCHEMA regress_remembered TO PUBLIC;
CREATE TABLE regress_remembered.done (
	id serial, what text, by_whom text DEFAULT current_user);
GRANT ALL ON regress_remembered.done, regress_remembered.done_id_seq TO PUBLIC;
CREATE FUNCTION regress_remembered.one(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_remembered.done (what) VALUES ('one')$$;
CREATE FUNCTION regress_remembered.two(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_remembered.done (what) VALUES ('two')$$;
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.one(jsonb)');
SELECT tpc_amqp.register_handler('other', 'regress_remembered.two(jsonb)');

-- Call it from blog, often enough for each worker to have seen it; then what
-- it did.
\set call 'SELECT tpc_amqp.call(''reviews'', ''remembered'', ''{}'');'
\set show 'WITH gone AS (DELETE FROM regress_remembered.done RETURNING *) SELECT DISTINCT what, by_whom = current_user FROM gone;'

\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- another function
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.two(jsonb)');
\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- written by hand, as a restore does
UPDATE tpc_amqp.handler SET function = 'regress_remembered.one(jsonb)'
WHERE name = 'remembered';
\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- another role
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.one(jsonb)',
	'regress_tpc_remembered');
\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- which loses the right to execute it, and gets it back
REVOKE EXECUTE ON FUNCTION regress_remembered.one(jsonb) FROM PUBLIC;
\c regress_blog
:call :call
\c regress_reviews
GRANT EXECUTE ON FUNCTION regress_remembered.one(jsonb) TO PUBLIC;
\c regress_blog
:call :call
\c regress_reviews
:show

-- other callers
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.one(jsonb)',
	callers => '{audit}');
\c regress_blog
:call :call
\c regress_reviews
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.one(jsonb)');

-- the function replaced; dropped; made again
CREATE OR REPLACE FUNCTION regress_remembered.one(jsonb) RETURNS void
	LANGUAGE sql AS
	$$INSERT INTO regress_remembered.done (what) VALUES ('replaced')$$;
\c regress_blog
:call :call :call :call
\c regress_reviews
:show
DROP FUNCTION regress_remembered.one(jsonb);
\c regress_blog
:call :call
\c regress_reviews
CREATE FUNCTION regress_remembered.one(jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_remembered.done (what) VALUES ('again')$$;
\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- the row moved; its place taken by another's; gone; made again
VACUUM FULL tpc_amqp.handler;
\c regress_blog
:call :call :call :call
\c regress_reviews
:show
CREATE TEMPORARY TABLE kept AS TABLE tpc_amqp.handler;
TRUNCATE tpc_amqp.handler;
INSERT INTO tpc_amqp.handler SELECT * FROM kept ORDER BY name DESC;
DELETE FROM tpc_amqp.handler WHERE name = 'remembered';
\c regress_blog
:call :call
\c regress_reviews
SELECT tpc_amqp.unregister_handler('other');
SELECT count(tpc_amqp.unregister_handler(name)) >= 0 FROM tpc_amqp.handlers;
VACUUM tpc_amqp.handler;
\c regress_blog
:call :call
\c regress_reviews
SELECT tpc_amqp.register_handler('other', 'regress_remembered.two(jsonb)');
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.one(jsonb)');
\c regress_blog
:call :call :call :call
\c regress_reviews
:show

-- What one handler has set for the session, the next one does not find;
-- whether the first has written, read, or failed.
CREATE FUNCTION regress_remembered.set_it(jsonb) RETURNS void
	LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('work_mem', '123kB', false),
		set_config('lock_timeout', '123ms', false),
		set_config('regress.mine', 'set', false);
	IF $1 = '"write"' THEN
		INSERT INTO regress_remembered.done (what) VALUES ('set');
	ELSIF $1 = '"fail"' THEN
		RAISE 'set, and failed';
	END IF;
END $$;
CREATE FUNCTION regress_remembered.show_it(jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_remembered.done (what)
	SELECT format('work_mem set: %s; lock_timeout: %s; mine: "%s"',
		current_setting('work_mem') = '123kB', current_setting('lock_timeout'),
		current_setting('regress.mine', true))
$$;
SELECT tpc_amqp.register_handler('set_it', 'regress_remembered.set_it(jsonb)');
SELECT tpc_amqp.register_handler('remembered', 'regress_remembered.show_it(jsonb)');
\c regress_blog
SELECT tpc_amqp.call('reviews', 'set_it', '"write"');
:call
SELECT tpc_amqp.call('reviews', 'set_it', '"read"');
:call
SELECT tpc_amqp.call('reviews', 'set_it', '"fail"');
:call
\c regress_reviews
:show

SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers
WHERE name IN ('other', 'remembered', 'set_it');
SET client_min_messages = warning;
DROP SCHEMA regress_remembered CASCADE;
DROP ROLE regress_tpc_remembered;

-- The extension itself, in one session.
CREATE DATABASE regress_remembered;
\c regress_remembered
CREATE EXTENSION tpc_amqp;
CREATE FUNCTION public.handler(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT tpc_amqp.register_handler('kept', 'public.handler(jsonb)');
BEGIN;
DROP EXTENSION tpc_amqp;
CREATE EXTENSION tpc_amqp;
SELECT tpc_amqp.register_handler('not kept', 'public.handler(jsonb)');
SELECT name FROM tpc_amqp.handlers;
ROLLBACK;
SELECT tpc_amqp.register_handler('kept too', 'public.handler(jsonb)');
SELECT name FROM tpc_amqp.handlers ORDER BY name;
DROP EXTENSION tpc_amqp;
CREATE EXTENSION tpc_amqp;
SELECT tpc_amqp.register_handler('new', 'public.handler(jsonb)');
SELECT name FROM tpc_amqp.handlers;
\c regress_blog
DROP DATABASE regress_remembered;
