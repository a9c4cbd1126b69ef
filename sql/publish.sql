--
-- publish(): arguments and privileges.  What becomes of the messages is for
-- t/100_publish.pl.
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

SELECT p.oid::regprocedure, provolatile, proparallel, prosecdef, proisstrict
FROM pg_proc p WHERE pronamespace = 'tpc_amqp'::regnamespace
AND proname IN ('publish', 'republish', 'discard', 'properties_jsonb')
ORDER BY 1::text COLLATE "C";

-- which of them a literal is for
SELECT tpc_amqp.publish('', 'regress_publish_nobody', 'a text');
SELECT tpc_amqp.publish('', 'regress_publish_nobody', '{}'::jsonb, '{"priority": 1}');
SELECT tpc_amqp.publish('', 'regress_publish_nobody', '\x00'::bytea, mandatory => false);

-- nulls
SELECT tpc_amqp.publish(NULL, 'q', 'body');
SELECT tpc_amqp.publish('', NULL, 'body');
SELECT tpc_amqp.publish('', 'q', NULL::text);
SELECT tpc_amqp.publish('', 'q', NULL::jsonb);
SELECT tpc_amqp.publish('', 'q', NULL::bytea);
SELECT tpc_amqp.publish('', 'regress_publish_nobody', 'body', NULL, NULL);

-- properties
SELECT tpc_amqp.publish('', 'q', 'body', '[]');
SELECT tpc_amqp.publish('', 'q', 'body', '1');
SELECT tpc_amqp.publish('', 'q', 'body', '{"colour": "red"}');
SELECT tpc_amqp.publish('', 'q', 'body', '{"message_id": 1}');
SELECT tpc_amqp.publish('', 'q', 'body', '{"delivery_mode": 3}');
SELECT tpc_amqp.publish('', 'q', 'body', '{"app_id": "tpc_amqp"}');
SELECT tpc_amqp.publish('', 'q', 'body', jsonb_build_object('headers',
	jsonb_build_object('h', repeat('x', 20000))));

-- lengths
SELECT tpc_amqp.publish('', repeat('k', 255), 'body');
SELECT tpc_amqp.publish('', repeat('k', 256), 'body');
SELECT tpc_amqp.publish(repeat('x', 256), 'q', 'body');
SELECT tpc_amqp.publish('', 'q', repeat('b', 1024 * 1024 + 1));

-- read only
BEGIN READ ONLY;
SELECT tpc_amqp.publish('', 'q', 'body');
ROLLBACK;
BEGIN READ ONLY;
SELECT tpc_amqp.republish(1);
ROLLBACK;
BEGIN READ ONLY;
SELECT tpc_amqp.discard(1);
ROLLBACK;

-- what is not there
SELECT tpc_amqp.republish(-1), tpc_amqp.discard(-1);
SELECT tpc_amqp.properties_jsonb('\x0000'), tpc_amqp.properties_jsonb('\x80');

-- in its transaction only
BEGIN;
SELECT tpc_amqp.publish('', 'regress_publish_nobody', 'body', '{"message_id": "m"}', true);
SELECT exchange, routing_key, message_id, size, state FROM tpc_amqp.publications
	WHERE message_id = 'm';
ROLLBACK;
SELECT count(*) FROM tpc_amqp.publications WHERE message_id = 'm';

-- who may
CREATE ROLE regress_publisher;
GRANT USAGE ON SCHEMA tpc_amqp TO regress_publisher;
SET ROLE regress_publisher;
SELECT tpc_amqp.publish('', 'q', 'body');
SELECT tpc_amqp.republish(1);
SELECT tpc_amqp.discard(1);
SELECT * FROM tpc_amqp.publications;
SELECT * FROM tpc_amqp.returned_messages;
RESET ROLE;
GRANT EXECUTE ON FUNCTION tpc_amqp.publish(text, text, text, jsonb, boolean) TO regress_publisher;
SET ROLE regress_publisher;
SELECT tpc_amqp.publish('', 'regress_publish_nobody', 'body');
SELECT tpc_amqp.publish('', 'q', '{}'::jsonb);
SELECT * FROM tpc_amqp.publication;
SET row_security = off;
SELECT tpc_amqp.publish('', 'regress_publish_nobody', 'body');
RESET ROLE;
SET ROLE pg_monitor;
SELECT count(*) >= 0 FROM tpc_amqp.publications;
RESET ROLE;
REVOKE ALL ON FUNCTION tpc_amqp.publish(text, text, text, jsonb, boolean) FROM regress_publisher;
REVOKE ALL ON SCHEMA tpc_amqp FROM regress_publisher;
DROP ROLE regress_publisher;

-- where no node is
CREATE DATABASE regress_publish;
\c regress_publish
SET client_min_messages = warning;
CREATE EXTENSION tpc_amqp;
SELECT tpc_amqp.publish('', 'q', 'body');
SELECT * FROM tpc_amqp.publications;
SELECT * FROM tpc_amqp.live_publications();
\c regress_blog
DROP DATABASE regress_publish;
