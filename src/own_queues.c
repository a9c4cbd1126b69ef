/*-------------------------------------------------------------------------
 *
 * own_queues.c
 *	  Transactions with queues of their own.
 *
 * A transaction that asks for it gets three queues, which are named after it:
 * txn_<uuid>_prepare, txn_<uuid>_commit and txn_<uuid>_rollback.  One of its
 * participants has its prepare and its decision published there and not to
 * queues that are named after the participant.  So a program can take part
 * that has no queues, and was told of the transaction only.
 *
 * To the protocol they are other names, and nothing rests on them: what they
 * lose, the participant asks for, and says (reply_to) that it wants the answer
 * there.  They are gone at the end of the transaction, in one of these ways:
 *
 *	- the messenger deletes them: when all have acknowledged, or some time
 *	  after a rollback was published, for nobody acknowledges that;
 *	- the broker does, when the last consumer of one has left (auto-delete),
 *	  or if it has had none for a while (x-expires).  That is for when the
 *	  server, or the messenger, does not live to see the end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "own_queues.h"
#include "properties.h"
#include "request.h"
#include "settings.h"

/* Unused for so long, and for twice the time to vote, they expire. */
#define EXPIRES_MIN_MS 60000

#define NQUEUES 3

/* A deletion that is under way, or due. */
typedef struct Ending
{
	TpcChannelOwner owner;		/* first: see messenger.h */
	dlist_node	link;			/* in endings */
	TpcGtid		gtid;
	TimestampTz due;
	uint16		channel;		/* 0: not sent */
	int			answers;		/* to come */
} Ending;

static const TpcMessageType queue_types[NQUEUES] = {
	TPC_MSG_PREPARE, TPC_MSG_COMMIT, TPC_MSG_ROLLBACK
};

/* Of the messenger. */
static dlist_head endings = DLIST_STATIC_INIT(endings);

/* tpc_own_queue_name: of the queue for such messages; also the routing key. */
void
tpc_own_queue_name(char out[TPC_QUEUE_NAME_SIZE], const TpcGtid *gtid,
				   TpcMessageType type)
{
	char		uuid[TPC_UUID_TEXT_SIZE];

	StaticAssertStmt(TPC_OWN_QUEUE_SIZE <= TPC_QUEUE_NAME_SIZE,
					 "names of queues have no room");
	tpc_uuid_to_text(gtid, uuid);
	snprintf(out, TPC_QUEUE_NAME_SIZE, "txn_%s_%s", uuid,
			 tpc_message_type_name(type));
}

/*
 * tpc_own_queues_declare: have the broker make the queues of a transaction.
 * They are there when it returns.  Raises what tpc_request_call() does, and
 * the broker's refusal.
 */
void
tpc_own_queues_declare(TpcNode *node, const TpcGtid *gtid)
{
	TpcBrokerCall calls[2 * NQUEUES];
	char		names[NQUEUES][TPC_QUEUE_NAME_SIZE];
	TpcAnswer	answer;
	StringInfoData arguments;
	int64		expires;

	expires = Max(EXPIRES_MIN_MS, 2 * (int64) tpc_prepare_timeout);
	initStringInfo(&arguments);
	(void) tpc_properties_put_short(&arguments, "x-expires",
									strlen("x-expires"));
	appendStringInfoChar(&arguments, 'I');
	tpc_properties_put_int(&arguments, (uint64) Min(expires, PG_INT32_MAX), 4);

	memset(calls, 0, sizeof(calls));
	for (int i = 0; i < NQUEUES; i++)
	{
		TpcBrokerCall *declare = &calls[2 * i];
		TpcBrokerCall *bind = &calls[2 * i + 1];

		tpc_own_queue_name(names[i], gtid, queue_types[i]);
		declare->kind = TPC_CALL_DECLARE_QUEUE;
		declare->queue = tpc_slice(names[i]);
		declare->durable = true;
		declare->auto_delete = true;
		declare->arguments.ptr = arguments.data;
		declare->arguments.len = arguments.len;
		bind->kind = TPC_CALL_BIND_QUEUE;
		bind->queue = tpc_slice(names[i]);
		bind->exchange = tpc_slice(TPC_EXCHANGE);
		bind->routing_key = tpc_slice(names[i]);
	}
	tpc_request_call(node, calls, 2 * NQUEUES, &answer);
	if (answer.error.sqlstate != 0)
		tpc_request_raise(node, &answer);
}

/*-------------------------------------------------------------------------
 * The messenger's part.
 *-------------------------------------------------------------------------
 */

static void
forget(Ending *ending)
{
	dlist_delete(&ending->link);
	pfree(ending);
}

/* An answer of the broker, or its refusal, which leaves it to their expiry. */
static void
take(TpcChannelOwner *owner, TpcNode *node, TpcBroker *broker,
	 const TpcBrokerEvent *event)
{
	Ending	   *ending = (Ending *) owner;

	switch (event->kind)
	{
		case TPC_EVENT_ANSWER:
			if (--ending->answers > 0)
				break;
			tpc_channel_close(broker, ending->channel);
			forget(ending);
			break;
		case TPC_EVENT_CHANNEL_CLOSED:
			forget(ending);
			break;
		default:
			break;
	}
}

/*
 * tpc_own_queues_end: have the queues of a transaction deleted, after that
 * time.  Losing this (no memory, a messenger that ends) is what expiry is for.
 */
void
tpc_own_queues_end(const TpcGtid *gtid, int delay_ms)
{
	Ending	   *ending;

	ending = MemoryContextAllocExtended(TopMemoryContext, sizeof(Ending),
										MCXT_ALLOC_NO_OOM | MCXT_ALLOC_ZERO);
	if (ending == NULL)
		return;
	ending->owner.take = take;
	ending->gtid = *gtid;
	ending->due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay_ms);
	dlist_push_tail(&endings, &ending->link);
}

static void
send_deletions(TpcBroker *broker, Ending *ending)
{
	ending->channel = tpc_channel_open(broker, &ending->owner, false);
	if (ending->channel == 0)
		return;					/* next turn */
	for (int i = 0; i < NQUEUES; i++)
	{
		char		name[TPC_QUEUE_NAME_SIZE];
		TpcBrokerCall call;

		tpc_own_queue_name(name, &ending->gtid, queue_types[i]);
		memset(&call, 0, sizeof(call));
		call.kind = TPC_CALL_DELETE_QUEUE;
		call.queue = tpc_slice(name);
		if (tpc_channel_call(broker, ending->channel, &call))
			ending->answers++;
	}
}

static void
serve(TpcNode *node, TpcBroker *broker, bool blocked)
{
	dlist_iter	iter;
	TimestampTz now;

	if (broker == NULL || blocked || dlist_is_empty(&endings))
		return;
	now = GetCurrentTimestamp();
	dlist_foreach(iter, &endings)
	{
		Ending	   *ending = dlist_container(Ending, link, iter.cur);

		if (ending->channel == 0 && ending->due <= now)
			send_deletions(broker, ending);
	}
}

static void
connected(TpcNode *node, TpcBroker *broker)
{
}

/* What was under way may not have been done: again. */
static void
lost(TpcNode *node, const TpcBrokerError *error)
{
	dlist_iter	iter;

	dlist_foreach(iter, &endings)
	{
		Ending	   *ending = dlist_container(Ending, link, iter.cur);

		ending->channel = 0;
		ending->answers = 0;
	}
}

const TpcMessengerPart tpc_own_queues_part = {
	connected, lost, serve
};
