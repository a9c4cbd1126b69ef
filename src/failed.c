/*-------------------------------------------------------------------------
 *
 * failed.c
 *	  Messages whose handler has failed.
 *
 * Such a message leaves the broker: it is written into table failed_message,
 * with the error, and acknowledged once that is durable.  So it holds up no
 * other, and whatever happens to the broker, it is tried again when it is due,
 * or waits for a person.
 *
 * That a run is about to begin is counted in a transaction of its own before
 * it, so that a message that ends the server is not run for ever.
 *
 * All of this runs in a transaction with a snapshot, which the caller has
 * begun as a superuser, and commits synchronously.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "consumed.h"
#include "failed.h"
#include "failpoint.h"
#include "properties.h"
#include "relation.h"
#include "subscription.h"

/* A run is not begun again by somebody else before that. */
#define LEASE_MS 1000
/* How long to put off a message of which another run is not finished. */
#define PUT_OFF_MIN_MS 1000
#define PUT_OFF_MAX_MS 60000

/* What a subscription says about errors. */
typedef struct Policy
{
	int			retries;
	int			workers;
	int64		backoff;
	int64		backoff_max;
	char	   *after;
	char	   *exchange;
	char	   *routing_key;
} Policy;

/* A text is laid out as a bytea is. */
static Datum
bytes_datum(const char *bytes, int len)
{
	return PointerGetDatum(cstring_to_text_with_len(bytes, len));
}

static char *
column_text(int n)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n);
}

static int64
column_int(int n)
{
	return strtoll(column_text(n), NULL, 10);
}

static char *
column_bytes(int n, int *len)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, n, &isnull);
	bytea	   *b;
	char	   *copy;

	*len = 0;
	if (isnull)
		return palloc0(1);
	b = DatumGetByteaPP(value);
	*len = VARSIZE_ANY_EXHDR(b);
	copy = palloc(*len + 1);
	memcpy(copy, VARDATA_ANY(b), *len);
	copy[*len] = '\0';
	return copy;
}

/* The policy of a queue's subscription; false if it has none (any more). */
static bool
read_policy(const char *queue, Policy *policy)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(queue)};

	tpc_spi_execute("SELECT retries, backoff, backoff_max, after_retries,"
					" dead_letter_exchange, dead_letter_routing_key, workers"
					" FROM tpc_amqp.subscription"
					" WHERE queue OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, false, SPI_OK_SELECT);
	if (SPI_processed == 0)
		return false;
	policy->retries = (int) column_int(1);
	policy->backoff = column_int(2);
	policy->backoff_max = column_int(3);
	policy->after = column_text(4);
	policy->exchange = column_text(5);
	policy->routing_key = column_text(6);
	policy->workers = (int) column_int(7);
	return true;
}

/* How long to wait after that many attempts. */
static int64
backoff_ms(const Policy *policy, int attempts)
{
	int64		ms = policy->backoff;

	for (int i = 1; i < attempts && ms < policy->backoff_max; i++)
		ms *= 2;
	return Min(ms, policy->backoff_max);
}

/* The values of columns sqlstate, error and detail; edata may be NULL. */
static void
error_values(const ErrorData *edata, Datum values[3], char nulls[3])
{
	if (edata == NULL)
	{
		memset(nulls, 'n', 3);
		return;
	}
	values[0] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[1] = CStringGetTextDatum(edata->message != NULL ?
									edata->message : "");
	if (edata->detail != NULL)
		values[2] = CStringGetTextDatum(edata->detail);
	else
		nulls[2] = 'n';
}

/*
 * insert: a row for a message, unless there is one with the same id.  edata
 * may be NULL.  False if there was.
 */
