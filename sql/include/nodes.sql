--
-- Databases of this cluster as nodes blog, reviews and audit, made by whoever
-- comes first and then left there.  Ends connected to the first.
--
\set ON_ERROR_STOP on
\getenv broker_port TPC_BROKER_PORT
\getenv srcdir PG_ABS_SRCDIR
\set make_node :srcdir '/sql/include/node.sql'
\set node audit
\i :make_node
\set node reviews
\i :make_node
\set node blog
\i :make_node
\set ON_ERROR_STOP off
