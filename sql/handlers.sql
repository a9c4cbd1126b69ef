--
-- Handlers: which functions other nodes may call, and who says so.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS tpc_amqp;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
\set ECHO none
\getenv srcdir PG_ABS_SRCDIR
\set try :srcdir '/sql/include/try.sql'
\i :try
\set ECHO all

CREATE SCHEMA regress_app;
CREATE FUNCTION regress_app.add_review(jsonb) RETURNS void
	LANGUAGE sql AS '';
CREATE FUNCTION regress_app."Odd (name"(jsonb) RETURNS int
	LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION regress_app.add_review(int) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_app.no_argument() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_app.two(jsonb, jsonb DEFAULT 'null') RETURNS void
	LANGUAGE sql AS '';
CREATE FUNCTION regress_app.plain_json(json) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_app.many(jsonb[]) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_app.with_out(jsonb, OUT a int, OUT b int)
	LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION regress_app.rows(jsonb) RETURNS SETOF int
	LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE regress_app.procedure(jsonb) LANGUAGE sql AS '';
CREATE AGGREGATE regress_app.aggregate(jsonb)
	(sfunc = jsonb_concat, stype = jsonb);
CREATE FUNCTION pg_temp.temporary(jsonb) RETURNS void LANGUAGE sql AS '';

--
-- Registering, again, and taking back
--
SELECT tpc_amqp.register_handler('add_review', 'regress_app.add_review(jsonb)');
SELECT tpc_amqp.register_handler('odd "name"', 'regress_app."Odd (name"(jsonb)',
	callers => '{}');
SELECT tpc_amqp.register_handler('with_out', 'regress_app.with_out(jsonb)',
	callers => '{blog,blog-2.example}');
SELECT tpc_amqp.register_handler(repeat('n', 63), 'regress_app.add_review(jsonb)');
SELECT name, function, run_as = current_user::regrole, callers
FROM tpc_amqp.handlers ORDER BY name;
-- a name that is taken is given to the new function
SELECT tpc_amqp.register_handler('with_out', 'regress_app.add_review(jsonb)',
	callers => '{blog}');
SELECT tpc_amqp.register_handler('with_out', 'regress_app.add_review(jsonb)');
SELECT name, function, callers FROM tpc_amqp.handlers WHERE name = 'with_out';
SELECT tpc_amqp.unregister_handler('with_out');
SELECT tpc_amqp.unregister_handler(repeat('n', 63));
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''with_out'')');
SELECT name FROM tpc_amqp.handlers ORDER BY name;
-- it rolls back
BEGIN;
SELECT tpc_amqp.unregister_handler('add_review');
SELECT tpc_amqp.register_handler('rolled back', 'regress_app.add_review(jsonb)');
ROLLBACK;
SELECT name FROM tpc_amqp.handlers ORDER BY name;

--
-- What cannot be a handler
--
CREATE FUNCTION pg_temp.try_register(name text, function text,
	callers text DEFAULT NULL) RETURNS SETOF text
LANGUAGE sql AS $$
	SELECT pg_temp.try(format('SELECT tpc_amqp.register_handler(%L, %L, callers => %L)',
							  name, function, callers))
$$;
SELECT pg_temp.try_register('', 'regress_app.add_review(jsonb)');
SELECT pg_temp.try_register(repeat('n', 64), 'regress_app.add_review(jsonb)');
SELECT pg_temp.try_register(NULL, 'regress_app.add_review(jsonb)');
SELECT pg_temp.try_register('bad', NULL);
SELECT pg_temp.try_register('bad', 'regress_app.nothing(jsonb)');
SELECT pg_temp.try_register('bad', '-');
SELECT pg_temp.try_register('bad', 'regress_app.add_review(integer)');
SELECT pg_temp.try_register('bad', 'regress_app.no_argument()');
SELECT pg_temp.try_register('bad', 'regress_app.two(jsonb,jsonb)');
SELECT pg_temp.try_register('bad', 'regress_app.plain_json(json)');
SELECT pg_temp.try_register('bad', 'regress_app.many(jsonb[])');
SELECT pg_temp.try_register('bad', 'regress_app.rows(jsonb)');
SELECT pg_temp.try_register('bad', 'regress_app.procedure(jsonb)');
SELECT pg_temp.try_register('bad', 'regress_app.aggregate(jsonb)');
SELECT pg_temp.try_register('bad', 'pg_temp.temporary(jsonb)') LIKE '42P13: function pg_temp%(jsonb) cannot be a handler' LIMIT 1;
-- callers
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)', '{blog,""}');
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)', '{a/b}');
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)',
	format('{%s}', repeat('n', 64)));
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)', '{blog,NULL}');
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)', '{{blog},{shop}}');
-- a role
SELECT pg_temp.try('SELECT tpc_amqp.register_handler(''bad'', ''regress_app.add_review(jsonb)'', ''-'')');
-- where nothing may be written
BEGIN READ ONLY;
SELECT pg_temp.try_register('bad', 'regress_app.add_review(jsonb)');
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''add_review'')');
COMMIT;

