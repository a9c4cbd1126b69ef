/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *	  Subscriptions as SQL and the relay see them.
 *
 * A subscription is a row, configuration like that of a handler, dumped and
 * restored with the database.  The relay reads the table whenever it may have
 * changed, and keeps the list in shared memory that the messenger goes by.
 *
 * Whoever may publish to the queue runs the handler, so who subscribes has to
 * be somebody who may decide on that: who could become the role it runs as.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "failed.h"
#include "handler.h"
#include "message.h"
#include "object.h"
#include "properties.h"
#include "relation.h"
#include "settings.h"
#include "subscribe.h"
#include "subscription.h"
#include "txn.h"
#include "worker.h"

/* How often the relay reads the table without being told. */
#define FOLLOW_MS		5000
/* How often it removes rows that are too old, and how many at a time. */
#define CLEAN_MS		60000
#define CLEAN_BATCH		1000

/* The kind of advisory locks; those of SQL's functions are 1 and 2. */
#define WORKERS_LOCK	771

#define MAX_RETRIES		1000000
#define MAX_BACKOFF_MS	INT64CONST(604800000)	/* a week */

/* on_error, as a subscription's row has it. */
typedef struct OnError
{
	int			retries;
	int64		backoff;		/* ms */
	int64		backoff_max;
	const char *after;			/* keep, drop, dead-letter */
	char	   *exchange;		/* of dead letters; NULL if none */
	char	   *routing_key;
} OnError;

/* This transaction has changed what the relay reads. */
static bool changed = false;

/* … or made a failed message due. */
static bool retry_changed = false;

/*-------------------------------------------------------------------------
 * subscribe() and unsubscribe()
 *-------------------------------------------------------------------------
 */

static void
mark_changed(bool *what)
{
	*what = true;
	tpc_xact_pending = true;
}

/*
 * tpc_subscription_at_eoxact: tell the relay, and the consume workers.  Never
 * raises.  (What commits as a prepared transaction they find by themselves.)
 */
void
tpc_subscription_at_eoxact(bool committed)
{
	TpcNode    *node;

	if (!changed && !retry_changed)
		return;
	if (committed)
	{
		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		node = tpc_node_find(MyDatabaseId);
		if (node != NULL)
		{
			if (retry_changed)
				tpc_retry_at(node, 0);
			pg_atomic_fetch_add_u32(&node->subscriptions_changed, 1);
			tpc_wake_relay(node);
			tpc_wake_consumers(node);
		}
		LWLockRelease(&tpc_shared->control);
	}
	changed = retry_changed = false;
}

/* Raises 42602, 42939. */
static void
check_queue(const char *queue)
{
	if (queue[0] == '\0' || strlen(queue) > TPC_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid queue name \"%s\"", queue),
				 errdetail("A queue name has 1 to %d bytes.", TPC_NAME_MAX)));
	if (tpc_object_is_reserved_queue(queue, strlen(queue)))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("queue name \"%s\" is reserved", queue),
				 errdetail("Queues whose names begin with \"%s.\" are those of nodes.",
						   TPC_EXCHANGE)));
}

static void
bad_option(const char *key, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value of \"%s\" in on_error", key),
			 errdetail("It has to be %s.", what)));
}

static char *
option_text(const char *key, const JsonbValue *v, const char *what)
{
	if (v->type != jbvString)
		bad_option(key, what);
	return pnstrdup(v->val.string.val, v->val.string.len);
}

static int64
option_int(const char *key, const JsonbValue *v, int64 max, const char *what)
{
	Numeric		n;
	char	   *text;
	char	   *end;
	int64		result;

	if (v->type != jbvNumeric)
		bad_option(key, what);
	n = v->val.numeric;
	text = DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(n)));
	errno = 0;
	result = strtoll(text, &end, 10);
	if (*end != '\0' || errno != 0 || result < 0 || result > max)
		bad_option(key, what);
	return result;
}

