/*-------------------------------------------------------------------------
 *
 * get.c
 *	  Taking one message of a queue by hand, as part of the transaction.
 *
 * A message is taken on a channel that the session keeps until its transaction
 * ends, one for each queue that it takes messages of: to the broker it is
 * delivered and not acknowledged, and whatever ends that channel puts it back.
 * After the commit record the messenger acknowledges; after a rollback it
 * closes the channel, and after that of a savepoint it puts back what was
 * taken there.
 *
 * If the channel is gone before the commit, the message goes to somebody else,
 * so the transaction must not commit.  In between, from the last look (G3) to
 * the acknowledgement (G6), nothing can be done about it: the message comes
 * again, and is known by the id that the transaction has left in table
 * consumed, if it has one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "consumed.h"
#include "failpoint.h"
#include "get.h"
#include "node.h"
#include "object.h"
#include "properties.h"
#include "report.h"
#include "request.h"
#include "txn.h"

/* Messages of one queue, by the subtransaction that took them. */
typedef struct Taken
{
	SubTransactionId subid;
	uint64		first;			/* delivery tag; up to that of the next one */
} Taken;

/* A queue that this transaction takes messages of. */
typedef struct OpenQueue
{
	char	   *name;			/* in the server's encoding */
	TpcRequest *request;		/* NULL: none (any more) */
	List	   *taken;			/* of Taken *, the latest last; nested */
} OpenQueue;

/* Of the current transaction; in TopTransactionContext. */
static List *open_queues = NIL;

static OpenQueue *
open_queue(const char *name)
{
	ListCell   *lc;
	MemoryContext old;
	OpenQueue  *q;

	foreach(lc, open_queues)
	{
		q = lfirst(lc);
		if (strcmp(q->name, name) == 0)
			return q;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	q = palloc0(sizeof(OpenQueue));
	q->name = pstrdup(name);
	open_queues = lappend(open_queues, q);
	MemoryContextSwitchTo(old);
	tpc_xact_pending = true;
	return q;
}

/* Remembers that the present subtransaction has taken this message. */
static void
note_taken(OpenQueue *q, uint64 tag)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	Taken	   *last = q->taken == NIL ? NULL : llast(q->taken);
	MemoryContext old;
	Taken	   *t;

	if (last != NULL && last->subid == subid)
	{
		/* of a new channel, if all that came on the last one is settled */
		last->first = Min(last->first, tag);
		return;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	t = palloc(sizeof(Taken));
	t->subid = subid;
	t->first = tag;
	q->taken = lappend(q->taken, t);
	MemoryContextSwitchTo(old);
}

/* Raises if what was taken of this queue has gone back to it. */
static void
check_queue(OpenQueue *q)
{
	TpcBrokerError why;

	if (q->taken == NIL ||
		(q->request != NULL && tpc_request_check(q->request, &why)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("the messages taken of queue \"%s\" have gone back to it",
					q->name),
			 q->request != NULL ?
			 errdetail("Their channel to the broker was lost: %s",
					   tpc_report_wire_text(why.text, strlen(why.text))) :
			 errdetail("An attempt to take another one was given up."),
			 errhint("The transaction can be retried.")));
}

/* The broker has not handed over a message, for a reason of ours or its own. */
static void
raise_error(TpcNode *node, const char *queue, const TpcAnswer *answer)
{
	const TpcBrokerError *error = &answer->error;

	if (error->sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg("the next message of queue \"%s\" is too large",
						queue),
				 errdetail("It is larger than \"tpc_amqp.max_payload\", and stays in the queue.")));
	if (error->sqlstate == ERRCODE_OUT_OF_MEMORY)
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg("out of shared memory for messages"),
				 errdetail("The next message of queue \"%s\" stays there.",
						   queue),
				 errhint("You might need to increase \"tpc_amqp.max_memory\".")));
	tpc_request_raise(node, answer);
}

/*
 * take_next: one that has not taken effect here yet; false if there is none.
 */
static bool
take_next(TpcNode *node, OpenQueue *q, const TpcBrokerCall *call,
		  TpcAnswer *answer)
{
	uint64		acknowledge = 0;
	TpcBrokerError why;

	check_queue(q);
	if (q->request != NULL && !tpc_request_check(q->request, &why))
	{
		/* what was lost had been put back anyway */
		tpc_request_abandon(q->request);
		q->request = NULL;
	}
	for (;;)
	{
		TpcRequest *request = q->request;
		char	   *message_id;

		/* if it raises, the place is gone */
		q->request = NULL;
		q->request = tpc_request_get(node, request, call, acknowledge, answer);
		if (answer->error.sqlstate != 0)
			raise_error(node, q->name, answer);
		if (answer->empty)
			return false;
		note_taken(q, answer->delivery_tag);
		message_id = tpc_consumed_message_id(answer->properties.ptr,
											 answer->properties.len);
		TPC_FAILPOINT("G2.before");
		if (message_id == NULL)
			break;
		/* it deletes those that are old, also where nothing is subscribed */
		tpc_wake_relay(node);
		if (tpc_consumed_note(q->name, message_id))
			break;
		/* its acknowledgement was lost */
		acknowledge = answer->delivery_tag;
		CHECK_FOR_INTERRUPTS();
	}
	TPC_FAILPOINT("G2.after");
	return true;
}

static text *
wire_text(const TpcSlice *slice)
{
	return cstring_to_text(tpc_report_wire_text(slice->ptr, slice->len));
}