static bool
insert(const TpcMessageIn *m, const char *state, int attempts, int64 delay_ms,
	   const ErrorData *edata)
{
	Oid			types[] = {
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, BYTEAOID, BYTEAOID,
		TEXTOID, INT4OID, FLOAT8OID, TEXTOID, TEXTOID, TEXTOID, OIDOID
	};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	bool		dropped = strcmp(state, "dropped") == 0;

	memset(values, 0, sizeof(values));
	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[0] = CStringGetTextDatum(m->queue);
	if (m->message_id != NULL)
		values[1] = CStringGetTextDatum(m->message_id);
	else
		nulls[1] = 'n';
	values[2] = CStringGetTextDatum(m->exchange);
	values[3] = CStringGetTextDatum(m->routing_key);
	values[4] = BoolGetDatum(m->redelivered);
	if (dropped)
		nulls[5] = nulls[6] = 'n';
	else
	{
		values[5] = bytes_datum(m->properties, m->properties_len);
		values[6] = bytes_datum(m->body, m->body_len);
	}
	values[7] = CStringGetTextDatum(state);
	values[8] = Int32GetDatum(attempts);
	values[9] = Float8GetDatum(delay_ms / 1000.0);
	error_values(edata, &values[10], &nulls[10]);
	values[13] = ObjectIdGetDatum(MyDatabaseId);
	tpc_spi_execute("INSERT INTO tpc_amqp.failed_message"
					" (queue, message_id, exchange, routing_key, redelivered,"
					"  properties, body, state, attempts, next_attempt_at,"
					"  sqlstate, error, detail, failed_at, database)"
					" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
					"  CASE WHEN $8 OPERATOR(pg_catalog.=) 'retry' THEN"
					"   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)"
					"   pg_catalog.make_interval(secs => $10) END,"
					"  $11, $12, $13,"
					"  CASE WHEN $11 IS NOT NULL THEN"
					"   pg_catalog.clock_timestamp() END, $14)"
					" ON CONFLICT DO NOTHING",
					lengthof(types), types, values, nulls, false,
					SPI_OK_INSERT);
	return SPI_processed > 0;
}

/* The same for a message that has a row. */
static void
update(const TpcMessageIn *m, const char *state, int64 delay_ms,
	   const ErrorData *edata)
{
	Oid			types[] = {INT8OID, TEXTOID, FLOAT8OID, TEXTOID, TEXTOID,
	TEXTOID, BOOLOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];

	memset(values, 0, sizeof(values));
	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[0] = Int64GetDatum(m->failed_id);
	values[1] = CStringGetTextDatum(state);
	values[2] = Float8GetDatum(delay_ms / 1000.0);
	error_values(edata, &values[3], &nulls[3]);
	values[6] = BoolGetDatum(strcmp(state, "dropped") == 0);
	tpc_spi_execute("UPDATE tpc_amqp.failed_message SET state = $2,"
					" next_attempt_at ="
					"  CASE WHEN $2 OPERATOR(pg_catalog.=) 'retry' THEN"
					"   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)"
					"   pg_catalog.make_interval(secs => $3) END,"
					" sqlstate = CASE WHEN $4 IS NULL THEN sqlstate ELSE $4 END,"
					" error = CASE WHEN $4 IS NULL THEN error ELSE $5 END,"
					" detail = CASE WHEN $4 IS NULL THEN detail ELSE $6 END,"
					" failed_at = CASE WHEN $4 IS NULL THEN failed_at ELSE"
					"  pg_catalog.clock_timestamp() END,"
					" properties = CASE WHEN $7 THEN NULL ELSE properties END,"
					" body = CASE WHEN $7 THEN NULL ELSE body END"
					" WHERE id OPERATOR(pg_catalog.=) $1",
					lengthof(types), types, values, nulls, false,
					SPI_OK_UPDATE);
}

/* tpc_failed_remove: its message has taken effect, or has left otherwise. */
void
tpc_failed_remove(int64 id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};

	(void) tpc_spi_run("DELETE FROM tpc_amqp.failed_message"
					   " WHERE id OPERATOR(pg_catalog.=) $1",
					   1, types, values, NULL, false, SPI_OK_DELETE);
}