--
-- Who may register what
--
CREATE ROLE regress_tpc_app;
CREATE ROLE regress_tpc_other;
CREATE ROLE regress_tpc_member ROLE regress_tpc_app;
CREATE ROLE regress_tpc_super SUPERUSER ROLE regress_tpc_app;
GRANT USAGE ON SCHEMA regress_app TO regress_tpc_app;

-- nobody, without being given the power to
SET ROLE regress_tpc_app;
SELECT pg_temp.try_register('app', 'regress_app.add_review(jsonb)');
RESET ROLE;
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_app, regress_tpc_other;
SET ROLE regress_tpc_app;
SELECT pg_temp.try_register('app', 'regress_app.add_review(jsonb)');
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''add_review'')');
SELECT pg_temp.try('TABLE tpc_amqp.handler');
RESET ROLE;
GRANT EXECUTE ON FUNCTION
	tpc_amqp.register_handler(text, regprocedure, regrole, text[], text, integer),
	tpc_amqp.unregister_handler(text)
	TO regress_tpc_app, regress_tpc_other;

CREATE FUNCTION pg_temp.try_run_as(name text, role text) RETURNS SETOF text
LANGUAGE sql AS $$
	SELECT pg_temp.try(format('SELECT tpc_amqp.register_handler(%L, ''regress_app.add_review(jsonb)'', %L)',
							  name, role))
$$;
SET ROLE regress_tpc_app;
SELECT pg_temp.try_register('app', 'regress_app.add_review(jsonb)');
SELECT pg_temp.try_run_as('app', 'regress_tpc_app');
SELECT pg_temp.try_run_as('member', 'regress_tpc_member');
SELECT pg_temp.try_run_as('other', 'regress_tpc_other');
-- not a superuser, though it could become it
SELECT pg_temp.try_run_as('super', 'regress_tpc_super');
-- nor replace, or take back, what runs as somebody else
SELECT pg_temp.try_run_as('add_review', 'regress_tpc_app') ~ '^42501: permission denied to replace handler "add_review"' LIMIT 1;
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''add_review'')') ~ '^42501: permission denied to unregister handler "add_review"' LIMIT 1;
RESET ROLE;
SET ROLE regress_tpc_other;
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''app'')');
RESET ROLE;
-- a superuser can
SELECT pg_temp.try_run_as('super', 'regress_tpc_super');
SELECT pg_temp.try_run_as('other', 'regress_tpc_other');

-- the role has to be able to execute it
REVOKE EXECUTE ON FUNCTION regress_app.add_review(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION regress_app.add_review(jsonb) TO regress_tpc_member;
SELECT pg_temp.try_run_as('denied', 'regress_tpc_other');
SET ROLE regress_tpc_app;
SELECT pg_temp.try_run_as('allowed', 'regress_tpc_member');
RESET ROLE;

SELECT name, function, run_as, callers FROM tpc_amqp.handlers
WHERE name NOT IN ('add_review', 'odd "name"') ORDER BY name;

-- A role that is gone leaves its handlers to superusers.
DROP OWNED BY regress_tpc_other;
DROP ROLE regress_tpc_other;
SET ROLE regress_tpc_app;
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''other'')');
SELECT pg_temp.try_run_as('other', 'regress_tpc_app') LIMIT 1;
RESET ROLE;
SELECT pg_temp.try('SELECT tpc_amqp.unregister_handler(''other'')');

SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SELECT count(*) FROM tpc_amqp.handlers;

DROP OWNED BY regress_tpc_app, regress_tpc_member, regress_tpc_super;
DROP ROLE regress_tpc_app, regress_tpc_member, regress_tpc_super;
SET client_min_messages = warning;
DROP SCHEMA regress_app CASCADE;
