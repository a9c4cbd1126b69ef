/*-------------------------------------------------------------------------
 *
 * consume_worker.c
 *	  Runs the handlers of subscriptions, one message at a time.
 *
 * A message is one transaction: that it takes effect is noted, its handler
 * runs, and the commit is flushed; then it is acknowledged.  If that is lost,
 * it comes again and is found to have taken effect.  A commit with calls to
 * other nodes is one on all of them, as in a session.
 *
 * If the handler fails, that is written down instead (failed.c), and the
 * message acknowledged.  Those that are due for another run are taken from
 * there, by turns with what arrives, so that neither waits for the other.
 *
 * One that the broker has delivered before may have ended the server: it goes
 * by that table in any case, where its runs are counted before they begin.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "consumed.h"
#include "failed.h"
#include "failpoint.h"
#include "handler.h"
#include "properties.h"
#include "relation.h"
#include "settings.h"
#include "shmem.h"
#include "subscription.h"
#include "turn.h"
#include "txn.h"
#include "worker.h"

/* How often to look for failed messages that are due, without being told. */
#define LOOK_MS		2000
/* … and where those that are due are being run by others. */
#define BUSY_MS		500
/* How long not to take another one if a failure could not be written down. */
#define PAUSE_MS	1000
/* How long to wait for who has locked a row of ours, whatever lock_timeout. */
#define ROW_LOCK_MS	30000

typedef enum RunResult
{
	RUN_DONE,
	RUN_DUPLICATE,				/* it had taken effect before */
	RUN_UNSUBSCRIBED,			/* there is no subscription any more */
	RUN_SKIPPED,				/* its row is somebody else's, or gone */
	RUN_TOO_EARLY,				/* its first run is not finished */
	RUN_FAILED
} RunResult;

static TpcNode *node;
static TpcWorker *self;
static int	number;				/* of our place … */
static TpcConsuming *consuming; /* … and what we are at */
static dsa_pointer current_item = InvalidDsaPointer;	/* to be handed back */
static TpcSettlement current_how;	/* … if this process ends now */
static bool has_item = false;	/* the run is one of a message in memory */
static bool noting = false;		/* waiting for another run of the message */
static bool time_limited = false;	/* what we do has a time-out … */
static bool timed_out = false;	/* … which is over */
static MemoryContext job_context = NULL;	/* reset per message */
static uint32 wait_event_main = 0;

/*-------------------------------------------------------------------------
 * Items
 *-------------------------------------------------------------------------
 */

/* Hand the current item back to the messenger: step S4. */
static void
settle(TpcSettlement how)
{
	TpcItem    *item;
	TpcConsumedHead head;
	dsa_pointer p = current_item;

	if (!DsaPointerIsValid(p))
		return;
	item = dsa_get_address(tpc_area(), p);
	memcpy(&head, item->body, sizeof(head));
	head.how = how;
	memcpy(item->body, &head, sizeof(head));
	current_item = InvalidDsaPointer;
	tpc_queue_push(node, &node->settled, p);
	tpc_wake_messenger(node);
}

static char *
copy_of(const char *bytes, size_t len)
{
	char	   *copy = palloc(len + 1);

	memcpy(copy, bytes, len);
	copy[len] = '\0';
	return copy;
}

/* A copy of the current item: none of shared memory while user code runs. */
static TpcMessageIn *
read_item(const TpcConsumedHead *head, const char *queue)
{
	TpcItem    *item = dsa_get_address(tpc_area(), current_item);
	const char *p = item->body + sizeof(TpcConsumedHead);
	TpcMessageIn *m = palloc0(sizeof(TpcMessageIn));

	m->queue = pstrdup(queue);
	m->exchange = tpc_consumed_text(p, head->exchange_len);
	p += head->exchange_len;
	m->routing_key = tpc_consumed_text(p, head->routing_key_len);
	p += head->routing_key_len;
	m->properties = copy_of(p, head->properties_len);
	m->properties_len = head->properties_len;
	p += head->properties_len;
	m->body = copy_of(p, head->body_len);
	m->body_len = head->body_len;
	m->redelivered = head->redelivered;
	m->attempt = 1;
	m->message_id = tpc_consumed_message_id(m->properties, m->properties_len);
	return m;
}