/* A time: milliseconds, or an interval as text. */
static int64
option_ms(const char *key, const JsonbValue *v)
{
	static const char *const what =
	"a time from 0 to a week: milliseconds, or text that is an interval";
	Interval   *interval;
	char	   *text;
	double		ms;

	if (v->type == jbvNumeric)
		return option_int(key, v, MAX_BACKOFF_MS, what);
	text = option_text(key, v, what);
	interval = DatumGetIntervalP(DirectFunctionCall3(interval_in,
													 CStringGetDatum(text),
													 ObjectIdGetDatum(InvalidOid),
													 Int32GetDatum(-1)));
	ms = interval->time / 1000.0 + interval->day * 86400000.0 +
		interval->month * 30 * 86400000.0;
	if (ms < 0 || ms > MAX_BACKOFF_MS)
		bad_option(key, what);
	return (int64) ms;
}

static void
parse_on_error(Jsonb *json, OnError *on_error)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	memset(on_error, 0, sizeof(*on_error));
	on_error->retries = 5;
	on_error->backoff = 1000;
	on_error->backoff_max = 60000;
	on_error->after = "keep";

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("on_error has to be a JSON object")));
	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *key;

		if (token != WJB_KEY)
			continue;
		key = pnstrdup(v.val.string.val, v.val.string.len);
		(void) JsonbIteratorNext(&it, &v, true);
		if (strcmp(key, "retries") == 0)
			on_error->retries = option_int(key, &v, MAX_RETRIES,
										   "a whole number from 0 to 1000000");
		else if (strcmp(key, "backoff") == 0)
			on_error->backoff = option_ms(key, &v);
		else if (strcmp(key, "backoff_max") == 0)
			on_error->backoff_max = option_ms(key, &v);
		else if (strcmp(key, "then") == 0)
		{
			static const char *const what =
			"\"keep\", \"drop\" or \"dead-letter\"";
			char	   *then = option_text(key, &v, what);

			if (strcmp(then, "keep") != 0 && strcmp(then, "drop") != 0 &&
				strcmp(then, "dead-letter") != 0)
				bad_option(key, what);
			on_error->after = then;
		}
		else if (strcmp(key, "exchange") == 0)
			on_error->exchange = option_text(key, &v, "text");
		else if (strcmp(key, "routing_key") == 0)
			on_error->routing_key = option_text(key, &v, "text");
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized key \"%s\" in on_error", key),
					 errhint("Keys are \"retries\", \"backoff\", \"backoff_max\", \"then\", \"exchange\" and \"routing_key\".")));
	}
	if (strcmp(on_error->after, "dead-letter") != 0)
	{
		if (on_error->exchange != NULL || on_error->routing_key != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"exchange\" and \"routing_key\" in on_error are for dead letters"),
					 errhint("Add \"then\": \"dead-letter\".")));
		return;
	}
	if (on_error->exchange == NULL || on_error->routing_key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dead letters need \"exchange\" and \"routing_key\" in on_error"),
				 errhint("Exchange \"\" takes a message to the queue that the routing key names.")));
	if (strlen(on_error->exchange) > TPC_NAME_MAX ||
		strlen(on_error->routing_key) > TPC_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"exchange\" or \"routing_key\" in on_error is too long"),
				 errdetail("The limit is %d bytes.", TPC_NAME_MAX)));
	if (tpc_object_is_reserved_exchange(on_error->exchange,
										strlen(on_error->exchange)) ||
		(on_error->exchange[0] == '\0' &&
		 tpc_object_is_reserved_queue(on_error->routing_key,
									  strlen(on_error->routing_key))))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("dead letters cannot go to the queues of nodes")));
}

/*
 * The row of a queue: its handler, palloc'd in the caller's context; NULL if
 * there is none.
 */