/*
 * publish: a dead letter, by the table of publish().  Its properties are those
 * of the message, but for who sent it, who it says it is of, and when it would
 * expire.
 */
static void
publish(const TpcMessageIn *m, const Policy *policy, const ErrorData *edata)
{
	Oid			types[] = {TEXTOID, TEXTOID, BYTEAOID, JSONBOID, TEXTOID,
	TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	struct varlena *properties = tpc_properties_decode(m->properties,
													   m->properties_len);

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[0] = CStringGetTextDatum(policy->exchange);
	values[1] = CStringGetTextDatum(policy->routing_key);
	values[2] = bytes_datum(m->body, m->body_len);
	values[3] = PointerGetDatum(properties);
	if (properties == NULL)
		nulls[3] = 'n';
	values[4] = CStringGetTextDatum(edata->message != NULL ?
									edata->message : "");
	values[5] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[6] = CStringGetTextDatum(m->queue);
	tpc_spi_execute("SELECT tpc_amqp.publish($1, $2, $3,"
					" (CASE WHEN (p OPERATOR(pg_catalog.->>) 'app_id')"
					"   OPERATOR(pg_catalog.=) 'tpc_amqp'"
					"  THEN p OPERATOR(pg_catalog.-) 'app_id'::pg_catalog.text"
					"  ELSE p END"
					"  OPERATOR(pg_catalog.-) 'user_id'::pg_catalog.text"
					"  OPERATOR(pg_catalog.-) 'expiration'::pg_catalog.text)"
					"  OPERATOR(pg_catalog.||)"
					"  pg_catalog.jsonb_build_object('headers',"
					"   COALESCE(p OPERATOR(pg_catalog.->) 'headers',"
					"    '{}'::pg_catalog.jsonb)"
					"   OPERATOR(pg_catalog.||)"
					"   pg_catalog.jsonb_build_object("
					"    'x-tpc-error', $5, 'x-tpc-sqlstate', $6,"
					"    'x-tpc-queue', $7)))"
					" FROM (SELECT COALESCE($4, '{}')) AS s (p)",
					lengthof(types), types, values, nulls, false,
					SPI_OK_SELECT);
}

/*
 * dead_letter: publish it, in a subtransaction; false, with the reason in
 * *why, if that fails.
 */
static bool
dead_letter(const TpcMessageIn *m, const Policy *policy,
			const ErrorData *edata, char **why)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = false;
	char	   *volatile reason = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		publish(m, policy, edata);
		ReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		reason = psprintf("It could not be dead-lettered: %s",
						  error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	*why = reason;
	return ok;
}

/*
 * put_off: another run of it is not finished.  Each time as long as the row has
 * been there, so twice as long.  counted: runs that are to be taken off again.
 * False if the row is not what the caller knows.  Connected to SPI.
 */
static bool
put_off(const TpcMessageIn *m, int counted)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID, FLOAT8OID, FLOAT8OID};
	Datum		values[] = {Int64GetDatum(m->failed_id),
		Int32GetDatum(m->attempt), Int32GetDatum(counted),
		Float8GetDatum(PUT_OFF_MIN_MS / 1000.0),
	Float8GetDatum(PUT_OFF_MAX_MS / 1000.0)};

	tpc_spi_execute("UPDATE tpc_amqp.failed_message SET"
					" attempts = attempts OPERATOR(pg_catalog.-) $3,"
					" next_attempt_at = pg_catalog.clock_timestamp()"
					"  OPERATOR(pg_catalog.+) pg_catalog.make_interval("
					"   secs => LEAST($5, GREATEST($4, EXTRACT(epoch FROM"
					"    pg_catalog.clock_timestamp()"
					"     OPERATOR(pg_catalog.-) received_at)"
					"    ::pg_catalog.float8)))"
					" WHERE id OPERATOR(pg_catalog.=) $1"
					"  AND attempts OPERATOR(pg_catalog.=) $2"
					"  AND state OPERATOR(pg_catalog.=) 'retry'",
					lengthof(types), types, values, NULL, false,
					SPI_OK_UPDATE);
	return SPI_processed > 0;
}

