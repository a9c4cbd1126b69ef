--
-- Subscriptions: their arguments, who may make them, what is dumped.
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

CREATE ROLE regress_tpc_subscriber;
CREATE ROLE regress_tpc_runner;
CREATE SCHEMA regress_subscribe;
CREATE FUNCTION regress_subscribe.take(jsonb) RETURNS void
	LANGUAGE sql AS '';
GRANT USAGE ON SCHEMA regress_subscribe TO regress_tpc_runner;
SELECT tpc_amqp.register_handler('take', 'regress_subscribe.take(jsonb)');
SELECT tpc_amqp.register_handler('run', 'regress_subscribe.take(jsonb)',
	run_as => 'regress_tpc_runner');

--
-- Signatures
--
SELECT p.oid::regprocedure, pg_get_function_arguments(p.oid),
	   pg_get_function_result(p.oid), provolatile, proparallel, proisstrict
FROM pg_proc p
WHERE pronamespace = 'tpc_amqp'::regnamespace
  AND proname IN ('subscribe', 'unsubscribe', 'retry_message', 'drop_message')
ORDER BY proname;

--
-- Subscribing, again, and ending it
--
SELECT tpc_amqp.subscribe('regress.a', 'take');
SELECT tpc_amqp.subscribe('regress.b', 'take', true, true, 'till',
	'{"x-priority": 5}', 3, '{"retries": 0, "backoff": "1 min 30 s",
	"backoff_max": 3600000, "then": "dead-letter", "exchange": "",
	"routing_key": "regress.dead"}', 2);
SELECT queue, handler, auto_ack, exclusive, consumer_tag, arguments, prefetch,
	   workers,
	   retries, backoff, backoff_max, after_retries, dead_letter_exchange,
	   dead_letter_routing_key
FROM tpc_amqp.subscription ORDER BY queue;
SELECT queue, handler, state, consumer_tag, workers, waiting, deferred, lag
FROM tpc_amqp.subscriptions ORDER BY queue;
-- one that has a subscription is given the new one, which is another
CREATE TEMP TABLE before AS TABLE tpc_amqp.subscription;
SELECT tpc_amqp.subscribe('regress.a', 'run', on_error => '{"then": "drop"}');
SELECT s.handler, s.after_retries, s.workers, s.generation = before.generation
FROM tpc_amqp.subscription s JOIN before USING (queue) ORDER BY queue;
-- and other workers
SELECT tpc_amqp.subscribe('regress.a', 'run', workers => 62);
SELECT queue, workers FROM tpc_amqp.subscriptions ORDER BY queue;
SELECT tpc_amqp.subscribe('regress.a', 'run');
SELECT queue, workers FROM tpc_amqp.subscriptions ORDER BY queue;
-- transactional
BEGIN;
SELECT tpc_amqp.unsubscribe('regress.a');
ROLLBACK;
SELECT tpc_amqp.unsubscribe('regress.a');
SELECT tpc_amqp.unsubscribe('regress.a');
SELECT tpc_amqp.unsubscribe(NULL) IS NULL;
SELECT queue FROM tpc_amqp.subscriptions;