static char *
read_handler(const char *queue)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(queue)};
	char	   *handler = NULL;

	SPI_connect();
	tpc_spi_execute("SELECT handler FROM tpc_amqp.subscription"
					" WHERE queue OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, false, SPI_OK_SELECT);
	if (SPI_processed > 0)
		handler = MemoryContextStrdup(caller,
									  SPI_getvalue(SPI_tuptable->vals[0],
												   SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return handler;
}

/*
 * There are places for so many workers of subscriptions, and what has some of
 * its own is run by no others.  Connected to SPI.  Raises 53400.
 */
static void
check_workers(const char *queue, int workers)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(queue)};
	bool		isnull;
	int64		others;
	Relation	rel;
	LOCKTAG		tag;

	/*
	 * Whoever else asks for some has to be seen.  An advisory lock, of a kind
	 * that SQL has no function for, holds up nobody but those.
	 */
	rel = tpc_relation_open("subscription", AccessShareLock);
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, RelationGetRelid(rel), 0,
						 WORKERS_LOCK);
	table_close(rel, NoLock);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	tpc_spi_execute("SELECT COALESCE(pg_catalog.sum(workers), 0)"
					" FROM tpc_amqp.subscription"
					" WHERE queue OPERATOR(pg_catalog.<>) $1",
					1, types, values, NULL, false, SPI_OK_SELECT);
	others = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	if (others + workers > TPC_MAX_OWN_CONSUMERS)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many workers of subscriptions"),
				 errdetail("Others have %lld, and there are places for %d.",
						   (long long) others, TPC_MAX_OWN_CONSUMERS)));
}

/*
 * tpc_subscribe(queue text, handler text, auto_ack boolean, exclusive boolean,
 *				 consumer_tag text, arguments jsonb, prefetch integer,
 *				 on_error jsonb, workers integer) returns void
 *
 * Have a handler run for each message of a queue.  A queue that has a
 * subscription is given this one instead.
 */
PG_FUNCTION_INFO_V1(tpc_subscribe);
Datum
tpc_subscribe(PG_FUNCTION_ARGS)
{
	char	   *queue;
	char	   *handler;
	char	   *tag;
	char	   *old_handler;
	Oid			run_as;
	int			prefetch;
	int			workers;
	OnError		on_error;
	StringInfoData table;
	Oid			types[] = {TEXTOID, TEXTOID, BOOLOID, BOOLOID, TEXTOID,
		JSONBOID, INT4OID, INT4OID, INT8OID, INT8OID, TEXTOID, TEXTOID, TEXTOID,
	OIDOID, INT4OID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.subscribe()");
	PreventCommandDuringRecovery("tpc_amqp.subscribe()");
	tpc_object_no_nulls(fcinfo);
	queue = text_to_cstring(PG_GETARG_TEXT_PP(0));
	handler = text_to_cstring(PG_GETARG_TEXT_PP(1));
	tag = text_to_cstring(PG_GETARG_TEXT_PP(4));
	prefetch = PG_GETARG_INT32(6);
	workers = PG_GETARG_INT32(8);
	check_queue(queue);
	/* what goes to the broker is UTF-8, and may be longer than it is here */
	check_queue(pg_server_to_any(queue, strlen(queue), PG_UTF8));
	if (strlen(pg_server_to_any(tag, strlen(tag), PG_UTF8)) > TPC_NAME_MAX ||
		strlen(tag) > TPC_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("consumer tag is too long"),
				 errdetail("The limit is %d bytes.", TPC_NAME_MAX)));
	if (prefetch < 1 || prefetch > PG_UINT16_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("prefetch has to be from 1 to %d", PG_UINT16_MAX)));
	if (workers < 0 || workers > TPC_MAX_OWN_CONSUMERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("workers of a subscription must be between 0 and %d",
						TPC_MAX_OWN_CONSUMERS)));
	parse_on_error(PG_GETARG_JSONB_P(7), &on_error);
	initStringInfo(&table);
	tpc_table_encode(&table, (struct varlena *) PG_GETARG_JSONB_P(5));

	run_as = tpc_handler_check_owner(handler,
									 psprintf("subscribe handler \"%s\"",
											  handler));
	if (!OidIsValid(run_as))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler \"%s\" does not exist", handler),
				 errhint("Register it with tpc_amqp.register_handler().")));
	old_handler = read_handler(queue);
	if (old_handler != NULL)
		(void) tpc_handler_check_owner(old_handler,
									   psprintf("replace the subscription of queue \"%s\"",
												queue));

	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(queue);
	values[1] = CStringGetTextDatum(handler);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = PG_GETARG_DATUM(3);
	values[4] = PG_GETARG_DATUM(4);
	values[5] = PG_GETARG_DATUM(5);
	values[6] = Int32GetDatum(prefetch);
	values[7] = Int32GetDatum(on_error.retries);
	values[8] = Int64GetDatum(on_error.backoff);
	values[9] = Int64GetDatum(on_error.backoff_max);
	values[10] = CStringGetTextDatum(on_error.after);
	if (on_error.exchange != NULL)
	{
		values[11] = CStringGetTextDatum(on_error.exchange);
		values[12] = CStringGetTextDatum(on_error.routing_key);
	}
	else
	{
		values[11] = values[12] = (Datum) 0;
		nulls[11] = nulls[12] = 'n';
	}
	values[13] = ObjectIdGetDatum(run_as);
	values[14] = Int32GetDatum(workers);
	nulls[lengthof(types)] = '\0';
	SPI_connect();
	if (workers > 0)
		check_workers(queue, workers);
	tpc_spi_execute("INSERT INTO tpc_amqp.subscription AS s"
					" (queue, handler, auto_ack, exclusive, consumer_tag,"
					"  arguments, prefetch, retries, backoff, backoff_max,"
					"  after_retries, dead_letter_exchange,"
					"  dead_letter_routing_key, run_as, workers)"
					" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,"
					"  $12, $13, $14, $15)"
					" ON CONFLICT (queue) DO UPDATE SET"
					"  handler = excluded.handler,"
					"  run_as = excluded.run_as,"
					"  auto_ack = excluded.auto_ack,"
					"  exclusive = excluded.exclusive,"
					"  consumer_tag = excluded.consumer_tag,"
					"  arguments = excluded.arguments,"
					"  prefetch = excluded.prefetch,"
					"  workers = excluded.workers,"
					"  retries = excluded.retries,"
					"  backoff = excluded.backoff,"
					"  backoff_max = excluded.backoff_max,"
					"  after_retries = excluded.after_retries,"
					"  dead_letter_exchange = excluded.dead_letter_exchange,"
					"  dead_letter_routing_key ="
					"   excluded.dead_letter_routing_key,"
					"  generation = pg_catalog.gen_random_uuid()",
					lengthof(types), types, values, nulls, false,
					SPI_OK_INSERT);
	SPI_finish();
	mark_changed(&changed);
	PG_RETURN_VOID();
}

