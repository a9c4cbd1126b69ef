--
-- The first steps of a user: extension, broker, nodes, handler, call.
--
\set ECHO none
\getenv broker_port TPC_BROKER_PORT
SET client_min_messages = warning;
DROP DATABASE IF EXISTS regress_setup_reviews;
DROP DATABASE IF EXISTS regress_setup_blog;
\set ECHO all
\pset format unaligned
\pset tuples_only on
CREATE DATABASE regress_setup_reviews;
CREATE DATABASE regress_setup_blog;

-- What the extension consists of
\c regress_setup_reviews
CREATE EXTENSION tpc_amqp;
SELECT extversion, nspname, extrelocatable FROM pg_extension e
JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'tpc_amqp';
SELECT p.oid::regprocedure,
	CASE provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END,
	CASE WHEN proacl IS NULL THEN 'public' ELSE 'granted' END
FROM pg_proc p WHERE pronamespace = 'tpc_amqp'::regnamespace
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- everything is explained
SELECT p.oid::regprocedure FROM pg_proc p
WHERE pronamespace = 'tpc_amqp'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL;
SELECT oid::regclass FROM pg_class
WHERE relnamespace = 'tpc_amqp'::regnamespace AND relkind = 'v'
	AND obj_description(oid, 'pg_class') IS NULL;
-- it has its own schema, and there is one of it
CREATE EXTENSION tpc_amqp;
CREATE EXTENSION IF NOT EXISTS tpc_amqp;
ALTER EXTENSION tpc_amqp SET SCHEMA public;
-- only handlers are for pg_dump
SELECT unnest(extconfig)::regclass, unnest(extcondition) FROM pg_extension
WHERE extname = 'tpc_amqp';

-- A participant
CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port', vhost '/');
CREATE USER MAPPING FOR PUBLIC SERVER rabbit
	OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('rabbit', 'setup_reviews');
SELECT name FROM tpc_amqp.node;
CREATE SCHEMA app;
CREATE TABLE app.review (
	id int GENERATED ALWAYS AS IDENTITY,
	blog_id int NOT NULL,
	stars int NOT NULL CHECK (stars BETWEEN 1 AND 5));
CREATE FUNCTION app.add_review(jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO app.review (blog_id, stars)
	VALUES (($1->>'blog_id')::int, ($1->>'stars')::int)
$$;
SELECT tpc_amqp.register_handler('add_review', 'app.add_review(jsonb)');

-- A coordinator
\c regress_setup_blog
CREATE EXTENSION tpc_amqp;
CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
	OPTIONS (host '127.0.0.1', port :'broker_port', vhost '/');
CREATE USER MAPPING FOR PUBLIC SERVER rabbit
	OPTIONS ("user" 'guest', password 'guest');
SELECT tpc_amqp.attach('rabbit', 'setup_blog');
CREATE TABLE blog (id int PRIMARY KEY, title text);

-- Both or none
BEGIN;
INSERT INTO blog VALUES (1, 'First');
SELECT tpc_amqp.call('setup_reviews', 'add_review', '{"blog_id": 1, "stars": 5}');
COMMIT;
BEGIN;
INSERT INTO blog VALUES (2, 'Second');
SELECT tpc_amqp.call('setup_reviews', 'add_review', '{"blog_id": 2, "stars": 6}');
\set SHOW_CONTEXT never
COMMIT;
SELECT * FROM blog ORDER BY id;
\c regress_setup_reviews
SELECT * FROM app.review ORDER BY id;
-- the other way round
\set SHOW_CONTEXT never
SELECT tpc_amqp.call('setup_blog', 'add_post');

\c postgres
DROP DATABASE regress_setup_blog;
DROP DATABASE regress_setup_reviews;