/*
 * tpc_failed_put_away: step S5 of a message that is to be run later, though
 * nothing has failed: one that has been delivered before may have ended the
 * server, so that its runs are to be counted; of another one, another run is
 * not finished (too_early), and this one does not count.  False if it has a row
 * that is not for this run to change.  *delay_ms: by when there may be
 * something to do.
 */
bool
tpc_failed_put_away(const TpcMessageIn *message, bool too_early,
					int64 *delay_ms)
{
	bool		ok;

	*delay_ms = too_early ? PUT_OFF_MIN_MS : 0;
	SPI_connect();
	if (message->failed_id == 0)
		ok = insert(message, "retry", 0, *delay_ms, NULL);
	else
		ok = put_off(message, 1);
	SPI_finish();
	return ok;
}

/*
 * tpc_failed_note: step S5: a run of a message has failed; put away what there
 * is to try again, or do what its subscription says for the last time (S7).
 * Of one to be tried again, *delay_ms says when.
 * TPC_FAILED_KNOWN if that is not for this run to say: its row was there, or
 * somebody has dropped it, or had it run anew, since.
 */
TpcFailedState
tpc_failed_note(const TpcMessageIn *message, const ErrorData *edata,
				int64 *delay_ms)
{
	Policy		policy;
	const char *state = "kept";
	TpcFailedState result = TPC_FAILED_KEPT;
	ErrorData	shown = *edata;

	*delay_ms = 0;
	if (message->failed_id != 0 && !tpc_failed_lock(message))
		return TPC_FAILED_KNOWN;
	SPI_connect();
	if (!read_policy(message->queue, &policy))
		;						/* unsubscribed since: it waits for a person */
	else if (message->attempt <= policy.retries)
	{
		state = "retry";
		result = TPC_FAILED_RETRY;
		*delay_ms = backoff_ms(&policy, message->attempt);
	}
	else if (strcmp(policy.after, "drop") == 0)
	{
		state = "dropped";
		result = TPC_FAILED_DROPPED;
	}
	else if (strcmp(policy.after, "dead-letter") == 0)
	{
		char	   *why;

		if (dead_letter(message, &policy, edata, &why))
			result = TPC_FAILED_DEAD_LETTERED;
		else
			shown.detail = why;
	}

	if (result == TPC_FAILED_DEAD_LETTERED)
	{
		if (message->failed_id != 0)
			tpc_failed_remove(message->failed_id);
	}
	else if (message->failed_id != 0)
		update(message, state, *delay_ms, &shown);
	else if (!insert(message, state, message->attempt, *delay_ms, &shown))
		result = TPC_FAILED_KNOWN;
	SPI_finish();
	return result;
}

/* tpc_failed_counter: what counts the messages that end so. */
TpcSubscriptionCounter
tpc_failed_counter(TpcFailedState state)
{
	switch (state)
	{
		case TPC_FAILED_DROPPED:
			return TPC_SUB_DROPPED;
		case TPC_FAILED_DEAD_LETTERED:
			return TPC_SUB_DEAD_LETTERED;
		default:
			return TPC_SUB_KEPT;
	}
}

/*
 * The rows that workers run.  Their locks do not say it all: between a run's
 * abort and the transaction that notes its failure, there is none.
 */