/*
 * Take the next item.  NULL if there is none, or only one that is not to be
 * run, which *other says.
 */
static TpcMessageIn *
take_item(bool *auto_ack, bool *other)
{
	TpcItem    *item;
	TpcConsumedHead head;
	TpcSubscription *sub;
	bool		wanted = false;
	char		queue[TPC_NAME_SIZE] = "";

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_turn_pick(node, number);
	if (sub != NULL)
		current_item = tpc_queue_pop(node, &sub->items);
	*other = DsaPointerIsValid(current_item);
	if (*other)
	{
		current_how = TPC_SETTLE_REQUEUE;
		item = dsa_get_address(tpc_area(), current_item);
		memcpy(&head, item->body, sizeof(head));
		/* of a connection or channel that is gone: it is delivered again */
		wanted = node->link == TPC_LINK_UP &&
			item->epoch == pg_atomic_read_u32(&node->epoch) &&
			sub->opened == head.opened;
		*auto_ack = sub->auto_ack;
		strlcpy(queue, sub->name, sizeof(queue));
	}
	if (wanted)
	{
		sub->running++;
		has_item = true;
		tpc_turn_begin(node, number, sub);
	}
	LWLockRelease(&node->subscriptions_lock);
	if (!wanted)
	{
		settle(TPC_SETTLE_REQUEUE);
		return NULL;
	}
	return read_item(&head, queue);
}

/* The message is dealt with. */
static void
stop_running(void)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	if (has_item)
	{
		sub = tpc_subscription_find(node, consuming->subscription);
		if (sub != NULL)
			sub->running--;
	}
	tpc_turn_end(node, number);
	LWLockRelease(&node->subscriptions_lock);
	has_item = false;
}

/*
 * At exit, after the end of the transaction: the delivery of what was not
 * finished goes back to its queue.
 */
static void
settle_at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	stop_running();
	settle(current_how);
}

/*-------------------------------------------------------------------------
 * A handler's argument
 *-------------------------------------------------------------------------
 */

/*
 * to_text: bytes in UTF-8 as text of this database, which (if json) is a
 * value that jsonb can take; NULL if that is not so.
 */
static char *
to_text(const char *bytes, int len, bool json)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile text = NULL;

	if (!pg_verify_mbstr(PG_UTF8, bytes, len, true))
		return NULL;
	if (!json && GetDatabaseEncoding() == PG_UTF8)
		return pnstrdup(bytes, len);

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		char	   *converted = pg_any_to_server(bytes, len, PG_UTF8);

		if (converted == bytes)
			converted = pnstrdup(bytes, len);
		if (json)
			pfree(DatumGetPointer(DirectFunctionCall1(jsonb_in,
													  CStringGetDatum(converted))));
		text = converted;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		if (code == ERRCODE_QUERY_CANCELED || code == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		MemoryContextSwitchTo(old);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		text = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return text;
}

static bool
says_json(Jsonb *properties)
{
	JsonbValue	buf;
	JsonbValue *v = getKeyJsonValueFromContainer(&properties->root,
												 "content_type",
												 strlen("content_type"),
												 &buf);
	static const char type[] = "application/json";
	int			len = strlen(type);

	return v != NULL && v->type == jbvString && v->val.string.len >= len &&
		pg_strncasecmp(v->val.string.val, type, len) == 0 &&
		(v->val.string.len == len || v->val.string.val[len] == ';' ||
		 v->val.string.val[len] == ' ');
}

