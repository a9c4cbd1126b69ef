/* tpc_amqp--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION tpc_amqp" to load this file. \quit

--
-- Tables.  The C code is their only writer.
--

-- The node this database is, if it is attached.  Not dumped: a copy restored
-- from a dump stays detached until it is attached anew.
CREATE TABLE tpc_amqp.local_node (
	name text COLLATE "C" NOT NULL,
	server name NOT NULL,
	attached_by oid NOT NULL,
	attached_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX local_node_one_row ON tpc_amqp.local_node ((true));

-- Every run of this node, so that it knows which transactions are its own:
-- those of a copy's original are not.
CREATE TABLE tpc_amqp.incarnation (
	incarnation bigint NOT NULL,
	node text COLLATE "C" NOT NULL,
	system_identifier numeric NOT NULL,
	database oid NOT NULL,
	timeline bigint NOT NULL,
	started_at timestamptz NOT NULL,
	forgotten uuid,
	CONSTRAINT incarnation_pkey PRIMARY KEY (incarnation)
);

-- Global transactions that committed and are not acknowledged by all.  users
-- are the broker users that voted for the participants, '' where the vote was
-- not in at PREPARE; gid is that of the transaction, if it was prepared;
-- enlisted are those participants that the application prepares.
CREATE TABLE tpc_amqp.decision (
	gtid uuid NOT NULL,
	participants text[] COLLATE "C" NOT NULL,
	users text[] COLLATE "C" NOT NULL,
	acked text[] COLLATE "C" NOT NULL,
	decided_at timestamptz NOT NULL,
	gid text COLLATE "C",
	enlisted text[] COLLATE "C",
	CONSTRAINT decision_pkey PRIMARY KEY (gtid)
);

-- Branches that took effect here (while prepared: will, if they commit).
-- sender is the broker user whose prepare it was, '' if the application joined.
CREATE TABLE tpc_amqp.branch (
	coordinator text COLLATE "C" NOT NULL,
	gtid uuid NOT NULL,
	gid text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,
	prepared_at timestamptz NOT NULL,
	CONSTRAINT branch_pkey PRIMARY KEY (coordinator, gtid)
);

-- Per coordinator (and broker user, so that nobody else can speak for it): all
-- its transactions below are closed, and their rows in branch may be gone.
CREATE TABLE tpc_amqp.floor (
	coordinator text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,
	gtid uuid NOT NULL,
	CONSTRAINT floor_pkey PRIMARY KEY (coordinator, sender)
);

-- What a person has decided about branches in doubt, until they are closed.
-- answered: the coordinator's decision has been heard since.
CREATE TABLE tpc_amqp.heuristic (
	coordinator text COLLATE "C" NOT NULL,
	gtid uuid NOT NULL,
	commit boolean NOT NULL,
	forced_at timestamptz NOT NULL,
	forced_by name NOT NULL,
	answered boolean NOT NULL DEFAULT false,
	CONSTRAINT heuristic_pkey PRIMARY KEY (coordinator, gtid)
);

CREATE TABLE tpc_amqp.handler (
	name text COLLATE "C" NOT NULL,
	function text NOT NULL,
	run_as regrole NOT NULL,
	callers text[] COLLATE "C",
	kind text COLLATE "C",
	workers integer,
	CONSTRAINT handler_pkey PRIMARY KEY (name)
);
SELECT pg_catalog.pg_extension_config_dump('tpc_amqp.handler', '');

-- What a person has to look at.
CREATE TABLE tpc_amqp.incident (
	gtid text COLLATE "C" NOT NULL,
	kind text COLLATE "C" NOT NULL,
	node text COLLATE "C" NOT NULL,
	first_at timestamptz NOT NULL,
	last_at timestamptz NOT NULL,
	detail text NOT NULL,
	CONSTRAINT incident_pkey PRIMARY KEY (gtid, kind, node)
);

--
-- The foreign data wrapper: it names brokers, it reads no tables.
--

CREATE FUNCTION tpc_amqp.tpc_amqp_validator(text[], oid)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_amqp_validator'
LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tpc_amqp.tpc_amqp_validator(text[], oid) IS
'validates the options of servers and user mappings';

CREATE FOREIGN DATA WRAPPER tpc_amqp
	NO HANDLER
	VALIDATOR tpc_amqp.tpc_amqp_validator;
COMMENT ON FOREIGN DATA WRAPPER tpc_amqp IS
'servers of this wrapper are RabbitMQ brokers';

--
-- Functions
--

CREATE FUNCTION tpc_amqp.attach(server name, node text DEFAULT pg_catalog.current_database())
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_attach'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.attach(name, text) IS
'make this database a node, over the broker the server names';

CREATE FUNCTION tpc_amqp.detach()
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_detach'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.detach() IS
'end being a node, and stop the workers';

CREATE FUNCTION tpc_amqp.register_handler(name text, function regprocedure,
	run_as regrole DEFAULT NULL, callers text[] DEFAULT NULL,
	kind text DEFAULT NULL, workers integer DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_register_handler'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.register_handler(text, regprocedure, regrole, text[], text, integer) IS
'let other nodes call a function of this database by a name';

CREATE FUNCTION tpc_amqp.unregister_handler(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_unregister_handler'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.unregister_handler(text) IS
'take a handler back';

CREATE FUNCTION tpc_amqp.call(node text, handler text, arg jsonb DEFAULT 'null',
	kind text DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_call'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.call(text, text, jsonb, text) IS
'have a handler of another node run as part of this transaction, at COMMIT';

CREATE FUNCTION tpc_amqp.own_queues(participant text)
RETURNS text
AS 'MODULE_PATHNAME', 'tpc_own_queues'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.own_queues(text) IS
'give this transaction queues of its own, by which that participant is reached; the uuid in their names';

CREATE FUNCTION tpc_amqp.enlist(node text)
RETURNS text
AS 'MODULE_PATHNAME', 'tpc_enlist'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.enlist(text) IS
'expect a branch that the application prepares on another node; the id to join there';

CREATE FUNCTION tpc_amqp.join(gtid text)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_join'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.join(text) IS
'make this transaction a branch of one that another node coordinates';

CREATE FUNCTION tpc_amqp.gtid()
RETURNS text
AS 'MODULE_PATHNAME', 'tpc_gtid'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.gtid() IS
'the current global transaction, or NULL';

CREATE FUNCTION tpc_amqp.outcome(gtid text)
RETURNS text
AS 'MODULE_PATHNAME', 'tpc_outcome'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.outcome(text) IS
'what became of a global transaction: pending, committed, aborted or unknown';

CREATE FUNCTION tpc_amqp.resolve(gtid text DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_resolve'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.resolve(text) IS
'send decisions and inquiries that are due again, now';

CREATE FUNCTION tpc_amqp.force(gtid text, outcome text)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_force'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.force(text, text) IS
'commit or rollback a branch in doubt without its coordinator';

CREATE FUNCTION tpc_amqp.forget(gtid text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_forget'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.forget(text) IS
'drop the record of a committed transaction that a participant will never acknowledge, and incidents of it';

CREATE FUNCTION tpc_amqp.stat_reset()
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_stat_reset'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.stat_reset() IS
'set the counters of this node to zero';

--
-- Views
--

CREATE FUNCTION tpc_amqp.node_state(
	OUT name text, OUT state text, OUT broker text,
	OUT connected_since timestamptz, OUT blocked boolean,
	OUT last_error text, OUT last_error_at timestamptz,
	OUT incarnation bigint, OUT timeline bigint, OUT messenger_pid integer,
	OUT prepare_pids integer[], OUT resolve_pids integer[])
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_node_state'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION tpc_amqp.node_state() IS 'what view node shows';

CREATE VIEW tpc_amqp.node AS
	SELECT * FROM tpc_amqp.node_state();
COMMENT ON VIEW tpc_amqp.node IS
'this database as a node: broker, connection, workers';

CREATE FUNCTION tpc_amqp.live_transactions(
	OUT gtid text, OUT state text, OUT participants text[],
	OUT votes integer, OUT missing text[], OUT started timestamptz,
	OUT decided timestamptz, OUT pid integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_transactions'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION tpc_amqp.live_transactions() IS
'the transactions this node has in memory';

CREATE FUNCTION tpc_amqp.gtid_text(gtid uuid)
RETURNS text
AS 'MODULE_PATHNAME', 'tpc_gtid_text'
LANGUAGE C STRICT STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION tpc_amqp.gtid_text(uuid) IS
'a transaction of this node, as gtid() shows it';

CREATE FUNCTION tpc_amqp.finished_transactions(OUT gtid uuid)
RETURNS SETOF uuid
AS 'MODULE_PATHNAME', 'tpc_finished_transactions'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1000;
COMMENT ON FUNCTION tpc_amqp.finished_transactions() IS
'committed transactions that all have acknowledged, kept for outcome()';

CREATE VIEW tpc_amqp.transactions AS
	WITH live AS MATERIALIZED (
		SELECT * FROM tpc_amqp.live_transactions()
	), finished AS MATERIALIZED (
		SELECT DISTINCT f.gtid FROM tpc_amqp.finished_transactions() f
	), recorded AS MATERIALIZED (
		SELECT tpc_amqp.gtid_text(d.gtid) AS gtid, d.participants, d.acked,
			   d.decided_at, f.gtid IS NOT NULL AS finished
		FROM tpc_amqp.decision d
		LEFT JOIN finished f ON f.gtid OPERATOR(pg_catalog.=) d.gtid
	)
	SELECT l.gtid, l.state, l.participants, l.votes, l.missing, l.started,
		   l.decided,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) l.started AS age,
		   l.pid
	FROM live l
	UNION ALL
	SELECT r.gtid,
		   CASE WHEN r.finished THEN 'finished' ELSE 'committed' END,
		   r.participants, NULL,
		   CASE WHEN r.finished THEN '{}'
				ELSE ARRAY(SELECT p.node
						   FROM pg_catalog.unnest(r.participants) WITH ORDINALITY AS p (node, i)
						   WHERE p.node OPERATOR(pg_catalog.<>) ALL (r.acked)
						   ORDER BY p.i)
		   END,
		   NULL, r.decided_at,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.decided_at,
		   NULL
	FROM recorded r
	LEFT JOIN live l ON l.gtid OPERATOR(pg_catalog.=) r.gtid
	WHERE l.gtid IS NULL;
COMMENT ON VIEW tpc_amqp.transactions IS
'global transactions this node coordinates';

CREATE FUNCTION tpc_amqp.live_participants(
	OUT gtid text, OUT gid text, OUT node text, OUT kind text, OUT vote text,
	OUT sqlstate text, OUT message text, OUT results text[],
	OUT acked boolean)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_participants'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION tpc_amqp.live_participants() IS
'what view participants shows';

CREATE VIEW tpc_amqp.participants AS
	SELECT * FROM tpc_amqp.live_participants();
COMMENT ON VIEW tpc_amqp.participants IS
'the participants of transactions this node coordinates, and their votes';

CREATE FUNCTION tpc_amqp.live_branches(
	OUT gtid text, OUT coordinator text, OUT state text, OUT gid text,
	OUT since timestamptz, OUT pid integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_branches'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION tpc_amqp.live_branches() IS
'the branches of this node that are queued, running or prepared';

CREATE VIEW tpc_amqp.branches AS
	SELECT b.gtid, b.coordinator, b.state, b.gid, b.since,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) b.since AS age, b.pid,
		   CASE WHEN i.detail IS NOT NULL THEN i.detail
				WHEN b.state OPERATOR(pg_catalog.=) 'prepared'
				THEN pg_catalog.format('waiting for the decision of node "%s"', b.coordinator)
				WHEN b.state OPERATOR(pg_catalog.=) 'queued'
				THEN 'waiting for a prepare worker'
		   END AS waiting
	FROM tpc_amqp.live_branches() b
	LEFT JOIN tpc_amqp.incident i
		ON i.gtid OPERATOR(pg_catalog.=) b.gtid
		AND i.kind OPERATOR(pg_catalog.=) 'unknown';
COMMENT ON VIEW tpc_amqp.branches IS
'branches of global transactions that are queued, running or prepared here';

CREATE VIEW tpc_amqp.incidents AS
	SELECT i.gtid, i.kind, i.node, i.first_at, i.last_at, i.detail
	FROM tpc_amqp.incident i;
COMMENT ON VIEW tpc_amqp.incidents IS
'transactions whose outcome a person has to look at';

CREATE VIEW tpc_amqp.handlers AS
	SELECT h.name, h.function, h.run_as, h.callers, h.kind, h.workers
	FROM tpc_amqp.handler h;
COMMENT ON VIEW tpc_amqp.handlers IS
'functions other nodes may call';

CREATE FUNCTION tpc_amqp.node_stat(
	OUT commits bigint, OUT aborts bigint, OUT timeouts bigint,
	OUT prepares_sent bigint, OUT prepares_returned bigint,
	OUT votes_yes bigint, OUT votes_no bigint, OUT votes_read_only bigint,
	OUT commits_sent bigint, OUT rollbacks_sent bigint,
	OUT decisions_resent bigint, OUT acks bigint, OUT forgotten bigint,
	OUT inquiries bigint,
	OUT prepares bigint, OUT branches_prepared bigint,
	OUT branches_read_only bigint, OUT branches_refused bigint,
	OUT branches_committed bigint, OUT branches_rolled_back bigint,
	OUT inquiries_sent bigint, OUT duplicates bigint,
	OUT bad_messages bigint, OUT connects bigint,
	OUT messages_sent bigint, OUT messages_received bigint,
	OUT publishes bigint, OUT socket_writes bigint,
	OUT published bigint, OUT republished bigint, OUT confirmed bigint,
	OUT rejected bigint, OUT overdue bigint,
	OUT returned bigint, OUT refused bigint,
	OUT prepare_wait_time double precision,
	OUT apply_wait_time double precision,
	OUT stats_reset timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_node_stat'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION tpc_amqp.node_stat() IS 'what view stat shows';

CREATE VIEW tpc_amqp.stat AS
	SELECT * FROM tpc_amqp.node_stat();
COMMENT ON VIEW tpc_amqp.stat IS
'counters of this node since stats_reset; times in milliseconds';

--
-- Messages that have taken effect here, by get() or a subscription: one that
-- comes again is not taken again.
--

CREATE TABLE tpc_amqp.consumed (
	queue text COLLATE "C" NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	consumed_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT consumed_pkey PRIMARY KEY (queue, message_id)
);

--
-- The broker's objects: these act at once, and are not taken back if the
-- transaction rolls back.
--

CREATE FUNCTION tpc_amqp.declare_queue(queue text DEFAULT '',
	passive boolean DEFAULT false, durable boolean DEFAULT true,
	exclusive boolean DEFAULT false, auto_delete boolean DEFAULT false,
	arguments jsonb DEFAULT '{}',
	OUT name text, OUT messages bigint, OUT consumers bigint)
AS 'MODULE_PATHNAME', 'tpc_declare_queue'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.declare_queue(text, boolean, boolean, boolean, boolean, jsonb) IS
'have the broker make a queue, or look whether it is there';

CREATE FUNCTION tpc_amqp.delete_queue(queue text,
	if_unused boolean DEFAULT false, if_empty boolean DEFAULT false)
RETURNS bigint
AS 'MODULE_PATHNAME', 'tpc_delete_queue'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.delete_queue(text, boolean, boolean) IS
'have the broker delete a queue; the number of messages it had';

CREATE FUNCTION tpc_amqp.purge_queue(queue text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'tpc_purge_queue'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.purge_queue(text) IS
'have the broker empty a queue; the number of messages it had';

CREATE FUNCTION tpc_amqp.bind_queue(queue text, exchange text,
	routing_key text DEFAULT '', arguments jsonb DEFAULT '{}')
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_bind_queue'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.bind_queue(text, text, text, jsonb) IS
'have an exchange of the broker''s send messages to a queue';

CREATE FUNCTION tpc_amqp.unbind_queue(queue text, exchange text,
	routing_key text DEFAULT '', arguments jsonb DEFAULT '{}')
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_unbind_queue'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.unbind_queue(text, text, text, jsonb) IS
'take a binding back';

CREATE FUNCTION tpc_amqp.declare_exchange(exchange text,
	type text DEFAULT 'direct', passive boolean DEFAULT false,
	durable boolean DEFAULT true, auto_delete boolean DEFAULT false,
	internal boolean DEFAULT false, arguments jsonb DEFAULT '{}')
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_declare_exchange'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.declare_exchange(text, text, boolean, boolean, boolean, boolean, jsonb) IS
'have the broker make an exchange, or look whether it is there';

CREATE FUNCTION tpc_amqp.delete_exchange(exchange text,
	if_unused boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_delete_exchange'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.delete_exchange(text, boolean) IS
'have the broker delete an exchange';

-- One message by hand: acknowledged by the commit.
CREATE FUNCTION tpc_amqp.get(queue text, auto_ack boolean DEFAULT false,
	OUT body bytea, OUT properties jsonb, OUT routing_key text,
	OUT exchange text, OUT redelivered boolean, OUT messages bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_get'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION tpc_amqp.get(text, boolean) IS
'take one message of a queue, for good if this transaction commits';

CREATE FUNCTION tpc_amqp.live_requests(
	OUT pid integer, OUT state text, OUT request text, OUT object text,
	OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_requests'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION tpc_amqp.live_requests() IS
'what view requests shows';

CREATE VIEW tpc_amqp.requests AS
	SELECT * FROM tpc_amqp.live_requests();
COMMENT ON VIEW tpc_amqp.requests IS
'what sessions of this database ask of the broker, or have of it';

--
-- Publishing
--

-- Messages to be sent once their transaction has committed, until the broker
-- has confirmed them.  Not dumped: what a restored copy has not published, its
-- original does.  database: a copy made with CREATE DATABASE is another one.
CREATE TABLE tpc_amqp.publication (
	id bigint GENERATED ALWAYS AS IDENTITY,
	database oid NOT NULL,
	exchange text COLLATE "C" NOT NULL,
	routing_key text COLLATE "C" NOT NULL,
	body bytea NOT NULL,
	properties bytea NOT NULL,
	mandatory boolean NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	published_at timestamptz NOT NULL,
	CONSTRAINT publication_pkey PRIMARY KEY (id)
);

-- Messages that came back, or that the broker refused.  Not dumped either.
CREATE TABLE tpc_amqp.returned (
	id bigint NOT NULL,
	exchange text COLLATE "C" NOT NULL,
	routing_key text COLLATE "C" NOT NULL,
	body bytea NOT NULL,
	properties bytea NOT NULL,
	mandatory boolean NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	published_at timestamptz NOT NULL,
	kind text COLLATE "C" NOT NULL,
	code integer,
	reason text NOT NULL,
	returned_at timestamptz NOT NULL,
	CONSTRAINT returned_pkey PRIMARY KEY (id)
);

CREATE FUNCTION tpc_amqp.publish(exchange text, routing_key text, body text,
	properties jsonb DEFAULT '{}', mandatory boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_publish_text'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.publish(text, text, text, jsonb, boolean) IS
'publish a text if this transaction commits, and after that';

CREATE FUNCTION tpc_amqp.publish(exchange text, routing_key text, body jsonb,
	properties jsonb DEFAULT '{}', mandatory boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_publish_jsonb'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.publish(text, text, jsonb, jsonb, boolean) IS
'publish a JSON text if this transaction commits, and after that';

CREATE FUNCTION tpc_amqp.publish(exchange text, routing_key text, body bytea,
	properties jsonb DEFAULT '{}', mandatory boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_publish_bytea'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.publish(text, text, bytea, jsonb, boolean) IS
'publish bytes if this transaction commits, and after that';

CREATE FUNCTION tpc_amqp.republish(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_republish'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.republish(bigint) IS
'publish a returned message again, as part of this transaction; false if there is none';

CREATE FUNCTION tpc_amqp.discard(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_discard'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.discard(bigint) IS
'delete a returned message; false if there is none';

CREATE FUNCTION tpc_amqp.properties_jsonb(properties bytea)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'tpc_properties_jsonb'
LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tpc_amqp.properties_jsonb(bytea) IS
'AMQP properties as jsonb, for views';

CREATE FUNCTION tpc_amqp.live_publications(OUT id bigint, OUT state text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_publications'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION tpc_amqp.live_publications() IS
'the messages that the messenger has';

CREATE VIEW tpc_amqp.publications AS
	WITH live AS MATERIALIZED (
		SELECT l.id, l.state FROM tpc_amqp.live_publications() l
	)
	SELECT p.id, p.exchange, p.routing_key, p.message_id,
		   pg_catalog.octet_length(p.body) AS size,
		   COALESCE(l.state, 'waiting') AS state, p.published_at,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) p.published_at AS age
	FROM tpc_amqp.publication p
	LEFT JOIN live l ON l.id OPERATOR(pg_catalog.=) p.id
	WHERE p.database OPERATOR(pg_catalog.=) (
		SELECT d.oid FROM pg_catalog.pg_database d
		WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database());
COMMENT ON VIEW tpc_amqp.publications IS
'messages the broker has not confirmed yet';

CREATE VIEW tpc_amqp.returned_messages AS
	SELECT r.id, r.kind, r.code, r.reason, r.returned_at, r.exchange,
		   r.routing_key, r.body,
		   tpc_amqp.properties_jsonb(r.properties) AS properties, r.mandatory,
		   r.message_id, r.published_at
	FROM tpc_amqp.returned r;
COMMENT ON VIEW tpc_amqp.returned_messages IS
'messages no queue took, or the broker refused';

REVOKE ALL ON FUNCTION
	tpc_amqp.publish(text, text, text, jsonb, boolean),
	tpc_amqp.publish(text, text, jsonb, jsonb, boolean),
	tpc_amqp.publish(text, text, bytea, jsonb, boolean),
	tpc_amqp.republish(bigint), tpc_amqp.discard(bigint),
	tpc_amqp.live_publications() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tpc_amqp.live_publications() TO pg_monitor;
GRANT SELECT ON tpc_amqp.publications TO pg_monitor;

--
-- Subscriptions: which queues are consumed, and what became of messages whose
-- handler failed.  The first is configuration, dumped as handlers are.
--

-- Times in milliseconds.  run_as: what the handler ran as when it was
-- subscribed; one that somebody else registers by its name is not meant.
CREATE TABLE tpc_amqp.subscription (
	queue text COLLATE "C" NOT NULL,
	handler text COLLATE "C" NOT NULL,
	run_as regrole NOT NULL,
	auto_ack boolean NOT NULL,
	exclusive boolean NOT NULL,
	consumer_tag text COLLATE "C" NOT NULL,
	arguments jsonb NOT NULL,
	prefetch integer NOT NULL,
	workers integer NOT NULL,
	retries integer NOT NULL,
	backoff bigint NOT NULL,
	backoff_max bigint NOT NULL,
	after_retries text COLLATE "C" NOT NULL,
	dead_letter_exchange text COLLATE "C",
	dead_letter_routing_key text COLLATE "C",
	generation uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	CONSTRAINT subscription_pkey PRIMARY KEY (queue)
);
SELECT pg_catalog.pg_extension_config_dump('tpc_amqp.subscription', '');

-- Messages that have left the broker without having taken effect.  state is
-- retry (it is run again), kept (it waits for a person) or dropped (it is
-- gone, its body too).  database: as in publication.
CREATE TABLE tpc_amqp.failed_message (
	id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
	database oid NOT NULL,
	queue text COLLATE "C" NOT NULL,
	message_id text COLLATE "C",
	exchange text COLLATE "C" NOT NULL,
	routing_key text COLLATE "C" NOT NULL,
	redelivered boolean NOT NULL,
	properties bytea,
	body bytea,
	state text COLLATE "C" NOT NULL,
	attempts integer NOT NULL,
	received_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	next_attempt_at timestamptz,
	sqlstate text COLLATE "C",
	error text,
	detail text,
	failed_at timestamptz,
	CONSTRAINT failed_message_pkey PRIMARY KEY (id)
);
CREATE UNIQUE INDEX failed_message_once
	ON tpc_amqp.failed_message (queue, message_id)
	WHERE message_id IS NOT NULL AND state OPERATOR(pg_catalog.<>) 'dropped';
CREATE INDEX failed_message_due
	ON tpc_amqp.failed_message (queue, next_attempt_at)
	WHERE state OPERATOR(pg_catalog.=) 'retry';

-- For the relay, which removes the oldest rows: small, and hardly a cost.
CREATE INDEX consumed_at ON tpc_amqp.consumed USING brin (consumed_at);

CREATE FUNCTION tpc_amqp.subscribe(queue text, handler text,
	auto_ack boolean DEFAULT false, exclusive boolean DEFAULT false,
	consumer_tag text DEFAULT '', arguments jsonb DEFAULT '{}',
	prefetch integer DEFAULT 10, on_error jsonb DEFAULT '{}',
	workers integer DEFAULT 0)
RETURNS void
AS 'MODULE_PATHNAME', 'tpc_subscribe'
LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.subscribe(text, text, boolean, boolean, text, jsonb, integer, jsonb, integer) IS
'run a handler for each message of a queue';

CREATE FUNCTION tpc_amqp.unsubscribe(queue text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_unsubscribe'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.unsubscribe(text) IS
'end the subscription of a queue; false if it has none';

CREATE FUNCTION tpc_amqp.retry_message(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_retry_message'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.retry_message(bigint) IS
'run a message of view failed_messages again';

CREATE FUNCTION tpc_amqp.drop_message(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'tpc_drop_message'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tpc_amqp.drop_message(bigint) IS
'forget a message of view failed_messages';

CREATE FUNCTION tpc_amqp.live_subscriptions(
	OUT generation uuid, OUT state text, OUT consumer_tag text,
	OUT waiting integer, OUT running integer,
	OUT processed bigint, OUT duplicates bigint, OUT failed bigint,
	OUT retried bigint, OUT dead_lettered bigint, OUT kept bigint,
	OUT dropped bigint, OUT rejected bigint, OUT deferred bigint,
	OUT lag bigint, OUT lag_at timestamptz,
	OUT last_sqlstate text, OUT last_error text,
	OUT last_error_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'tpc_live_subscriptions'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION tpc_amqp.live_subscriptions() IS
'the subscriptions this node has in memory';

CREATE VIEW tpc_amqp.subscriptions AS
	SELECT s.queue, s.handler, COALESCE(l.state, 'inactive') AS state,
		   COALESCE(l.consumer_tag, s.consumer_tag) AS consumer_tag,
		   s.auto_ack, s.exclusive, s.prefetch, s.workers,
		   l.waiting, l.running, l.processed, l.duplicates, l.failed,
		   l.retried, l.dead_lettered, l.kept, l.dropped, l.rejected,
		   l.deferred, l.lag, l.lag_at, l.last_sqlstate, l.last_error, l.last_error_at
	FROM tpc_amqp.subscription s
	LEFT JOIN tpc_amqp.live_subscriptions() l
		ON l.generation OPERATOR(pg_catalog.=) s.generation;
COMMENT ON VIEW tpc_amqp.subscriptions IS
'the queues that are consumed; counts since the server, or the subscription, has begun';

CREATE VIEW tpc_amqp.failed_messages AS
	SELECT f.id, f.queue, f.message_id, f.exchange, f.routing_key, f.state,
		   f.attempts, f.received_at, f.next_attempt_at, f.sqlstate, f.error,
		   f.detail, f.failed_at, pg_catalog.octet_length(f.body) AS size
	FROM tpc_amqp.failed_message f
	WHERE f.database OPERATOR(pg_catalog.=) (
		SELECT d.oid FROM pg_catalog.pg_database d
		WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database());
COMMENT ON VIEW tpc_amqp.failed_messages IS
'messages whose handler failed: to be run again, kept, or dropped';

REVOKE ALL ON FUNCTION tpc_amqp.subscribe(text, text, boolean, boolean, text, jsonb, integer, jsonb, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.unsubscribe(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.retry_message(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.drop_message(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.live_subscriptions() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tpc_amqp.live_subscriptions() TO pg_monitor;
GRANT SELECT ON tpc_amqp.subscriptions, tpc_amqp.failed_messages TO pg_monitor;

--
-- Who may do what.  A role that is to call other nodes gets USAGE on the
-- schema and EXECUTE on call.
--

REVOKE ALL ON FUNCTION tpc_amqp.attach(name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.detach() FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.register_handler(text, regprocedure, regrole, text[], text, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.unregister_handler(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.call(text, text, jsonb, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.enlist(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.own_queues(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.join(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.force(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.resolve(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.forget(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.stat_reset() FROM PUBLIC;

REVOKE ALL ON FUNCTION tpc_amqp.node_state(), tpc_amqp.live_transactions(),
	tpc_amqp.finished_transactions(), tpc_amqp.live_branches(),
	tpc_amqp.live_participants(),
	tpc_amqp.node_stat(), tpc_amqp.gtid_text(uuid) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION tpc_amqp.node_state(), tpc_amqp.live_transactions(),
	tpc_amqp.finished_transactions(), tpc_amqp.live_branches(),
	tpc_amqp.live_participants(),
	tpc_amqp.node_stat(), tpc_amqp.gtid_text(uuid) TO pg_monitor;
GRANT USAGE ON SCHEMA tpc_amqp TO pg_monitor;
GRANT SELECT ON tpc_amqp.node, tpc_amqp.transactions, tpc_amqp.branches,
	tpc_amqp.participants,
	tpc_amqp.incidents, tpc_amqp.handlers, tpc_amqp.stat TO pg_monitor;

REVOKE ALL ON FUNCTION tpc_amqp.declare_queue(text, boolean, boolean, boolean, boolean, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.delete_queue(text, boolean, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.purge_queue(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.bind_queue(text, text, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.unbind_queue(text, text, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.declare_exchange(text, text, boolean, boolean, boolean, boolean, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.delete_exchange(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.get(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION tpc_amqp.live_requests() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tpc_amqp.live_requests() TO pg_monitor;
GRANT SELECT ON tpc_amqp.requests TO pg_monitor;
