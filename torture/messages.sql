-- Messages of one node: what was published here, and what has been consumed.
-- Both are written by the transactions that do it.  Neither table has a unique
-- key: what takes effect twice is to be seen.

CREATE TABLE bank.sent (
	m text NOT NULL,				-- the message; in its body, too
	part text NOT NULL,				-- a part of a transaction: these are in order
	n int NOT NULL,
	exchange text NOT NULL,
	routing_key text NOT NULL,
	fate text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE bank.taken (
	seq bigserial,
	queue text NOT NULL,
	message_id text,
	m text NOT NULL,
	fate text NOT NULL,
	by text,						-- the transfer that has taken it by hand
	echo text,						-- the node that is called about it
	redelivered boolean NOT NULL,
	runs int NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What others have consumed and called this node about.
CREATE TABLE bank.echo (queue text NOT NULL, m text NOT NULL);

-- Publish: {"part": …, "say": [{"n": 1, "exchange": "", "key": "inbox.a",
-- "fate": "plain"}, …]}.  If "id" is set, m is the message_id, too.
CREATE FUNCTION bank.say(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	s jsonb;
	m text;
BEGIN
	FOR s IN SELECT * FROM pg_catalog.jsonb_array_elements(arg->'say') LOOP
		m := (arg->>'part') || '/' || (s->>'n');
		INSERT INTO bank.sent (m, part, n, exchange, routing_key, fate)
		VALUES (m, arg->>'part', (s->>'n')::int, s->>'exchange', s->>'key',
				s->>'fate');
		PERFORM tpc_amqp.publish(s->>'exchange', s->>'key',
			s || pg_catalog.jsonb_build_object('m', m, 'part', arg->>'part',
				'pad', pg_catalog.repeat('x', (s->>'pad')::int)),
			CASE WHEN (s->>'id')::boolean
				THEN pg_catalog.jsonb_build_object('message_id', m)
				ELSE '{}' END,
			true);
	END LOOP;
END $$;

-- The handler of subscriptions.
CREATE FUNCTION bank.take(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	body jsonb := arg->'body';
	queue text := arg->>'queue';
	fate text := CASE WHEN queue = 'dead' THEN 'dead' ELSE body->>'fate' END;
BEGIN
	INSERT INTO bank.taken (queue, message_id, m, fate, echo, redelivered, runs)
	VALUES (queue, arg->'properties'->>'message_id', body->>'m', fate,
			CASE WHEN fate = 'call' THEN body->>'node' END,
			(arg->>'redelivered')::boolean, (arg->>'delivery_count')::int);
	IF fate = 'poison' OR (fate = 'flaky' AND pg_catalog.random() < 0.5) THEN
		RAISE EXCEPTION 'not to my taste' USING ERRCODE = 'P0001';
	ELSIF fate = 'slow' THEN
		PERFORM pg_catalog.pg_sleep(0.3);
	ELSIF fate = 'call' THEN
		PERFORM tpc_amqp.call(body->>'node', 'echo',
			pg_catalog.jsonb_build_object('queue', queue, 'm', body->>'m'));
	ELSIF fate = 'forward' THEN
		PERFORM bank.say(pg_catalog.jsonb_build_object(
			'part', (body->>'m') || '>' || queue, 'say', body->'next'));
	END IF;
END $$;

CREATE FUNCTION bank.echo(arg jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO bank.echo VALUES (arg->>'queue', arg->>'m') $$;

-- Take one message by hand; which one, or NULL.
CREATE FUNCTION bank.take_one(queue text, by text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	got record;
	body jsonb;
BEGIN
	SELECT * INTO got FROM tpc_amqp.get(queue);
	IF NOT FOUND THEN
		RETURN NULL;
	END IF;
	body := pg_catalog.convert_from(got.body, 'UTF8')::jsonb;
	INSERT INTO bank.taken (queue, message_id, m, fate, by, redelivered, runs)
	VALUES (queue, got.properties->>'message_id', body->>'m', body->>'fate',
			by, got.redelivered, 1);
	RETURN body->>'m';
END $$;

GRANT SELECT, INSERT ON bank.sent, bank.taken, bank.echo TO teller;
GRANT USAGE ON SEQUENCE bank.taken_seq_seq TO teller;
GRANT EXECUTE ON FUNCTION tpc_amqp.get TO teller;
GRANT EXECUTE ON FUNCTION tpc_amqp.publish(text, text, jsonb, jsonb, boolean)
	TO teller;

SELECT tpc_amqp.register_handler(f, ('bank.' || f || '(jsonb)')::regprocedure,
								 'teller')
	FROM unnest('{take,echo}'::text[]) f;