static void
append_base64(StringInfo out, const char *bytes, int len)
{
	int			size = pg_b64_enc_len(len);

	enlargeStringInfo(out, size + 1);
	size = tpc_b64_encode(bytes, len, out->data + out->len, size);
	if (size < 0)
		elog(ERROR, "could not encode the body");
	out->len += size;
	out->data[out->len] = '\0';
}

/* make_argument: JSON text in the server's encoding.  Raises 08P01. */
static char *
make_argument(const TpcMessageIn *m, const char *consumer_tag)
{
	StringInfoData out;
	Jsonb	   *properties;
	char	   *text = NULL;

	properties = (Jsonb *) tpc_properties_decode(m->properties,
												 m->properties_len);
	if (properties == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the properties of the message cannot be decoded")));
	initStringInfo(&out);
	appendStringInfoString(&out, "{\"queue\":");
	escape_json(&out, m->queue);
	appendStringInfoString(&out, ",\"exchange\":");
	escape_json(&out, m->exchange);
	appendStringInfoString(&out, ",\"routing_key\":");
	escape_json(&out, m->routing_key);
	appendStringInfo(&out, ",\"redelivered\":%s,\"consumer_tag\":",
					 m->redelivered ? "true" : "false");
	escape_json(&out, consumer_tag);
	appendStringInfo(&out, ",\"delivery_count\":%d,\"properties\":",
					 m->attempt);
	(void) JsonbToCString(&out, &properties->root, VARSIZE(properties));
	if (says_json(properties))
		text = to_text(m->body, m->body_len, true);
	if (text != NULL)
		appendStringInfo(&out, ",\"body\":%s", text);
	else if ((text = to_text(m->body, m->body_len, false)) != NULL)
	{
		appendStringInfoString(&out, ",\"body\":");
		escape_json(&out, text);
	}
	else
	{
		appendStringInfoString(&out, ",\"body_base64\":\"");
		append_base64(&out, m->body, m->body_len);
		appendStringInfoChar(&out, '"');
	}
	appendStringInfoChar(&out, '}');
	return out.data;
}

/*-------------------------------------------------------------------------
 * Running
 *-------------------------------------------------------------------------
 */

/* Bound what follows; 0: not at all. */
static void
begin_timeout(int ms)
{
	timed_out = false;
	time_limited = ms > 0;
	if (time_limited)
		enable_timeout_after(STATEMENT_TIMEOUT, ms);
}

/* It has ended: remember whether it took too long. */
static void
end_timeout(void)
{
	if (time_limited)
		timed_out = !get_timeout_active(STATEMENT_TIMEOUT);
	time_limited = false;
	disable_timeout(STATEMENT_TIMEOUT, false);
}

/*
 * The handler, its role and the consumer tag of a queue's subscription, in the
 * caller's context; false if there is none.
 */
static bool
read_subscription(const char *queue, char **handler, Oid *run_as,
				  char **consumer_tag)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(queue)};
	bool		found;
	bool		isnull;

	SPI_connect();
	tpc_spi_execute("SELECT handler, consumer_tag, run_as FROM tpc_amqp.subscription"
					" WHERE queue OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, true, SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		*handler = MemoryContextStrdup(caller, SPI_getvalue(row, desc, 1));
		*consumer_tag = MemoryContextStrdup(caller, SPI_getvalue(row, desc, 2));
		*run_as = DatumGetObjectId(SPI_getbinval(row, desc, 3, &isnull));
	}
	SPI_finish();
	return found;
}

/*
 * A table says that the message has been dealt with, and this transaction may
 * write nothing that it would wait for: the standbys are to have what is on
 * disk before it is acknowledged.
 */
static void
await_known(void)
{
	if (tpc_worker_has_standbys())
		(void) tpc_worker_await_standbys();
}

/* The end of a transaction that runs no handler. */
static RunResult
end_unrun(RunResult result)
{
	end_timeout();
	tpc_worker_end();
	return result;
}