/*
 * tpc_unsubscribe(queue text) returns boolean
 *
 * End a subscription; false if there is none.
 */
PG_FUNCTION_INFO_V1(tpc_unsubscribe);
Datum
tpc_unsubscribe(PG_FUNCTION_ARGS)
{
	char	   *queue = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *handler;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {PG_GETARG_DATUM(0)};

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.unsubscribe()");
	PreventCommandDuringRecovery("tpc_amqp.unsubscribe()");
	handler = read_handler(queue);
	if (handler != NULL)
		(void) tpc_handler_check_owner(handler,
									   psprintf("end the subscription of queue \"%s\"",
												queue));
	if (tpc_spi_run("DELETE FROM tpc_amqp.subscription"
					" WHERE queue OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, false, SPI_OK_DELETE) == 0)
		PG_RETURN_BOOL(false);
	mark_changed(&changed);
	PG_RETURN_BOOL(true);
}

/*
 * tpc_retry_message(id bigint) returns boolean
 *
 * Run a message that failed again, as often as its subscription says; false
 * if there is none, or only the record of one that was dropped.
 */
PG_FUNCTION_INFO_V1(tpc_retry_message);
Datum
tpc_retry_message(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {PG_GETARG_DATUM(0)};

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.retry_message()");
	PreventCommandDuringRecovery("tpc_amqp.retry_message()");
	if (tpc_spi_run("UPDATE tpc_amqp.failed_message"
					" SET state = 'retry', attempts = 0,"
					"  next_attempt_at = pg_catalog.clock_timestamp()"
					" WHERE id OPERATOR(pg_catalog.=) $1"
					"  AND state OPERATOR(pg_catalog.<>) 'dropped'",
					1, types, values, NULL, false, SPI_OK_UPDATE) == 0)
		PG_RETURN_BOOL(false);
	mark_changed(&retry_changed);
	PG_RETURN_BOOL(true);
}

/*
 * tpc_drop_message(id bigint) returns boolean
 *
 * Forget a message that failed; false if there is none.
 */
PG_FUNCTION_INFO_V1(tpc_drop_message);
Datum
tpc_drop_message(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {PG_GETARG_DATUM(0)};

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.drop_message()");
	PreventCommandDuringRecovery("tpc_amqp.drop_message()");
	PG_RETURN_BOOL(tpc_spi_run("DELETE FROM tpc_amqp.failed_message"
							   " WHERE id OPERATOR(pg_catalog.=) $1",
							   1, types, values, NULL, false,
							   SPI_OK_DELETE) > 0);
}

/*-------------------------------------------------------------------------
 * What view subscriptions shows
 *-------------------------------------------------------------------------
 */

static const char *
state_name(const TpcSubscription *sub)
{
	switch (sub->state)
	{
		case TPC_SUBSCRIPTION_CONNECTING:
			return "connecting";
		case TPC_SUBSCRIPTION_ACTIVE:
			return "active";
		case TPC_SUBSCRIPTION_REFUSED:
			return "refused";
		case TPC_SUBSCRIPTION_ENDING:
			return "ending";
	}
	return "unknown";
}

/* Text in UTF-8, or cut within a character, as this database's. */
static Datum
any_text(const char *s)
{
	char	   *text = pstrdup(s);

	if (GetDatabaseEncoding() != PG_UTF8)
	{
		for (char *p = text; *p != '\0'; p++)
		{
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
		}
	}
	text[pg_encoding_verifymbstr(GetDatabaseEncoding(), text,
								 strlen(text))] = '\0';
	return CStringGetTextDatum(text);
}

/*
 * tpc_live_subscriptions() returns setof record
 */
PG_FUNCTION_INFO_V1(tpc_live_subscriptions);
Datum
tpc_live_subscriptions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *copies = NIL;
	ListCell   *lc;
	TpcNode    *node;
	dsa_pointer p;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	(void) tpc_area();
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL)
	{
		LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
		for (p = node->subscriptions; DsaPointerIsValid(p);)
		{
			TpcSubscription *sub = dsa_get_address(tpc_area(), p);
			TpcSubscription *copy = palloc(sizeof(TpcSubscription));

			memcpy(copy, sub, offsetof(TpcSubscription, arguments));
			copies = lappend(copies, copy);
			p = sub->next;
		}
		LWLockRelease(&node->subscriptions_lock);
	}
	LWLockRelease(&tpc_shared->control);

	foreach(lc, copies)
	{
		TpcSubscription *sub = lfirst(lc);
		Datum		values[10 + TPC_SUB_NCOUNTERS];
		bool		nulls[lengthof(values)] = {false};
		int			n = 0;

		values[n++] = UUIDPGetDatum(&sub->generation);
		values[n++] = CStringGetTextDatum(state_name(sub));
		values[n++] = any_text(sub->consumer_tag);
		values[n++] = Int32GetDatum(sub->items.count);
		values[n++] = Int32GetDatum(sub->running);
		for (int i = 0; i < TPC_SUB_NCOUNTERS; i++)
			values[n++] = Int64GetDatum(sub->count[i]);
		nulls[n] = sub->messages < 0;
		values[n++] = Int64GetDatum(sub->messages);
		nulls[n] = sub->messages < 0;
		values[n++] = TimestampTzGetDatum(sub->measured_at);
		nulls[n] = sub->last_error_at == 0;
		values[n++] = CStringGetTextDatum(sub->last_sqlstate);
		nulls[n] = sub->last_error_at == 0;
		values[n++] = any_text(sub->last_error);
		nulls[n] = sub->last_error_at == 0;
		values[n++] = TimestampTzGetDatum(sub->last_error_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/*-------------------------------------------------------------------------
 * The relay's part
 *-------------------------------------------------------------------------
 */

/*
 * tpc_subscriptions_exist: whether there is work for the relay and consume
 * workers.  In a transaction, with a snapshot.
 */
bool
tpc_subscriptions_exist(void)
{
	return tpc_relation_exists("subscription") &&
		tpc_spi_run("SELECT 1 WHERE EXISTS"
					" (SELECT FROM tpc_amqp.subscription)"
					" OR EXISTS (SELECT FROM tpc_amqp.failed_message"
					"  WHERE state OPERATOR(pg_catalog.=) 'retry')",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT) > 0;
}

/* Make the entry of a row; raises for want of memory. */
static dsa_pointer
make_entry(TpcNode *node, HeapTuple tuple, TupleDesc desc)
{
	StringInfoData table;
	bool		isnull;
	dsa_pointer p;
	TpcSubscription *sub;
	char	   *queue = SPI_getvalue(tuple, desc, 1);
	char	   *tag = SPI_getvalue(tuple, desc, 3);

	initStringInfo(&table);
	tpc_table_encode(&table, (struct varlena *)
					 DatumGetJsonbP(SPI_getbinval(tuple, desc, 6, &isnull)));
	p = tpc_area_alloc(offsetof(TpcSubscription, arguments) + table.len);
	sub = dsa_get_address(tpc_area(), p);
	memset(sub, 0, offsetof(TpcSubscription, arguments));
	sub->generation =
		*DatumGetUUIDP(SPI_getbinval(tuple, desc, 2, &isnull));
	strlcpy(sub->queue, pg_server_to_any(queue, strlen(queue), PG_UTF8),
			sizeof(sub->queue));
	strlcpy(sub->name, queue, sizeof(sub->name));
	if (tag[0] == '\0')
		tag = psprintf("%s.%s", node->name, SPI_getvalue(tuple, desc, 2));
	strlcpy(sub->consumer_tag, pg_server_to_any(tag, strlen(tag), PG_UTF8),
			sizeof(sub->consumer_tag));
	sub->auto_ack = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
	sub->exclusive = DatumGetBool(SPI_getbinval(tuple, desc, 5, &isnull));
	sub->prefetch = DatumGetInt32(SPI_getbinval(tuple, desc, 7, &isnull));
	sub->workers = DatumGetInt32(SPI_getbinval(tuple, desc, 8, &isnull));
	sub->wanted = true;
	sub->messages = -1;
	sub->retry_at = DT_NOEND;
	sub->arguments_len = table.len;
	memcpy(sub->arguments, table.data, table.len);
	return p;
}

/* Bring the list in shared memory to what the table says. */
static void
follow_table(TpcNode *node)
{
	dsa_pointer p;
	bool		listed = false;
	pg_uuid_t  *seen;
	int			nseen;

	SPI_connect();
	tpc_spi_execute("SELECT queue, generation, consumer_tag, auto_ack,"
					" exclusive, arguments, prefetch, workers"
					" FROM tpc_amqp.subscription",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	nseen = (int) SPI_processed;
	seen = palloc(sizeof(pg_uuid_t) * Max(nseen, 1));
	for (int i = 0; i < nseen; i++)
	{
		bool		isnull;

		seen[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											   SPI_tuptable->tupdesc, 2,
											   &isnull));
	}

	/* those that are gone, first */
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	for (p = node->subscriptions; DsaPointerIsValid(p);)
	{
		TpcSubscription *sub = dsa_get_address(tpc_area(), p);
		bool		there = false;

		for (int i = 0; i < nseen; i++)
			there = there ||
				memcmp(&seen[i], &sub->generation, sizeof(pg_uuid_t)) == 0;
		if (sub->wanted && !there)
		{
			sub->wanted = false;
			sub->state = TPC_SUBSCRIPTION_ENDING;
			listed = true;
		}
		p = sub->next;
	}
	LWLockRelease(&node->subscriptions_lock);

	for (int i = 0; i < nseen; i++)
	{
		bool		there = false;

		LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
		for (p = node->subscriptions; DsaPointerIsValid(p);)
		{
			TpcSubscription *sub = dsa_get_address(tpc_area(), p);

			there = there ||
				memcmp(&seen[i], &sub->generation, sizeof(pg_uuid_t)) == 0;
			p = sub->next;
		}
		LWLockRelease(&node->subscriptions_lock);
		if (there)
			continue;
		p = make_entry(node, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
		tpc_subscription_add(node, p);
		LWLockRelease(&node->subscriptions_lock);
		listed = true;
	}
	SPI_finish();

	if (listed)
	{
		pg_atomic_fetch_add_u32(&node->subscriptions_listed, 1);
		tpc_wake_messenger(node);
		tpc_wake_launcher();
		/* what has failed in a queue may be somebody else's to run now */
		tpc_retry_at(node, 0);
		tpc_wake_consumers(node);
	}
}

/* Remove what is too old, some at a time; true if there may be more. */
static bool
clean(void)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(tpc_consumed_retention),
	Int32GetDatum(CLEAN_BATCH)};
	bool		more;

	if (tpc_consumed_retention == 0)
		return false;
	SPI_connect();
	tpc_spi_execute("DELETE FROM tpc_amqp.consumed"
					" WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
					"  SELECT ctid FROM tpc_amqp.consumed"
					"  WHERE consumed_at OPERATOR(pg_catalog.<)"
					"   (pg_catalog.now() OPERATOR(pg_catalog.-)"
					"    pg_catalog.make_interval(mins => $1))"
					"  LIMIT $2))",
					2, types, values, NULL, false, SPI_OK_DELETE);
	more = SPI_processed >= CLEAN_BATCH;
	tpc_spi_execute("DELETE FROM tpc_amqp.failed_message"
					" WHERE state OPERATOR(pg_catalog.=) 'dropped'"
					"  AND failed_at OPERATOR(pg_catalog.<)"
					"   (pg_catalog.now() OPERATOR(pg_catalog.-)"
					"    pg_catalog.make_interval(mins => $1))",
					1, types, values, NULL, false, SPI_OK_DELETE);
	SPI_finish();
	return more;
}

/*
 * Consume workers look for failed messages that are due.  If they are all busy
 * we do, so that turn.c sees whose wait.
 */
static void
look_for_due(TpcNode *node)
{
	TimestampTz at = (TimestampTz) pg_atomic_read_u64(&node->retry_at);
	int			n;

	if (TimestampDifferenceExceeds(at, GetCurrentTimestamp(), FOLLOW_MS))
		(void) tpc_failed_due(node, &n);
}

/*
 * tpc_subscription_follow: in the relay's main loop, outside of a transaction:
 * follow the table, if it may have changed.  Returns after how many
 * milliseconds to come again at the latest.
 */
long
tpc_subscription_follow(TpcNode *node)
{
	static uint32 changes_seen = 0;
	static TimestampTz followed_at = 0;
	static TimestampTz cleaned_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	uint32		changes = pg_atomic_read_u32(&node->subscriptions_changed);

	if (followed_at == 0 || changes != changes_seen ||
		TimestampDifferenceExceeds(followed_at, now, FOLLOW_MS))
	{
		tpc_worker_begin();
		if (tpc_relation_exists("subscription"))
			follow_table(node);
		if (!tpc_subscriptions_exist())
		{
			/* not while one that ends may still have a run */
			if (!DsaPointerIsValid(node->subscriptions))
				pg_atomic_write_u32(&node->wants_consumers, 0);
		}
		else if (pg_atomic_exchange_u32(&node->wants_consumers, 1) == 0)
			tpc_wake_launcher();
		else
			look_for_due(node);
		tpc_worker_end();
		changes_seen = changes;
		followed_at = now;
	}
	if (TimestampDifferenceExceeds(cleaned_at, now, CLEAN_MS))
	{
		bool		more = false;

		tpc_worker_begin();
		if (tpc_relation_exists("subscription"))
			more = clean();
		tpc_worker_end();
		if (more)
			return 0;
		cleaned_at = now;
	}
	return FOLLOW_MS;
}
