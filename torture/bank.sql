-- The bank of one node: accounts, and a journal of what was moved and why.
-- Every transfer writes its rows in the same transaction that moves the money.
-- The journal has no unique key: what is applied twice is to be seen.

CREATE SCHEMA bank;

CREATE TABLE bank.account (
	id int PRIMARY KEY,
	balance bigint NOT NULL,
	CONSTRAINT enough CHECK (id % 2 = 0 OR balance >= 0)
) WITH (fillfactor = 50);

CREATE TABLE bank.journal (
	transfer text NOT NULL,
	leg int NOT NULL,
	account int NOT NULL,
	amount bigint NOT NULL
);
CREATE INDEX ON bank.journal (transfer);

-- What fails only when the transaction ends: before it is decided, after the
-- calls have been named.
CREATE TABLE bank.late (n int NOT NULL);
CREATE FUNCTION bank.too_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.n < 0 THEN
		RAISE EXCEPTION 'refused at the end' USING ERRCODE = 'P0002';
	END IF;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON bank.late
	DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION bank.too_late();

-- One leg: {"transfer": …, "leg": 1, "account": 2, "amount": -3}, and what to
-- publish with it (messages.sql).
CREATE FUNCTION bank.move(arg jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	UPDATE bank.account SET balance = balance + (arg->>'amount')::bigint
	WHERE id = (arg->>'account')::int;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'no account %', arg->>'account' USING ERRCODE = 'P0002';
	END IF;
	INSERT INTO bank.journal
	VALUES (arg->>'transfer', (arg->>'leg')::int, (arg->>'account')::int,
			(arg->>'amount')::bigint);
	IF arg ? 'say' THEN
		PERFORM bank.say(arg);
	END IF;
	IF arg ? 'sleep' THEN
		PERFORM pg_catalog.pg_sleep((arg->>'sleep')::float8);
	END IF;
	RETURN 'moved';
END $$;

-- A leg here, and further ones elsewhere: a tree.
CREATE FUNCTION bank.relay(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bank.move(arg);
	PERFORM tpc_amqp.call(n->>'node', n->>'handler', n->'arg')
	FROM pg_catalog.jsonb_array_elements(arg->'next') n;
END $$;

CREATE FUNCTION bank.look(arg jsonb) RETURNS bigint LANGUAGE sql AS
	$$ SELECT sum(balance)::bigint FROM bank.account $$;

CREATE FUNCTION bank.refuse(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bank.move(arg);
	RAISE EXCEPTION 'refused' USING ERRCODE = 'P0001';
END $$;

CREATE FUNCTION bank.refuse_late(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bank.move(arg);
	INSERT INTO bank.late VALUES (-1);
END $$;

GRANT USAGE ON SCHEMA bank, tpc_amqp TO teller;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA bank TO teller;
GRANT EXECUTE ON FUNCTION tpc_amqp.call, tpc_amqp.enlist, tpc_amqp.join TO teller;

SELECT tpc_amqp.register_handler(f, ('bank.' || f || '(jsonb)')::regprocedure, 'teller')
	FROM unnest('{move,relay,look,refuse,refuse_late}'::text[]) f;