/*
 * run: steps S2 and S3, one transaction.  Raises what the handler raises, and
 * whatever else makes it fail, before the commit.
 */
static RunResult
run(const TpcMessageIn *m)
{
	Oid			save_userid;
	int			save_sec_context;
	Oid			running_as = InvalidOid;
	Oid			run_as;
	char	   *handler;
	char	   *consumer_tag;
	char	   *arg;
	char	   *result;
	char		activity[200];

	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	tpc_worker_set_lock_timeout();
	tpc_worker_begin();
	MemoryContextSwitchTo(job_context);
	/* what an earlier handler has left would be found before anything else */
	ResetTempTableNamespace();

	if (!read_subscription(m->queue, &handler, &run_as, &consumer_tag))
		return end_unrun(RUN_UNSUBSCRIBED);
	if (m->failed_id != 0)
	{
		bool		locked;

		begin_timeout(ROW_LOCK_MS);
		noting = true;
		locked = tpc_failed_lock(m);
		noting = false;
		if (!locked)
			return end_unrun(RUN_SKIPPED);
		end_timeout();
	}
	begin_timeout(tpc_consume_timeout);
	if (m->message_id != NULL)
	{
		bool		first;

		if (tpc_consumed_in_progress(m->queue, m->message_id))
			return end_unrun(RUN_TOO_EARLY);
		noting = true;
		first = tpc_consumed_note(m->queue, m->message_id);
		noting = false;
		if (!first)
		{
			end_timeout();
			if (m->failed_id != 0)
				tpc_failed_remove(m->failed_id);
			await_known();
			tpc_txn_make_synchronous();
			return end_unrun(RUN_DUPLICATE);
		}
	}

	snprintf(activity, sizeof(activity), "handler %s for queue %s",
			 handler, m->queue);
	pgstat_report_activity(STATE_RUNNING, activity);
	TPC_FAILPOINT("S2.before");
	arg = make_argument(m, consumer_tag);
	tpc_handler_run(handler, NULL, NULL, run_as, arg, strlen(arg),
					&running_as, &result);
	TPC_FAILPOINT("S2.after");

	/* as in a prepare worker: what the handler has deferred is its own work */
	AfterTriggerFireDeferred();
	CommandCounterIncrement();
	tpc_handler_end(running_as);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	end_timeout();
	CHECK_FOR_INTERRUPTS();
	/* a handler that catches its cancellation has still not done its work */
	if (timed_out)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to statement timeout")));

	if (m->failed_id != 0)
		tpc_failed_remove(m->failed_id);
	tpc_txn_make_synchronous();
	TPC_FAILPOINT("S3.before");
	tpc_worker_end();
	TPC_FAILPOINT("S3.after");
	return RUN_DONE;
}

/*
 * Whether an error of a run only says to run the message later: it was not its
 * handler's fault.
 */
static bool
is_put_off(const ErrorData *edata)
{
	return noting && (edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
					  edata->sqlerrcode == ERRCODE_QUERY_CANCELED);
}

/*
 * What PG_CATCH does with an error that ends a transaction of ours.  It is
 * logged, unless it says only that a run is put off.
 */
static ErrorData *
end_failed(Oid userid, int sec_context)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	end_timeout();
	QueryCancelPending = false;
	MemoryContextSwitchTo(job_context);
	edata = CopyErrorData();
	if (!is_put_off(edata))
		EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	SetUserIdAndSecContext(userid, sec_context);
	MemoryContextSwitchTo(job_context);
	RESUME_INTERRUPTS();
	return edata;
}

