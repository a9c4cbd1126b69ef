--
-- Kinds of handlers: names, numbers of workers, and what the view shows.
-- What they do is in t/091_kinds.pl.
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

CREATE SCHEMA regress_kinds;
CREATE FUNCTION regress_kinds.work(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION pg_temp.try_kind(handler text, kind text, workers int DEFAULT NULL)
RETURNS SETOF text LANGUAGE sql AS $$
	SELECT pg_temp.try(format('SELECT tpc_amqp.register_handler(%L, ''regress_kinds.work(jsonb)'', kind => %L, workers => %L)',
							  handler, kind, workers))
$$;

SELECT pg_temp.try_kind('none', NULL);
SELECT pg_temp.try_kind('report', 'slow', 2);
SELECT pg_temp.try_kind('export', 'slow');
SELECT name, kind, workers FROM tpc_amqp.handlers ORDER BY name;

SELECT pg_temp.try_kind('bad', '');
SELECT pg_temp.try_kind('bad', 'a.b');
SELECT pg_temp.try_kind('bad', 'a:b');
SELECT pg_temp.try_kind('bad', repeat('x', 31));
SELECT pg_temp.try_kind('bad', repeat('x', 32));
SELECT pg_temp.try_kind('bad', 'slow', 0);
SELECT pg_temp.try_kind('bad', 'slow', 65);
SELECT pg_temp.try_kind('bad', NULL, 1);

-- Replaced, it is what it was replaced with.
SELECT pg_temp.try_kind('bad', 'slow');
SELECT pg_temp.try_kind('bad', NULL);
SELECT name, kind, workers FROM tpc_amqp.handlers ORDER BY name;

-- Their number is bounded.
SELECT string_agg(t, ' ') FROM generate_series(2, 16) n,
	pg_temp.try_kind('k' || n, 'kind_' || n) t;
SELECT pg_temp.try_kind('k17', 'kind_17');
-- one more of a kind that is there, or in the place of the only one of another
SELECT pg_temp.try_kind('k17', 'kind_16');
SELECT pg_temp.try_kind('k2', 'kind_17');

SELECT count(tpc_amqp.unregister_handler(name)) FROM tpc_amqp.handlers;
SET client_min_messages = warning;
DROP SCHEMA regress_kinds CASCADE;