/*
 * tpc_get(queue text, auto_ack boolean, OUT body bytea, OUT properties jsonb,
 *	OUT routing_key text, OUT exchange text, OUT redelivered boolean,
 *	OUT messages bigint) returns setof record
 *
 * Take one message of a queue: one row, or none if the queue has none.
 */
PG_FUNCTION_INFO_V1(tpc_get);
Datum
tpc_get(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TpcBrokerCall call;
	TpcAnswer	answer;
	TpcNode    *node;
	bool		auto_ack;
	bool		found;
	Datum		values[6];
	bool		nulls[6] = {false};

	tpc_object_no_nulls(fcinfo);
	PreventCommandIfReadOnly("tpc_amqp.get()");
	PreventCommandDuringRecovery("tpc_amqp.get()");
	memset(&call, 0, sizeof(call));
	call.kind = TPC_CALL_GET;
	call.queue = tpc_object_queue(PG_GETARG_TEXT_PP(0));
	if (call.queue.len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("name of a queue is missing")));
	auto_ack = PG_GETARG_BOOL(1);
	if (!auto_ack && tpc_txn_is_branch())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot take a message in a branch of a global transaction"),
				 errdetail("It is going to be prepared, and a message is acknowledged by a commit only.")));
	InitMaterializedSRF(fcinfo, 0);
	node = tpc_node_ready();

	if (auto_ack)
	{
		/* the messenger acknowledges it, once it has room for it */
		tpc_request_call(node, &call, 1, &answer);
		if (answer.error.sqlstate != 0)
			raise_error(node, text_to_cstring(PG_GETARG_TEXT_PP(0)), &answer);
		found = !answer.empty;
	}
	else
		found = take_next(node,
						  open_queue(text_to_cstring(PG_GETARG_TEXT_PP(0))),
						  &call, &answer);
	if (!found)
		return (Datum) 0;

	/* a text is laid out as a bytea is */
	values[0] = PointerGetDatum(cstring_to_text_with_len(answer.body.ptr,
														 (int) answer.body.len));
	values[1] = PointerGetDatum(tpc_properties_decode(answer.properties.ptr,
													  answer.properties.len));
	nulls[1] = DatumGetPointer(values[1]) == NULL;
	values[2] = PointerGetDatum(wire_text(&answer.routing_key));
	values[3] = PointerGetDatum(wire_text(&answer.exchange));
	values[4] = BoolGetDatum(answer.redelivered);
	values[5] = Int64GetDatum((int64) answer.messages);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/* tpc_get_check: raises if something that was taken has gone back. */
void
tpc_get_check(void)
{
	ListCell   *lc;

	foreach(lc, open_queues)
		check_queue(lfirst(lc));
}

static bool
has_taken(void)
{
	ListCell   *lc;

	foreach(lc, open_queues)
	{
		if (((OpenQueue *) lfirst(lc))->taken != NIL)
			return true;
	}
	return false;
}

/*
 * tpc_get_at_pre_commit: step G3: the last look.  What is acknowledged must
 * not be lost with the commit that it rests on.
 */
void
tpc_get_at_pre_commit(void)
{
	if (!has_taken())
		return;
	TPC_FAILPOINT("G3.before");
	tpc_get_check();
	tpc_txn_make_synchronous();
	TPC_FAILPOINT("G3.after");
}

/* A prepared transaction outlives its session, and the session's channel. */
void
tpc_get_at_pre_prepare(void)
{
	if (has_taken())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has taken messages"),
				 errdetail("A message is acknowledged by a commit only.")));
}

/* tpc_get_at_commit: step G5: have them acknowledged.  Never raises. */
void
tpc_get_at_commit(void)
{
	ListCell   *lc;

	if (open_queues == NIL)
		return;
	TPC_FAILPOINT("G5.before");
	foreach(lc, open_queues)
	{
		OpenQueue  *q = lfirst(lc);

		if (q->request != NULL)
			tpc_request_commit(q->request);
	}
	open_queues = NIL;
	TPC_FAILPOINT("G5.after");
}

/*
 * tpc_get_at_abort: what was taken goes back.  Also where there is nothing to
 * acknowledge.  Never raises.
 */
void
tpc_get_at_abort(void)
{
	ListCell   *lc;

	foreach(lc, open_queues)
	{
		OpenQueue  *q = lfirst(lc);

		if (q->request != NULL)
			tpc_request_abandon(q->request);
	}
	open_queues = NIL;
}

/* What a savepoint has taken goes back with it.  Never raises. */
void
tpc_get_at_subxact(bool committed, SubTransactionId subid,
				   SubTransactionId parent)
{
	ListCell   *lc;

	foreach(lc, open_queues)
	{
		OpenQueue  *q = lfirst(lc);
		Taken	   *last = q->taken == NIL ? NULL : llast(q->taken);

		/* what is nested in it has ended before */
		if (last == NULL || last->subid != subid)
			continue;
		if (!committed)
		{
			if (q->request != NULL)
				tpc_request_requeue(q->request, last->first);
			q->taken = list_delete_last(q->taken);
			continue;
		}
		last->subid = parent;
		if (list_length(q->taken) > 1)
		{
			Taken	   *outer = list_nth(q->taken, list_length(q->taken) - 2);

			if (outer->subid != parent)
				continue;
			outer->first = Min(outer->first, last->first);
			q->taken = list_delete_last(q->taken);
		}
	}
}