/* Steps S5, S7: write down that it failed; false if that fails, too. */
static bool
note_failure(const TpcMessageIn *m, const ErrorData *edata)
{
	Oid			userid;
	int			sec_context;
	volatile bool ok = false;
	volatile TpcFailedState state = TPC_FAILED_KNOWN;
	int64		delay = 0;
	bool		final;

	GetUserIdAndSecContext(&userid, &sec_context);
	tpc_subscription_count(node, m->queue, TPC_SUB_FAILED);
	tpc_subscription_error(node, m->queue,
						   unpack_sql_state(edata->sqlerrcode),
						   edata->message != NULL ? edata->message : "");
	PG_TRY();
	{
		tpc_worker_begin();
		MemoryContextSwitchTo(job_context);
		TPC_FAILPOINT("S5.before");
		begin_timeout(ROW_LOCK_MS);
		state = tpc_failed_note(m, edata, &delay);
		end_timeout();
		if (state == TPC_FAILED_KNOWN)
			await_known();
		tpc_txn_make_synchronous();
		final = state != TPC_FAILED_RETRY && state != TPC_FAILED_KNOWN;
		if (final)
			TPC_FAILPOINT("S7.before");
		tpc_worker_end();
		ok = true;
		if (final)
			TPC_FAILPOINT("S7.after");
		else
			TPC_FAILPOINT("S5.after");
	}
	PG_CATCH();
	{
		(void) end_failed(userid, sec_context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(job_context);
	if (ok && state == TPC_FAILED_RETRY)
		tpc_subscription_retry_at(node, m->queue,
								  TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
															  delay));
	else if (ok && state != TPC_FAILED_KNOWN)
		tpc_subscription_count(node, m->queue, tpc_failed_counter(state));
	return ok;
}

/*
 * Step S5 of a message that is to be run later, without anything having
 * failed: one that has been delivered before, or of which another run is not
 * finished.
 */
static bool
put_away(const TpcMessageIn *m, bool too_early)
{
	Oid			userid;
	int			sec_context;
	volatile bool ok = false;
	int64		delay = 0;

	GetUserIdAndSecContext(&userid, &sec_context);
	PG_TRY();
	{
		bool		known;

		tpc_worker_begin();
		MemoryContextSwitchTo(job_context);
		TPC_FAILPOINT("S5.before");
		begin_timeout(ROW_LOCK_MS);
		known = !tpc_failed_put_away(m, too_early, &delay);
		end_timeout();
		if (known)
			await_known();
		tpc_txn_make_synchronous();
		tpc_worker_end();
		ok = true;
		TPC_FAILPOINT("S5.after");
	}
	PG_CATCH();
	{
		ErrorData  *edata = end_failed(userid, sec_context);

		tpc_subscription_error(node, m->queue,
							   unpack_sql_state(edata->sqlerrcode),
							   edata->message != NULL ? edata->message : "");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(job_context);
	if (ok)
		tpc_subscription_retry_at(node, m->queue,
								  TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
															  delay));
	return ok;
}

/*
 * A run that took too long has failed by that, whatever its handler made of
 * being cancelled.
 */
static void
explain_timeout(ErrorData *edata)
{
	if (!timed_out)
		return;
	edata->sqlerrcode = ERRCODE_QUERY_CANCELED;
	edata->detail = edata->message;
	edata->message = psprintf("the handler did not finish within %d ms",
							  tpc_consume_timeout);
}

/* Run it, and count; RUN_FAILED with *edata. */
static RunResult
try_run(const TpcMessageIn *m, ErrorData **edata)
{
	volatile RunResult result = RUN_FAILED;
	ErrorData  *volatile error = NULL;
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	timed_out = false;
	QueryCancelPending = false;
	PG_TRY();
	{
		result = run(m);
	}
	PG_CATCH();
	{
		error = end_failed(userid, sec_context);
		if (is_put_off(error))
			result = RUN_TOO_EARLY;
		else
			explain_timeout(error);
	}
	PG_END_TRY();
	noting = false;
	MemoryContextSwitchTo(job_context);
	/* Advisory locks of the session are not to be left to other handlers. */
	LockReleaseAll(USER_LOCKMETHOD, true);
	if (result == RUN_DONE)
		tpc_subscription_count(node, m->queue, TPC_SUB_PROCESSED);
	else if (result == RUN_DUPLICATE)
		tpc_subscription_count(node, m->queue, TPC_SUB_DUPLICATES);
	else if (result == RUN_TOO_EARLY)
		tpc_subscription_count(node, m->queue, TPC_SUB_DEFERRED);
	*edata = error;
	return result;
}

/* Do nothing for a while: what would be tried next is likely to fail, too. */
static void
pause_work(void)
{
	(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PAUSE_MS,
					 tpc_wait_event(&wait_event_main,
									"TpcAmqpConsumeWorker"));
}

/* Run it, and write down what comes of it; false if that is impossible. */
static bool
deal_with(const TpcMessageIn *m)
{
	ErrorData  *edata;

	switch (try_run(m, &edata))
	{
		case RUN_UNSUBSCRIBED:
			return false;
		case RUN_FAILED:
			return note_failure(m, edata);
		case RUN_TOO_EARLY:
			return put_away(m, true);
		default:
			return true;
	}
}

/* Work on what has arrived; false if there is nothing. */
static bool
work_on_arrived(void)
{
	bool		auto_ack = false;
	bool		other;
	TpcMessageIn *m = take_item(&auto_ack, &other);
	bool		dealt_with;

	if (m == NULL)
		return other;
	if (auto_ack)
		settle(TPC_SETTLE_ACK);
	dealt_with = m->redelivered ? put_away(m, false) : deal_with(m);
	stop_running();
	if (!dealt_with)
		pause_work();
	else if (!tpc_worker_gave_up_standbys())
		current_how = TPC_SETTLE_ACK;
	settle(current_how);
	return true;
}

/* Nothing is due of this queue any more, or others run it. */
static void
note_no_due(const char *queue)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_subscription_find_queue(node, queue);
	if (sub != NULL)
		sub->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													BUSY_MS);
	LWLockRelease(&node->subscriptions_lock);
}

