--
-- Options of servers and user mappings: what is taken, what is refused, and
-- who may use them.
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

--
-- Servers
--

-- None, and all.
CREATE SERVER regress_plain FOREIGN DATA WRAPPER tpc_amqp;
CREATE SERVER regress_full FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host 'broker.example', port '5673', vhost '/shop',
			 heartbeat '30', connect_timeout '2.5', tls 'on', verify 'off',
			 cacert '/etc/ssl/ca.pem', cert '/etc/ssl/node.pem',
			 key '/etc/ssl/node.key');

-- Unknown names, in each context; a user's options do not belong to a server.
SELECT pg_temp.try('CREATE SERVER s FOREIGN DATA WRAPPER tpc_amqp OPTIONS (hots ''a'')');
SELECT pg_temp.try('CREATE SERVER s FOREIGN DATA WRAPPER tpc_amqp OPTIONS (password ''secret'')');
SELECT pg_temp.try('CREATE SERVER s FOREIGN DATA WRAPPER tpc_amqp OPTIONS ("Host" ''a'')');
SELECT pg_temp.try('ALTER FOREIGN DATA WRAPPER tpc_amqp OPTIONS (host ''a'')');
SELECT pg_temp.try('CREATE FOREIGN TABLE t (a int) SERVER regress_plain OPTIONS (host ''a'')');
SELECT pg_temp.try('CREATE USER MAPPING FOR PUBLIC SERVER regress_plain OPTIONS (host ''a'')');

-- One value each, on a server that has none.
CREATE FUNCTION pg_temp.try_value(option text, value text) RETURNS SETOF text
LANGUAGE sql AS $$
	SELECT pg_temp.try(format('ALTER SERVER regress_plain OPTIONS (ADD %I %L);'
							  'ALTER SERVER regress_plain OPTIONS (DROP %1$I)',
							  option, value))
$$;
SELECT option, CASE WHEN length(value) < 50 THEN value END AS value,
	   length(value) AS length, pg_temp.try_value(option, value)
FROM (VALUES
	(1, 'host', ''),
	(2, 'host', repeat('h', 255)),
	(3, 'host', repeat('h', 256)),
	(4, 'host', '::1'),
	(5, 'vhost', ''),
	(6, 'vhost', repeat('v', 255)),
	(7, 'vhost', repeat('v', 256)),
	(10, 'port', '0'),
	(11, 'port', '1'),
	(12, 'port', '65535'),
	(13, 'port', '65536'),
	(14, 'port', '-1'),
	(15, 'port', 'amqp'),
	(16, 'port', ''),
	(17, 'port', '5672 s'),
	(18, 'port', '99999999999999999999'),
	(20, 'heartbeat', '0'),
	(21, 'heartbeat', '3600'),
	(22, 'heartbeat', '3601'),
	(23, 'heartbeat', '-1'),
	(24, 'heartbeat', '10s'),
	(30, 'connect_timeout', '60'),
	(31, 'connect_timeout', '60s'),
	(32, 'connect_timeout', '1min'),
	(33, 'connect_timeout', '500ms'),
	(34, 'connect_timeout', '500 ms'),
	(35, 'connect_timeout', '0.5'),
	(36, 'connect_timeout', '0.001'),
	(37, 'connect_timeout', '0.0001'),
	(38, 'connect_timeout', '0'),
	(39, 'connect_timeout', '61'),
	(40, 'connect_timeout', '2min'),
	(41, 'connect_timeout', '-1'),
	(42, 'connect_timeout', 'NaN'),
	(43, 'connect_timeout', 'Infinity'),
	(44, 'connect_timeout', '1e300'),
	(45, 'connect_timeout', '5 parsecs'),
	(46, 'connect_timeout', ''),
	(50, 'tls', 'yes'),
	(51, 'tls', 'maybe'),
	(52, 'tls', ''),
	(53, 'verify', 'false'),
	(54, 'verify', '2'),
	(60, 'cacert', '/etc/ssl/ca.pem'),
	(61, 'cacert', 'ca.pem'),
	(62, 'cacert', ''),
	(63, 'cacert', '/' || repeat('c', 1022)),
	(64, 'cacert', '/' || repeat('c', 1023)),
	(65, 'cert', '../node.pem'),
	(66, 'cert', '/etc/ssl/node.pem'),
	(67, 'key', '/etc/ssl/node.key'))
	AS v (n, option, value)
