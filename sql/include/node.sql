--
-- Database regress_<node> as node <node>, unless it is that already.  Needs
-- variables node and broker_port.  Ends connected to it.
--
\set database regress_ :node
SET client_min_messages = warning;
SELECT format('CREATE DATABASE %I', :'database')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
ALTER DATABASE :database SET lc_messages = 'C';
\c :database
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS tpc_amqp;
SELECT format('CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp OPTIONS (host %L, port %L)',
			  '127.0.0.1', :'broker_port')
WHERE NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = 'rabbit') \gexec
CREATE USER MAPPING IF NOT EXISTS FOR PUBLIC SERVER rabbit
	OPTIONS ("user" 'guest', password 'guest');
SELECT format('SELECT tpc_amqp.attach(%L, %L)', 'rabbit', :'node')
WHERE NOT EXISTS (SELECT FROM tpc_amqp.node) \gexec
RESET client_min_messages;