/* We run one that is due. */
static void
start_running(const char *queue)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_subscription_find_queue(node, queue);
	tpc_turn_begin(node, number, sub);
	LWLockRelease(&node->subscriptions_lock);
}

/*
 * A queue of which something is due that is ours to run, and whether it has
 * workers of its own; false if none is.
 */
static bool
pick_due(char *queue, bool *own)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
	sub = tpc_turn_pick_due(node, number);
	if (sub != NULL)
	{
		strlcpy(queue, sub->name, TPC_NAME_SIZE);
		*own = sub->workers > 0;
	}
	LWLockRelease(&node->subscriptions_lock);
	return sub != NULL;
}

/*
 * What is due of queues that are not listed: no worker's in particular, and put
 * away to be kept, unless there is a subscription by now.
 */
static TpcMessageIn *
take_unlisted(const TpcDue *due, int n, bool *other)
{
	TpcMessageIn *m = NULL;

	for (int i = 0; i < n && m == NULL && !*other; i++)
	{
		bool		known;

		LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
		known = tpc_subscription_find_queue(node, due[i].queue) != NULL;
		LWLockRelease(&node->subscriptions_lock);
		if (!known && due[i].at <= GetCurrentTimestamp())
			m = tpc_failed_take_due(node, self, due[i].queue, false, other);
	}
	return m;
}

/*
 * Take one that is due, of the queue whose turn it is.  look: what is known of
 * them may not be all.
 */
static TpcMessageIn *
take_first_due(bool look, bool *other)
{
	TpcMessageIn *m = NULL;
	char		queue[TPC_NAME_SIZE];
	bool		own;

	*other = false;
	if (!tpc_relation_exists("failed_message"))
		return NULL;
	if (look)
	{
		int			n;
		TpcDue	   *due = tpc_failed_due(node, &n);

		if (!tpc_turn_is_own(number))
			m = take_unlisted(due, n, other);
	}
	while (m == NULL && !*other && pick_due(queue, &own))
	{
		m = tpc_failed_take_due(node, self, queue, own, other);
		if (m == NULL && !*other)
			note_no_due(queue);
	}
	return m;
}