ORDER BY n;

-- A certificate needs its key, also when one of them is taken away.
SELECT pg_temp.try('ALTER SERVER regress_plain OPTIONS (cert ''/a'', key ''/b'')');
SELECT pg_temp.try('ALTER SERVER regress_plain OPTIONS (DROP key)');
SELECT pg_temp.try('ALTER SERVER regress_plain OPTIONS (DROP cert, DROP key)');
SELECT pg_temp.try('CREATE SERVER s FOREIGN DATA WRAPPER tpc_amqp OPTIONS (host ''a'', host ''b'')');

--
-- User mappings
--
CREATE ROLE regress_tpc_user;
SELECT pg_temp.try('CREATE USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS (usr ''a'')');
SELECT pg_temp.try('CREATE USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS ("user" '''')');
SELECT pg_temp.try(format('CREATE USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS ("user" %L)', repeat('u', 128)));
-- a password is not shown
SELECT pg_temp.try(format('CREATE USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS (password %L)', repeat('secret', 100)));
SELECT pg_temp.try(format('CREATE USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS ("user" %L, password %L)', repeat('u', 127), repeat('p', 511)));
SELECT pg_temp.try('ALTER USER MAPPING FOR regress_tpc_user SERVER regress_plain OPTIONS (SET "user" ''shop'', SET password '''')');
DROP USER MAPPING FOR regress_tpc_user SERVER regress_plain;

--
-- Certificate and key are for superusers to set, in servers of others, too.
--
GRANT USAGE ON FOREIGN DATA WRAPPER tpc_amqp TO regress_tpc_user;
ALTER SERVER regress_full OWNER TO regress_tpc_user;
SET ROLE regress_tpc_user;
CREATE SERVER regress_own FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (tls 'on', cacert '/etc/ssl/ca.pem');
SELECT pg_temp.try('ALTER SERVER regress_own OPTIONS (cert ''/a'', key ''/b'')');
SELECT pg_temp.try('ALTER SERVER regress_full OPTIONS (SET host ''elsewhere.example'')');
SELECT pg_temp.try('ALTER SERVER regress_full OPTIONS (SET host ''elsewhere.example'', DROP cert, DROP key)');
RESET ROLE;

--
-- What attaching with a server checks before it connects.
--
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER regress_foreign FOREIGN DATA WRAPPER regress_other;
SELECT pg_temp.try('SELECT tpc_amqp.attach(''regress_nowhere'', ''a'')');
SELECT pg_temp.try('SELECT tpc_amqp.attach(''regress_foreign'', ''a'')');
GRANT USAGE ON SCHEMA tpc_amqp TO regress_tpc_user;
GRANT EXECUTE ON FUNCTION tpc_amqp.attach(name, text) TO regress_tpc_user;
CREATE USER MAPPING FOR PUBLIC SERVER regress_plain
	OPTIONS ("user" 'shop', password 'secret');
SET ROLE regress_tpc_user;
SELECT pg_temp.try('SELECT tpc_amqp.attach(''regress_plain'', ''a'')');
SELECT pg_temp.try('SELECT tpc_amqp.attach(''regress_own'', ''a'')');
RESET ROLE;

-- Passwords are for the owner of the mapping and superusers to see.
GRANT USAGE ON FOREIGN SERVER regress_plain TO regress_tpc_user;
SET ROLE regress_tpc_user;
SELECT srvname, umoptions FROM pg_user_mappings WHERE srvname = 'regress_plain';
RESET ROLE;
SELECT srvname, umoptions FROM pg_user_mappings WHERE srvname = 'regress_plain';

-- Nobody is attached; there is nothing to see.
SELECT count(*) FROM tpc_amqp.node;
SELECT count(*) FROM tpc_amqp.transactions;
SELECT count(*) FROM tpc_amqp.branches;
SELECT count(*) FROM tpc_amqp.stat;
SELECT tpc_amqp.stat_reset();
SELECT tpc_amqp.gtid_text('018f0000-0000-8000-8000-000000000001') IS NULL;

DROP SERVER regress_plain, regress_full, regress_own, regress_foreign CASCADE;
DROP FOREIGN DATA WRAPPER regress_other;
DROP OWNED BY regress_tpc_user;
DROP ROLE regress_tpc_user;
