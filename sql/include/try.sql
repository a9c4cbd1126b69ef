--
-- pg_temp.try(statement): what a statement ends in, with its SQLSTATE.
--
CREATE FUNCTION pg_temp.try(statement text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN NEXT 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN NEXT format('%s: %s', SQLSTATE, message);
	IF detail <> '' THEN RETURN NEXT '  DETAIL: ' || detail; END IF;
	IF hint <> '' THEN RETURN NEXT '  HINT: ' || hint; END IF;
END $$;