/* Step S6: count a run of one that is due; NULL if there is none. */
static TpcMessageIn *
take_due(bool *other)
{
	TpcMessageIn *volatile m = NULL;
	uint64		known = pg_atomic_read_u64(&node->retry_at);
	bool		look = (TimestampTz) known <= GetCurrentTimestamp();
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	*other = false;
	PG_TRY();
	{
		tpc_worker_begin();
		MemoryContextSwitchTo(job_context);
		m = take_first_due(look, other);
		if (look && !*other)
		{
			TimestampTz next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   LOOK_MS);

			(void) pg_atomic_compare_exchange_u64(&node->retry_at, &known,
												  (uint64) next);
		}
		if (m != NULL || *other)
		{
			tpc_txn_make_synchronous();
			TPC_FAILPOINT("S6.before");
		}
		tpc_worker_end();
		if (m != NULL)
			TPC_FAILPOINT("S6.after");
	}
	PG_CATCH();
	{
		(void) end_failed(userid, sec_context);
		m = NULL;
		*other = false;
		pause_work();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(job_context);
	return m;
}

/* When to look for what is due. */
static TimestampTz
due_at(void)
{
	TimestampTz due;

	LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
	due = tpc_turn_due(node, number);
	LWLockRelease(&node->subscriptions_lock);
	return due;
}

/* Work on what is due again; false if there is nothing. */
static bool
work_on_due(void)
{
	TpcMessageIn *m;
	bool		other;

	if (due_at() > GetCurrentTimestamp())
		return false;
	m = take_due(&other);
	if (m != NULL)
	{
		start_running(m->queue);
		if (m->attempt > 1)
			tpc_subscription_count(node, m->queue, TPC_SUB_RETRIED);
		(void) deal_with(m);
		stop_running();
		other = true;
	}
	pg_atomic_write_u64(&self->retrying, 0);
	return other;
}

/* Whether this worker is one too many. */
static bool
unwanted(void)
{
	if (tpc_turn_is_own(number))
		return consuming->assigned == 0;
	return number >= tpc_consume_workers ||
		pg_atomic_read_u32(&node->wants_consumers) == 0;
}

static bool
item_waiting(void)
{
	bool		waiting;

	LWLockAcquire(&node->subscriptions_lock, LW_SHARED);
	waiting = tpc_turn_pick(node, number) != NULL;
	LWLockRelease(&node->subscriptions_lock);
	return waiting || unwanted();
}

static long
wait_ms(void)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													 due_at());

	return Max(1, Min(ms, LOOK_MS));
}

void
tpc_consume_worker_main(Datum arg)
{
	node = tpc_worker_attach(arg, &number, &self);
	consuming = &node->consuming[number];
	/* before connecting, so that it runs after the transaction's end */
	before_shmem_exit(settle_at_exit, (Datum) 0);
	tpc_worker_connect(node, true);
	job_context = AllocSetContextCreate(TopMemoryContext,
										"tpc_amqp message",
										ALLOCSET_DEFAULT_SIZES);
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		bool		busy = true;

		ResetLatch(MyLatch);
		while (busy)
		{
			if (tpc_worker_should_exit(node) || unwanted())
				proc_exit(0);
			QueryCancelPending = false;
			CHECK_FOR_INTERRUPTS();
			MemoryContextSwitchTo(job_context);
			busy = work_on_arrived();
			MemoryContextReset(job_context);
			busy = work_on_due() || busy;
			MemoryContextReset(job_context);
			pgstat_report_stat(false);
			if (!busy)
				pgstat_report_activity(STATE_IDLE, NULL);
		}
		tpc_worker_wait(self, item_waiting, wait_ms(),
						tpc_wait_event(&wait_event_main,
									   "TpcAmqpConsumeWorker"));
	}
}