--
-- Arguments
--
SELECT pg_temp.try(format('SELECT tpc_amqp.subscribe(%s)', arguments))
FROM (VALUES
	($$NULL, 'take'$$),
	($$'q', NULL$$),
	($$'q', 'take', prefetch => NULL$$),
	($$'', 'take'$$),
	($$repeat('q', 256), 'take'$$),
	($$'tpc_amqp.blog.prepare', 'take'$$),
	($$'q', 'none'$$),
	($$'q', 'take', prefetch => 0$$),
	($$'q', 'take', prefetch => 65536$$),
	($$'q', 'take', workers => -1$$),
	($$'q', 'take', workers => 65$$),
	($$'q', 'take', workers => 63$$),
	($$'q', 'take', workers => NULL$$),
	($$'q', 'take', consumer_tag => repeat('t', 256)$$),
	($$'q', 'take', arguments => '[]'$$),
	($$'q', 'take', on_error => '[]'$$),
	($$'q', 'take', on_error => '{"retry": 1}'$$),
	($$'q', 'take', on_error => '{"retries": -1}'$$),
	($$'q', 'take', on_error => '{"retries": 1.5}'$$),
	($$'q', 'take', on_error => '{"retries": "1"}'$$),
	($$'q', 'take', on_error => '{"backoff": true}'$$),
	($$'q', 'take', on_error => '{"backoff": "-1 s"}'$$),
	($$'q', 'take', on_error => '{"backoff": "soon"}'$$),
	($$'q', 'take', on_error => '{"backoff_max": "8 days"}'$$),
	($$'q', 'take', on_error => '{"then": "ignore"}'$$),
	($$'q', 'take', on_error => '{"then": "dead-letter"}'$$),
	($$'q', 'take', on_error => '{"exchange": "e"}'$$),
	($$'q', 'take', on_error => '{"then": "dead-letter", "exchange": "",
		"routing_key": "tpc_amqp.blog.vote"}'$$),
	($$'q', 'take', on_error => '{"then": "dead-letter",
		"exchange": "tpc_amqp", "routing_key": "x"}'$$)
) AS t (arguments);
BEGIN READ ONLY;
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('q', 'take')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.unsubscribe('q')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.retry_message(1)$$);
SELECT pg_temp.try($$SELECT tpc_amqp.drop_message(1)$$);
ROLLBACK;

--
-- Who may: EXECUTE, and to be who the handler runs as
--
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_subscriber;
SET ROLE regress_tpc_subscriber;
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('q', 'run')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.unsubscribe('q')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.retry_message(1)$$);
SELECT pg_temp.try($$SELECT tpc_amqp.drop_message(1)$$);
SELECT pg_temp.try($$SELECT * FROM tpc_amqp.subscriptions$$);
SELECT pg_temp.try($$SELECT * FROM tpc_amqp.failed_messages$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION
	tpc_amqp.subscribe(text, text, boolean, boolean, text, jsonb, integer, jsonb, integer),
	tpc_amqp.unsubscribe(text) TO regress_tpc_subscriber;
SET ROLE regress_tpc_subscriber;
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('q', 'run')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('q', 'take')$$);
RESET ROLE;
GRANT regress_tpc_runner TO regress_tpc_subscriber;
SET ROLE regress_tpc_subscriber;
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('q', 'run')$$);
-- nor replace or end what runs as somebody else
SELECT pg_temp.try($$SELECT tpc_amqp.subscribe('regress.b', 'run')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.unsubscribe('regress.b')$$);
SELECT pg_temp.try($$SELECT tpc_amqp.unsubscribe('q')$$);
RESET ROLE;

--
-- Failed messages
--
INSERT INTO tpc_amqp.failed_message (database, queue, exchange, routing_key,
	redelivered, body, state, attempts)
SELECT d.oid, 'regress.b', '', 'regress.b', false, m.*, 6
FROM pg_database d, (VALUES ('abc'::bytea, 'kept'), (NULL, 'dropped')) m
WHERE d.datname = current_database();
SELECT state, attempts, tpc_amqp.retry_message(id)
FROM tpc_amqp.failed_messages ORDER BY id;
SELECT state, attempts, size, next_attempt_at <= clock_timestamp()
FROM tpc_amqp.failed_messages ORDER BY id;
SELECT bool_and(tpc_amqp.drop_message(id)) FROM tpc_amqp.failed_messages;
SELECT count(*) FROM tpc_amqp.failed_messages;

--
-- Dumped: what is configuration
--
SELECT c::regclass FROM pg_extension, unnest(extconfig) c
WHERE extname = 'tpc_amqp' ORDER BY c::regclass::text;

SELECT tpc_amqp.unsubscribe('regress.b');
SELECT tpc_amqp.unregister_handler('take');
SELECT tpc_amqp.unregister_handler('run');
DROP SCHEMA regress_subscribe CASCADE;
REVOKE ALL ON SCHEMA tpc_amqp FROM regress_tpc_subscriber;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tpc_amqp FROM regress_tpc_subscriber;
DROP ROLE regress_tpc_subscriber, regress_tpc_runner;