static Datum
rows_in_hand(TpcNode *node)
{
	Datum		ids[TPC_MAX_CONSUME_WORKERS];

	for (int i = 0; i < TPC_MAX_CONSUME_WORKERS; i++)
		ids[i] = Int64GetDatum((int64)
							   pg_atomic_read_u64(&node->consume[i].retrying));
	return PointerGetDatum(construct_array(ids, TPC_MAX_CONSUME_WORKERS,
										   INT8OID, 8, FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/*
 * tpc_failed_take_due: step S6: a message of this queue that is due for another
 * run, counted as begun, which the caller commits; in the caller's context.
 * NULL if there is none to run, or its subscription has just been given workers
 * of its own, or lost them: *other then says whether one was put away, so that
 * there may be more.  own_workers: what the caller takes for granted of that.  self
 * is the caller's place, which says what it has in hand; the caller clears that.
 */
TpcMessageIn *
tpc_failed_take_due(TpcNode *node, TpcWorker *self, const char *queue,
					bool own_workers, bool *other)
{
	MemoryContext caller = CurrentMemoryContext;
	TpcMessageIn *m = NULL;
	Policy		policy;
	Oid			types[] = {INT8OID, FLOAT8OID};
	Oid			due_types[] = {INT8ARRAYOID, TEXTOID};
	Datum		values[2];
	int64		delay;

	*other = false;
	SPI_connect();
	values[0] = rows_in_hand(node);
	values[1] = CStringGetTextDatum(queue);
	tpc_spi_execute("SELECT id, queue, message_id, exchange, routing_key,"
					" CASE WHEN redelivered THEN 1 ELSE 0 END,"
					" properties, body, attempts, sqlstate, error, detail"
					" FROM tpc_amqp.failed_message"
					" WHERE state OPERATOR(pg_catalog.=) 'retry'"
					"  AND next_attempt_at OPERATOR(pg_catalog.<=)"
					"   pg_catalog.clock_timestamp()"
					"  AND id OPERATOR(pg_catalog.<>) ALL ($1)"
					"  AND queue OPERATOR(pg_catalog.=) $2"
					" ORDER BY next_attempt_at LIMIT 1"
					" FOR UPDATE SKIP LOCKED",
					2, due_types, values, NULL, false, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		ErrorData	last;

		m = palloc0(sizeof(TpcMessageIn));
		m->failed_id = column_int(1);
		m->queue = column_text(2);
		m->message_id = column_text(3);
		m->exchange = column_text(4);
		m->routing_key = column_text(5);
		m->redelivered = column_int(6) != 0;
		m->properties = column_bytes(7, &m->properties_len);
		m->body = column_bytes(8, &m->body_len);
		m->attempt = (int) column_int(9);
		memset(&last, 0, sizeof(last));
		last.sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
		last.message = column_text(11);
		if (last.message != NULL)
		{
			char	   *sqlstate = column_text(10);

			last.sqlerrcode = MAKE_SQLSTATE(sqlstate[0], sqlstate[1],
											sqlstate[2], sqlstate[3],
											sqlstate[4]);
			last.detail = column_text(12);
		}
		else
			last.message = pstrdup("the process that ran its handler, or the server, has ended");

		MemoryContextSwitchTo(spi);
		if (!read_policy(m->queue, &policy))
		{
			update(m, "kept", 0, NULL);
			*other = true;
		}
		else if ((policy.workers > 0) != own_workers)
			m = NULL;
		else if (m->message_id != NULL &&
				 tpc_consumed_in_progress(m->queue, m->message_id))
		{
			put_off(m, 0);
			tpc_subscription_count(node, m->queue, TPC_SUB_DEFERRED);
			*other = true;
		}
		else if (m->attempt > policy.retries)
		{
			/* its last run did not end, not even in an error */
			TpcFailedState state;

			state = tpc_failed_note(m, &last, &delay);
			tpc_subscription_count(node, m->queue,
								   tpc_failed_counter(state));
			*other = true;
		}
		else
		{
			/* before our lock on the row ends */
			pg_atomic_write_u64(&self->retrying, (uint64) m->failed_id);
			m->attempt++;
			values[0] = Int64GetDatum(m->failed_id);
			values[1] = Float8GetDatum(Max(LEASE_MS,
										   backoff_ms(&policy, m->attempt)) /
									   1000.0);
			tpc_spi_execute("UPDATE tpc_amqp.failed_message SET"
							" attempts = attempts OPERATOR(pg_catalog.+) 1,"
							" next_attempt_at = pg_catalog.clock_timestamp()"
							"  OPERATOR(pg_catalog.+)"
							"  pg_catalog.make_interval(secs => $2)"
							" WHERE id OPERATOR(pg_catalog.=) $1",
							2, types, values, NULL, false, SPI_OK_UPDATE);
		}
	}
	SPI_finish();
	return *other ? NULL : m;
}

/*
 * tpc_failed_lock: in the transaction that runs it again, or notes that this
 * has failed: nobody else does, and nobody has dropped it.
 *
 * It waits for a lock, since a lock says nothing: who looks for what is due
 * locks rows for a moment that turn out to be taken.
 */
bool
tpc_failed_lock(const TpcMessageIn *message)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(message->failed_id),
	Int32GetDatum(message->attempt)};

	return tpc_spi_run("SELECT 1 FROM tpc_amqp.failed_message"
					   " WHERE id OPERATOR(pg_catalog.=) $1"
					   "  AND attempts OPERATOR(pg_catalog.=) $2"
					   "  AND state OPERATOR(pg_catalog.=) 'retry'"
					   " FOR UPDATE",
					   2, types, values, NULL, false, SPI_OK_SELECT) > 0;
}

/* Remember when something of each queue is due, as the table says. */
static void
note_due(TpcNode *node, const TpcDue *due, int n)
{
	dsa_pointer p;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	for (p = node->subscriptions; DsaPointerIsValid(p);)
	{
		TpcSubscription *sub = dsa_get_address(tpc_area(), p);

		sub->retry_at = DT_NOEND;
		for (int i = 0; i < n; i++)
		{
			if (sub->wanted && strcmp(sub->name, due[i].queue) == 0)
				sub->retry_at = due[i].at;
		}
		p = sub->next;
	}
	LWLockRelease(&node->subscriptions_lock);
}

/*
 * tpc_failed_due: per queue, when the first message is due for another run, in
 * this order, in the caller's context; and have the list of subscriptions say
 * so.  However many there are, it reads one per queue.
 */
TpcDue *
tpc_failed_due(TpcNode *node, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	TpcDue	   *due;
	bool		isnull;

	SPI_connect();
	tpc_spi_execute("WITH RECURSIVE q (queue) AS ("
					" SELECT pg_catalog.min(queue)"
					"  FROM tpc_amqp.failed_message"
					"  WHERE state OPERATOR(pg_catalog.=) 'retry'"
					" UNION ALL"
					" SELECT (SELECT pg_catalog.min(f.queue)"
					"   FROM tpc_amqp.failed_message f"
					"   WHERE f.state OPERATOR(pg_catalog.=) 'retry'"
					"    AND f.queue OPERATOR(pg_catalog.>) q.queue)"
					"  FROM q WHERE q.queue IS NOT NULL)"
					" SELECT queue, (SELECT pg_catalog.min(f.next_attempt_at)"
					"   FROM tpc_amqp.failed_message f"
					"   WHERE f.state OPERATOR(pg_catalog.=) 'retry'"
					"    AND f.queue OPERATOR(pg_catalog.=) q.queue) AS due"
					" FROM q WHERE queue IS NOT NULL ORDER BY due",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	*n = (int) SPI_processed;
	due = MemoryContextAlloc(caller, sizeof(TpcDue) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		due[i].queue = MemoryContextStrdup(caller, SPI_getvalue(row, desc, 1));
		due[i].at = DatumGetTimestampTz(SPI_getbinval(row, desc, 2, &isnull));
		if (isnull)
			due[i].at = DT_NOEND;
	}
	SPI_finish();
	note_due(node, due, *n);
	return due;
}
