--
-- The broker's objects: queues, exchanges and bindings, from SQL.
--
\set ECHO none
\getenv srcdir PG_ABS_SRCDIR
\set nodes :srcdir '/sql/include/nodes.sql'
\o /dev/null
\i :nodes
SELECT tpc_amqp.delete_queue('regress.a'), tpc_amqp.delete_queue('regress.b');
SELECT tpc_amqp.delete_exchange('regress.x');
\o
\set ECHO all
\pset format unaligned
\pset tuples_only on
\pset null '(null)'

--
-- Queues
--
SELECT * FROM tpc_amqp.declare_queue('regress.a');
-- again, and whether it is there
SELECT * FROM tpc_amqp.declare_queue('regress.a');
SELECT * FROM tpc_amqp.declare_queue('regress.a', passive => true);
SELECT * FROM tpc_amqp.declare_queue('regress.b', durable => false,
	auto_delete => true,
	arguments => '{"x-max-length": 3, "x-message-ttl": 60000, "x-overflow": "reject-publish"}');
-- the broker finds a name
SELECT name LIKE 'amq.gen-%' AS generated, messages, consumers
FROM tpc_amqp.declare_queue(exclusive => true) \gset
\echo :generated :messages :consumers
SELECT tpc_amqp.purge_queue('regress.a');
SELECT tpc_amqp.delete_queue('regress.b', if_unused => true, if_empty => true);

--
-- At once: a rollback does not take it back
--
BEGIN;
SELECT name FROM tpc_amqp.declare_queue('regress.b');
ROLLBACK;
SELECT name FROM tpc_amqp.declare_queue('regress.b', passive => true);
BEGIN READ ONLY;
SELECT tpc_amqp.delete_queue('regress.b');
COMMIT;

--
-- Exchanges and bindings
--
SELECT tpc_amqp.declare_exchange('regress.x', 'topic');
SELECT tpc_amqp.declare_exchange('regress.x', 'topic', passive => true);
SELECT tpc_amqp.bind_queue('regress.a', 'regress.x', 'a.*');
SELECT tpc_amqp.bind_queue('regress.a', 'amq.headers',
	arguments => '{"x-match": "all", "kind": "a"}');
SELECT tpc_amqp.unbind_queue('regress.a', 'regress.x', 'a.*');
-- what is not bound: the broker does not mind
SELECT tpc_amqp.unbind_queue('regress.a', 'regress.x', 'b.*');
SELECT tpc_amqp.delete_exchange('regress.x', if_unused => true);
-- nor about what is not there
SELECT tpc_amqp.delete_exchange('regress.x');
SELECT tpc_amqp.delete_queue('regress.nothing');

--
-- The broker refuses
--
SELECT tpc_amqp.declare_queue('regress.nothing', passive => true);
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.purge_queue('regress.nothing');
SELECT tpc_amqp.bind_queue('regress.a', 'regress.nothing');
SELECT tpc_amqp.declare_exchange('regress.nothing', passive => true);
SELECT tpc_amqp.declare_queue('regress.a', durable => false);
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.declare_queue('regress.b', arguments => '{"x-max-length": -1}');
SELECT tpc_amqp.declare_queue('amq.mine');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.declare_exchange('amq.direct', 'fanout');
SELECT tpc_amqp.delete_exchange('amq.direct');
SELECT tpc_amqp.bind_queue('regress.a', '');
-- in a subtransaction, the rest goes on
DO $$
BEGIN
	PERFORM tpc_amqp.purge_queue('regress.nothing');
EXCEPTION WHEN undefined_object THEN
	RAISE NOTICE 'there is no such queue';
END $$;

--
-- Refused here
--
SELECT tpc_amqp.declare_queue('tpc_amqp.blog.prepare');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.delete_queue('tpc_amqp.');
SELECT tpc_amqp.purge_queue('tpc_amqp.reviews.decision');
SELECT tpc_amqp.bind_queue('tpc_amqp.blog.vote', 'amq.fanout');
SELECT tpc_amqp.bind_queue('regress.a', 'tpc_amqp', 'tpc_amqp.blog.vote');
SELECT tpc_amqp.unbind_queue('regress.a', 'tpc_amqp');
SELECT tpc_amqp.declare_exchange('tpc_amqp');
SELECT tpc_amqp.delete_exchange('tpc_amqp');
SELECT tpc_amqp.declare_queue('regress.b', arguments => '{"x-dead-letter-exchange": "tpc_amqp"}');
SELECT tpc_amqp.declare_queue('regress.b', arguments =>
	'{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "tpc_amqp.blog.vote"}');
SELECT tpc_amqp.declare_exchange('regress.x', arguments => '{"alternate-exchange": "tpc_amqp"}');
-- (others only begin that way)
SELECT name FROM tpc_amqp.declare_queue('tpc_amqp', auto_delete => true);
SELECT tpc_amqp.delete_queue('tpc_amqp');
SELECT tpc_amqp.declare_queue(repeat('x', 256));
\echo :LAST_ERROR_SQLSTATE
SELECT length(name) FROM tpc_amqp.declare_queue(repeat('x', 255));
SELECT tpc_amqp.delete_queue(repeat('x', 255));
SELECT tpc_amqp.bind_queue('regress.a', 'amq.topic', repeat('x', 256));
SELECT tpc_amqp.delete_queue('');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.declare_exchange('regress.x', 'x-delayed-message');
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.declare_queue('regress.b', arguments => '[]');
SELECT tpc_amqp.declare_queue('regress.b', arguments => '{"x-max-length": 1e400}');
SELECT tpc_amqp.declare_queue(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT tpc_amqp.delete_queue('regress.a', if_empty => NULL);

--
-- Names are UTF-8
--
SELECT * FROM tpc_amqp.declare_queue('regress.für', auto_delete => true);
SELECT tpc_amqp.delete_queue('regress.für');

--
-- Who may
--
CREATE ROLE regress_tpc_objects;
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_objects;
SET ROLE regress_tpc_objects;
SELECT tpc_amqp.declare_queue('regress.a');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM tpc_amqp.requests;
RESET ROLE;
GRANT EXECUTE ON FUNCTION tpc_amqp.declare_queue TO regress_tpc_objects;
SET ROLE regress_tpc_objects;
SELECT name FROM tpc_amqp.declare_queue('regress.a');
RESET ROLE;
REVOKE ALL ON SCHEMA tpc_amqp FROM regress_tpc_objects;
REVOKE ALL ON FUNCTION tpc_amqp.declare_queue FROM regress_tpc_objects;
DROP ROLE regress_tpc_objects;

SELECT tpc_amqp.delete_queue('regress.a');
SELECT count(*) FROM tpc_amqp.requests;
-- the connection has been the same all the time
SELECT state, blocked, last_error FROM tpc_amqp.node;
