/*-------------------------------------------------------------------------
 *
 * messenger.c
 *	  The one process of a node that speaks to the broker.
 *
 * An event loop over its latch and the socket.  Per turn it takes all that
 * sessions and workers have left in shared memory, publishes it in one go,
 * and hands out what has arrived: votes and acknowledgements to the entries
 * of the transactions they belong to (waking just the backend that waits),
 * prepares and decisions to the workers.  It runs no SQL but at its start.
 *
 * To the broker a message is mostly its own weight, whatever is in it.  So
 * what a turn has for one queue of one node leaves as one batch.
 *
 * It may lose anything at any time: whatever it drops, or a broken connection
 * swallows, is sent again or inquired about by the resolve workers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "common/pg_prng.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "broker.h"
#include "compat.h"
#include "consumer.h"
#include "decision.h"
#include "failpoint.h"
#include "messenger.h"
#include "node.h"
#include "option.h"
#include "own_queues.h"
#include "publish.h"
#include "publisher.h"
#include "request.h"
#include "settings.h"
#include "shmem.h"
#include "subscribe.h"
#include "txn.h"
#include "worker.h"

#define RECONNECT_MIN_MS		100
#define RECONNECT_MAX_MS		10000
#define HOUSEKEEPING_MS			1000
/* How often to see to it that the exchange and our bindings are there. */
#define BIND_INTERVAL_MS		5000
/* A decision is sent again after this time, then twice as late, and so on. */
#define RESEND_MIN_MS			1000
/* A decided transaction nobody waits for is left to the lead resolver then. */
#define HAND_OVER_MS			10000
/* So long a rollback stays in the transaction's own queue, if nobody takes it. */
#define OWN_QUEUES_LINGER_MS	5000
/* Events handled between two looks at what there is to send. */
#define EVENTS_PER_TURN			500
/* Turns in which we believe that the socket has nothing for us. */
#define UNREAD_TURNS			16
/* How many forgettable transactions go to the resolver at a time. */
#define FORGET_BATCH			500
#define PREFETCH_DECISION		2000
/* tpc_amqp.max_payload is of what users pass; votes have texts, too. */
#define MAX_BODY				((size_t) tpc_max_payload * 1024 + 16384)
/* A repeated decision expires after so many times resolve_interval. */
#define RESENT_LIFETIME			12
/*
 * Under load a turn begins this part of a round after the last one, if that is
 * worth a sleep: see gather().  With as many transactions under way, one of
 * them has something new in that time.
 */
#define GATHER_SHARE			10
#define GATHER_MIN_US			100
#define GATHER_MAX_US			1000
/* What is not a prepare has no business to be larger than this. */
#define MAX_SMALL_BODY			16384
/* A larger body gains nothing from company. */
#define MAX_SHARED_BODY			8192
/* Coordinators whose floor is remembered. */
#define MAX_FLOORS				10000

/* The newest floor this messenger has seen, by who said it. */
typedef struct FloorKey
{
	char		coordinator[TPC_NODE_SIZE]; /* zero-padded */
	char		user_id[TPC_USER_MAXLEN + 1];
} FloorKey;

typedef struct FloorEntry
{
	FloorKey	key;
	TpcGtid		floor;
	bool		told;			/* the lead resolver knows it */
} FloorEntry;

/* What this turn has for one queue; in turn_context. */
typedef struct Outgoing
{
	char		routing_key[TPC_QUEUE_NAME_SIZE];
	bool		mandatory;
	bool		expires;		/* all of them do, or none */
	int			count;
	TpcMessage	envelope;		/* the first one's, and the longest timeout */
	int			first_at;		/* where in the batch its body lies … */
	size_t		first_len;		/* … in case it remains alone */
	StringInfoData batch;
} Outgoing;

/*
 * A delivery that the broker waits to have acknowledged: one message, or a
 * batch.  The broker hears of it once all in it is dealt with.
 */
typedef struct Delivery
{
	uint64		tag;			/* the key */
	TpcQueueKind queue;
	int			parts;			/* messages in it not dealt with yet */
	TimestampTz since;			/* when it came */
	dlist_node	link;			/* in deliveries_open */
} Delivery;

/* State of this process. */
static TpcNode *node;
static TpcBroker *broker = NULL;
static TpcConnInfo conninfo;
static TpcLocalNode local;
static WaitEventSet *wait_set = NULL;
static int	publisher_socket = PGINVALID_SOCKET;	/* in it … */
static uint32 publisher_events;
static int	publisher_position;
static uint32 epoch = 0;		/* of the present connection */
static bool blocked = false;
static TimestampTz next_attempt = 0;
static int	backoff_ms = 0;
static TimestampTz failure_logged_at = 0;
static TimestampTz options_logged_at = 0;
static TimestampTz bad_logged_at = 0;
static uint64 bad_unlogged = 0;
static TimestampTz housekeeping_at = 0;
static TimestampTz bound_at = 0;
static HTAB *floors = NULL;
static List *outgoing = NIL;	/* of Outgoing, in turn_context */
static Latch *waiters[256];		/* backends to be woken */
static int	nwaiters = 0;
static int	new_jobs[1 + TPC_MAX_KINDS];	/* prepare workers to be woken; by
											 * kind, the general one first */
static uint32 kinds_seen = 0;
static char consumed_kinds[TPC_MAX_KINDS][TPC_KIND_SIZE];	/* of the connection */
static int	new_decisions = 0;	/* resolve workers to be woken */
static HTAB *deliveries = NULL; /* those of the present connection */
static dlist_head deliveries_open = DLIST_STATIC_INIT(deliveries_open);
static int	deliveries_done = 0;	/* of those, all parts dealt with */
static int	parts_open = 0;		/* parts not dealt with, of all */
static TimestampTz turn_ended = 0;
static int	round_us = 0;		/* see note_round(); a running mean */
static TpcGtid forget[FORGET_BATCH];
static int	nforget = 0;
static TpcGtid own_floor;		/* as of this turn */
static uint64 counted_publishes = 0;
static uint64 counted_writes = 0;
static MemoryContext turn_context = NULL;	/* reset every turn */
static volatile sig_atomic_t options_changed = false;
static uint32 wait_event_main = 0;
static uint32 wait_event_gather = 0;

/* Users' own messages.  NULL ends them. */
static const TpcMessengerPart *const parts[] = {
	&tpc_request_part,
	&tpc_own_queues_part,
	&tpc_consumer_part,
	NULL
};

static void handle_sigterm(SIGNAL_ARGS);
static void forget_deliveries(void);
static bool read_options(void);

/* ---------- connection ---------- */

static void
handle_sigterm(SIGNAL_ARGS)
{
	tpc_broker_interrupt();
	die(postgres_signal_arg);
}

static void
close_at_exit(int code, Datum arg)
{
	tpc_publisher_close(node);
	if (broker != NULL)
		tpc_broker_close(broker);
	broker = NULL;
}

static void
options_inval(Datum arg, int cacheid, uint32 hashvalue)
{
	options_changed = true;
}

static void
set_link(TpcLinkState link)
{
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node->link = link;
	node->blocked = blocked;
	if (link == TPC_LINK_UP)
	{
		if (node->connected_since == 0)
			node->connected_since = GetCurrentTimestamp();
	}
	else
		node->connected_since = 0;
	LWLockRelease(&tpc_shared->control);
}

static void
set_last_error(int sqlstate, const char *text)
{
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node->last_sqlstate = sqlstate;
	strlcpy(node->last_error, text, sizeof(node->last_error));
	node->last_error_at = GetCurrentTimestamp();
	LWLockRelease(&tpc_shared->control);
}

static void
make_wait_set(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = tpc_wait_event_set_make(4);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
					  NULL, NULL);
	if (broker != NULL)
		AddWaitEventToSet(wait_set, WL_SOCKET_READABLE,
						  tpc_broker_socket(broker), NULL, &broker);
	publisher_socket = tpc_publisher_socket(&publisher_events);
	if (publisher_socket != PGINVALID_SOCKET)
		publisher_position = AddWaitEventToSet(wait_set, publisher_events,
											   publisher_socket, NULL, NULL);
}

/* Wait for what the connection for publish() waits for. */
static void
adapt_wait_set(void)
{
	uint32		events = 0;
	int			socket = tpc_publisher_socket(&events);

	if (socket != publisher_socket)
		make_wait_set();
	else if (socket != PGINVALID_SOCKET && events != publisher_events)
	{
		ModifyWaitEvent(wait_set, publisher_position, events, NULL);
		publisher_events = events;
	}
}

/* A failure to connect, or a loss: remember it, log it now and then. */
static void
report_failure(const TpcBrokerError *error, bool lost)
{
	char		text[sizeof(node->last_error)];

	if (error->reply_code != 0)
		snprintf(text, sizeof(text), "%s: %d %s", error->phase,
				 error->reply_code, error->text);
	else
		snprintf(text, sizeof(text), "%s: %s", error->phase, error->text);
	set_last_error(error->sqlstate, text);

	if (tpc_worker_may_log(&failure_logged_at) || lost)
		ereport(LOG,
				(errcode(error->sqlstate),
				 lost ?
				 errmsg("node \"%s\" lost its connection to the broker",
						node->name) :
				 errmsg("node \"%s\" could not connect to the broker at \"%s\"",
						node->name, node->broker),
				 errdetail("%s", text),
				 errhint("It keeps trying; this is logged once a minute at most.")));
}

/* tpc_messenger_report: the same, of the connection for publish(). */
void
tpc_messenger_report(const TpcBrokerError *error, bool lost)
{
	static TimestampTz logged_at = 0;
	char		text[sizeof(node->last_error)];

	snprintf(text, sizeof(text), "for publish(): %s: %s", error->phase,
			 error->text);
	set_last_error(error->sqlstate, text);
	if (tpc_worker_may_log(&logged_at) || lost)
		ereport(LOG,
				(errcode(error->sqlstate),
				 lost ?
				 errmsg("node \"%s\" lost its connection to the broker for messages of publish()",
						node->name) :
				 errmsg("node \"%s\" could not connect to the broker for messages of publish()",
						node->name),
				 errdetail("%s", text),
				 errhint("It keeps trying; this is logged once a minute at most.")));
}

static void
schedule_attempt(void)
{
	backoff_ms = backoff_ms == 0 ? RECONNECT_MIN_MS :
		Min(backoff_ms * 2, RECONNECT_MAX_MS);
	/* spread the nodes that lost the same broker */
	next_attempt = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   backoff_ms / 2 +
											   (int) (pg_prng_double(&pg_global_prng_state) *
													  backoff_ms / 2));
}

static void
connection_lost(const TpcBrokerError *error)
{
	TpcBrokerError copy = *error;

	tpc_broker_close(broker);
	broker = NULL;
	for (int i = 0; parts[i] != NULL; i++)
		parts[i]->lost(node, &copy);
	tpc_publisher_close(node);
	blocked = false;
	counted_publishes = counted_writes = 0;
	outgoing = NIL;
	forget_deliveries();
	make_wait_set();
	report_failure(&copy, true);
	set_link(TPC_LINK_CONNECTING);
	backoff_ms = 0;
	next_attempt = GetCurrentTimestamp();
}

/*
 * After a connect: what was sent over the old connection may be lost.
 * Prepares are not repeated (a lost one times out), decisions are.
 */
static void
requeue_transactions(void)
{
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;

	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		if (txn->key.dbid != node->dbid || txn->state == TPC_TXN_ACTIVE)
			continue;
		if (txn->state == TPC_TXN_COMMITTED && !txn->done)
			txn->decision_sent = false;
		tpc_txn_queue(node, txn);
	}
	LWLockRelease(&tpc_shared->txns);
}

/* How many prepares may be here at a time, of a queue with so many workers. */
static int
prepare_prefetch(int workers)
{
	/* full batches, too, are to find room in the table of jobs */
	int			prefetch = Min(Max(16, 4 * workers),
							   Max(workers, tpc_max_transactions /
								   TPC_BATCH_MAX_ITEMS));

	return Min(prefetch, tpc_max_transactions);
}

static void
fill_params(TpcBrokerParams *params)
{
	memset(params, 0, sizeof(*params));
	params->host = conninfo.host;
	params->port = conninfo.port;
	params->vhost = conninfo.vhost;
	params->user = conninfo.user;
	params->password = conninfo.password;
	params->heartbeat_s = conninfo.heartbeat_s;
	params->connect_timeout_ms = conninfo.connect_timeout_ms;
	params->tls = conninfo.tls;
	params->tls_verify = conninfo.tls_verify;
	params->cacert = conninfo.cacert[0] ? conninfo.cacert : NULL;
	params->cert = conninfo.cert[0] ? conninfo.cert : NULL;
	params->key = conninfo.key[0] ? conninfo.key : NULL;
	params->prefetch_prepare = prepare_prefetch(tpc_prepare_workers);
	params->prefetch_decision = PREFETCH_DECISION;
	params->max_body = Max(MAX_BODY, TPC_BATCH_MAX_BYTES);
	params->node = node->name;
}

/* One attempt to connect; false if it failed (and was reported). */
static bool
try_connect(void)
{
	TpcBrokerParams params;
	TpcBrokerError error;

	fill_params(&params);
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	snprintf(node->broker, sizeof(node->broker), "%s:%d/%s",
			 conninfo.host, conninfo.port,
			 strcmp(conninfo.vhost, "/") == 0 ? "" : conninfo.vhost);
	LWLockRelease(&tpc_shared->control);

	broker = tpc_broker_open(&params, &error);
	if (broker == NULL)
	{
		report_failure(&error, false);
		set_link(TPC_LINK_DOWN);
		schedule_attempt();
		return false;
	}
	make_wait_set();
	blocked = false;
	backoff_ms = 0;
	failure_logged_at = 0;
	tpc_node_count(node, TPC_STAT_CONNECTS, 1);
	return true;
}

static bool
has_kind(char names[TPC_MAX_KINDS][TPC_KIND_SIZE], const char *name)
{
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (strcmp(names[i], name) == 0)
			return true;
	}
	return false;
}

/*
 * Consume prepares of the kinds there are, and of no others.  On a new
 * connection none are consumed yet, but queues may be left of former kinds.
 *
 * By their names: since we looked last, a kind may have ended and come back in
 * the place of another.
 */
static void
follow_kinds(bool new_connection)
{
	TpcKind		kinds[TPC_MAX_KINDS];
	char		names[TPC_MAX_KINDS][TPC_KIND_SIZE];

	kinds_seen = pg_atomic_read_u32(&node->kinds_changed);
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	memcpy(kinds, node->kinds, sizeof(kinds));
	LWLockRelease(&tpc_shared->control);
	for (int i = 0; i < TPC_MAX_KINDS; i++)
		strlcpy(names[i], kinds[i].name, sizeof(names[i]));

	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (consumed_kinds[i][0] != '\0' &&
			!has_kind(names, consumed_kinds[i]))
			(void) tpc_broker_drop_kind(broker, consumed_kinds[i]);
	}
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (names[i][0] != '\0' &&
			(new_connection || !has_kind(consumed_kinds, names[i])))
			(void) tpc_broker_add_kind(broker, names[i],
									   prepare_prefetch(kinds[i].workers));
	}
	memcpy(consumed_kinds, names, sizeof(consumed_kinds));
}

/* Connected and allowed to work: tell everybody. */
static void
go_live(void)
{
	epoch = pg_atomic_add_fetch_u32(&node->epoch, 1);
	set_link(TPC_LINK_UP);
	requeue_transactions();
	follow_kinds(true);
	tpc_wake_lead(node);
	for (int i = 0; parts[i] != NULL; i++)
		parts[i]->connected(node, broker);
	ereport(LOG,
			(errmsg("node \"%s\" is connected to the broker at \"%s\"",
					node->name, node->broker)));
	if (!tpc_option_is_peer(&conninfo, node->name, conninfo.user))
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("node \"%s\" is not the broker user that option \"peer_user\" of its server names",
						node->name),
				 errdetail("It is connected as \"%s\"; nodes with the same option drop its messages.",
						   conninfo.user)));
}

/*
 * (Re)read where the broker is.  False if this database is no node.  If that
 * cannot be read (the server or the mapping was dropped), *ok is false.
 */
static bool
load_options(volatile bool *ok)
{
	volatile bool attached = true;
	MemoryContext old = CurrentMemoryContext;

	*ok = true;
	PG_TRY();
	{
		attached = read_options();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(turn_context);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		if (tpc_worker_may_log(&options_logged_at))
			ereport(LOG,
					(errcode(edata->sqlerrcode),
					 errmsg("node \"%s\" does not know its broker: %s",
							node->name, edata->message)));
		set_last_error(edata->sqlerrcode, edata->message);
		set_link(TPC_LINK_DOWN);
		*ok = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return attached;
}

static bool
read_options(void)
{
	bool		attached;

	tpc_worker_begin();
	attached = tpc_local_node_read(&local);
	if (attached)
	{
		strlcpy(node->name, local.name, sizeof(node->name));
		tpc_option_load(tpc_option_server_oid(local.server),
						local.attached_by, &conninfo);
	}
	tpc_worker_end();
	return attached;
}

/* ---------- sending ---------- */

/* Hand to the broker layer one message, or a batch of them. */
static void
publish_now(TpcMessage *envelope, const char *routing_key, bool mandatory,
			StringInfo batch, const char *body, size_t len, int count)
{
	TpcWire		wire;
	TpcWireScratch scratch;

	tpc_message_fill_wire(envelope, &wire, &scratch);
	if (batch != NULL)
	{
		tpc_message_end_batch(batch, &wire);
		body = batch->data;
		len = batch->len;
	}
	wire.body.ptr = body;
	wire.body.len = len;
	(void) tpc_broker_publish(broker, routing_key, &wire, mandatory);
	tpc_node_count(node, TPC_STAT_MESSAGES_SENT, count);
}

static void
publish_batch(Outgoing *out)
{
	publish_now(&out->envelope, out->routing_key, out->mandatory,
				out->count > 1 ? &out->batch : NULL,
				out->batch.data + out->first_at, out->first_len, out->count);
	out->count = 0;
}

/* Publish what this turn has gathered. */
static void
publish_outgoing(void)
{
	ListCell   *lc;

	foreach(lc, outgoing)
	{
		Outgoing   *out = lfirst(lc);

		if (out->count > 0)
			publish_batch(out);
	}
	outgoing = NIL;
}

/* Where this turn gathers messages of this kind. */
static Outgoing *
find_outgoing(const char *routing_key, bool expires)
{
	Outgoing   *out;
	ListCell   *lc;
	MemoryContext old;

	foreach(lc, outgoing)
	{
		out = lfirst(lc);
		if (out->expires == expires &&
			strcmp(out->routing_key, routing_key) == 0)
			return out;
	}
	old = MemoryContextSwitchTo(turn_context);
	out = palloc(sizeof(Outgoing));
	strlcpy(out->routing_key, routing_key, sizeof(out->routing_key));
	out->expires = expires;
	out->count = 0;
	initStringInfo(&out->batch);
	outgoing = lappend(outgoing, out);
	MemoryContextSwitchTo(old);
	return out;
}

/*
 * publish_to: have a message published by the end of this turn, with what else
 * goes to the same queue.  One that expires does not share with one that does
 * not: repeated decisions are to go when nobody takes them.
 */
static void
publish_to(TpcMessage *msg, const char *routing_key, const char *body,
		   size_t len)
{
	/* nobody waits for the answer to anything else that is not taken */
	bool		mandatory = msg->type == TPC_MSG_PREPARE;
	Outgoing   *out;
	int			at;

	strlcpy(msg->from, node->name, sizeof(msg->from));
	strlcpy(msg->user_id, conninfo.user, sizeof(msg->user_id));
	if (len > MAX_SHARED_BODY)
	{
		publish_now(msg, routing_key, mandatory, NULL, body, len, 1);
		return;
	}

	out = find_outgoing(routing_key, msg->timeout_ms > 0);
	if (out->count == TPC_BATCH_MAX_ITEMS ||
		out->batch.len + len + TPC_BATCH_ITEM_OVERHEAD > TPC_BATCH_MAX_BYTES)
		publish_batch(out);
	if (out->count == 0)
	{
		out->envelope = *msg;
		out->mandatory = mandatory;
		resetStringInfo(&out->batch);
		tpc_message_begin_batch(&out->batch);
	}
	at = tpc_message_add_to_batch(&out->batch, msg, body, len);
	if (out->count == 0)
	{
		out->first_at = at;
		out->first_len = len;
	}
	out->envelope.timeout_ms = Max(out->envelope.timeout_ms, msg->timeout_ms);
	out->count++;
}

/* The same, to one of the standard queues of a node. */
static void
publish(TpcMessage *msg, const char *to, TpcQueueKind queue,
		const char *body, size_t len)
{
	char		routing_key[TPC_QUEUE_NAME_SIZE];

	tpc_broker_queue_name(routing_key, to, queue);
	publish_to(msg, routing_key, body, len);
}

/* A message of this node as coordinator carries its floor. */
static void
message_init(TpcMessage *msg, TpcMessageType type, const TpcGlobalId *id)
{
	memset(msg, 0, sizeof(*msg));
	msg->type = type;
	msg->id = *id;
	if (strcmp(id->coordinator, node->name) == 0)
	{
		msg->floor = own_floor;
		msg->has_floor = !tpc_gtid_is_zero(&msg->floor);
	}
}

static void
global_id(const TpcTxn *txn, TpcGlobalId *id)
{
	memset(id, 0, sizeof(*id));
	strlcpy(id->coordinator, node->name, sizeof(id->coordinator));
	id->gtid = txn->key.gtid;
}

/* Where a participant's prepare goes. */
static void
prepare_queue(char out[TPC_QUEUE_NAME_SIZE], const TpcParticipant *part,
			  const TpcGlobalId *id)
{
	if (part->own_queues)
		tpc_own_queue_name(out, &id->gtid, TPC_MSG_PREPARE);
	else
		tpc_broker_prepare_queue_name(out, part->node, part->kind);
}

/* C1: publish the prepares of a transaction, and free their bodies. */
static void
send_prepares(TpcTxn *txn)
{
	TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);
	TpcGlobalId id;
	TpcMessage	msg;
	char		routing_key[TPC_QUEUE_NAME_SIZE];
	long		left;

	global_id(txn, &id);
	left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(txn->prepare_at,
																	   txn->timeout_ms));
	if (left <= 0)
		return;					/* the backend is about to give up */
	for (int i = 0; i < txn->nparticipants; i++)
	{
		dsa_pointer body = parts[i].body;

		if (!DsaPointerIsValid(body))
			continue;
		message_init(&msg, TPC_MSG_PREPARE, &id);
		msg.timeout_ms = (int) left;
		prepare_queue(routing_key, &parts[i], &id);
		publish_to(&msg, routing_key, dsa_get_address(tpc_area(), body),
				   parts[i].body_len);
		LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
		parts[i].sent = true;
		parts[i].body = InvalidDsaPointer;
		LWLockRelease(&tpc_shared->txns);
		dsa_free(tpc_area(), body);
		tpc_node_count(node, TPC_STAT_PREPARES_SENT, 1);
	}
	txn->prepares_sent = true;
}

/*
 * A decision, also "unknown".  Those are for people: in the transaction's own
 * queues, one of which means rollback, they could be taken for something else.
 */
static void
publish_decision(TpcMessage *msg, const char *to, bool own_queues,
				 const char *body, size_t len)
{
	char		routing_key[TPC_QUEUE_NAME_SIZE];

	if (!own_queues)
	{
		publish(msg, to, TPC_QUEUE_DECISION, body, len);
		return;
	}
	if (msg->type == TPC_MSG_UNKNOWN)
		return;
	tpc_own_queue_name(routing_key, &msg->id.gtid, msg->type);
	publish_to(msg, routing_key, body, len);
}

static void
send_decision(const TpcGlobalId *id, const char *to, bool own_queues,
			  bool commit)
{
	TpcMessage	msg;
	StringInfoData body;

	message_init(&msg, commit ? TPC_MSG_COMMIT : TPC_MSG_ROLLBACK, id);
	initStringInfo(&body);
	tpc_message_encode_body(&msg, &body);
	publish_decision(&msg, to, own_queues, body.data, body.len);
	tpc_node_count(node, commit ? TPC_STAT_COMMITS_SENT :
				   TPC_STAT_ROLLBACKS_SENT, 1);
}

static void
push_forget(void)
{
	TpcItem		head;
	dsa_pointer item;

	if (nforget == 0)
		return;
	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_FORGET;
	item = tpc_item_try_make(&head, (char *) forget,
							 nforget * sizeof(TpcGtid));
	nforget = 0;
	if (!DsaPointerIsValid(item))
		return;					/* then they are sent and acknowledged again */
	tpc_queue_push(node, &node->chores, item);
	tpc_wake_lead(node);
}

/*
 * The branch that this transaction is as well has been applied with all that
 * it has called, so far as we wait for that.
 */
static void
send_parent_ack(TpcTxn *txn)
{
	if (DsaPointerIsValid(txn->parent_ack))
		tpc_outbox_push(node, txn->parent_ack);
	txn->parent_ack = InvalidDsaPointer;
}

/*
 * wake_all: wake whom this turn has something for.
 *
 * Not one by one, and not under a lock: who is woken often runs at once, in
 * our place, and would run into it.
 */
static void
wake_all(void)
{
	for (int i = 0; i < nwaiters; i++)
		SetLatch(waiters[i]);
	nwaiters = 0;
	for (int i = 0; i < 1 + TPC_MAX_KINDS; i++)
	{
		for (; new_jobs[i] > 0; new_jobs[i]--)
			tpc_wake_prepare_worker(node, i - 1);
	}
	for (; new_decisions > 0; new_decisions--)
		tpc_wake_resolver(node);
}

/* Have a backend woken.  It may have ended by then: see shmem.c, Waking. */
static void
wake_later(Latch *waiter)
{
	if (nwaiters == lengthof(waiters))
		wake_all();
	waiters[nwaiters++] = waiter;
}

/* All have acknowledged: wake the waiter, let the resolver forget it. */
static void
transaction_done(TpcTxn *txn)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->txns, LW_EXCLUSIVE));
	txn->done = true;
	if (txn->own_queues)
		tpc_own_queues_end(&txn->key.gtid, 0);
	forget[nforget++] = txn->key.gtid;
	send_parent_ack(txn);
	if (txn->waiter != NULL)
		wake_later(txn->waiter);
	else
		tpc_txn_queue(node, txn);
}

/* Whether a participant has yet to hear of, and acknowledge, the commit. */
static bool
awaits_commit(const TpcParticipant *part)
{
	return part->vote == TPC_PART_YES && !part->dropped && !part->acked;
}

/*
 * C5: publish the commit of a transaction to who voted yes; who was enlisted
 * in a savepoint that rolled back is no part of it, and to roll back.
 */
static void
send_commits(TpcTxn *txn)
{
	TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);
	TpcGlobalId id;

	global_id(txn, &id);
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn->npending_acks = 0;
	for (int i = 0; i < txn->nparticipants; i++)
	{
		if (awaits_commit(&parts[i]))
			txn->npending_acks++;
	}
	if (txn->npending_acks == 0 && !txn->done)
		transaction_done(txn);
	LWLockRelease(&tpc_shared->txns);

	if (!txn->decision_sent && broker != NULL && !blocked)
	{
		TPC_FAILPOINT("C5.send");
		for (int i = 0; i < txn->nparticipants; i++)
		{
			if (awaits_commit(&parts[i]))
				send_decision(&id, parts[i].node, parts[i].own_queues, true);
			else if (parts[i].dropped && txn->resend_ms == 0 &&
					 (parts[i].vote == TPC_PART_WAITING ||
					  parts[i].vote == TPC_PART_YES))
				/* one that is enlisted: not into the queues of another one */
				send_decision(&id, parts[i].node, false, false);
		}
		txn->decision_sent = true;
		txn->resend_ms = txn->resend_ms == 0 ? RESEND_MIN_MS :
			txn->resend_ms * 2;
		txn->sent_at = GetCurrentTimestamp();
	}
	if (nforget >= FORGET_BATCH)
		push_forget();
}

/* Rolled back: tell who may have a branch, and remove the entry. */
static void
send_rollbacks(TpcTxn *txn)
{
	TpcParticipant *parts = NULL;
	TpcGlobalId id;

	global_id(txn, &id);
	if (DsaPointerIsValid(txn->participants))
		parts = dsa_get_address(tpc_area(), txn->participants);
	for (int i = 0; parts != NULL && i < txn->nparticipants; i++)
	{
		if (parts[i].sent && broker != NULL && !blocked &&
			(parts[i].vote == TPC_PART_WAITING ||
			 parts[i].vote == TPC_PART_YES))
			send_decision(&id, parts[i].node, parts[i].own_queues, false);
	}
	tpc_node_count(node, TPC_STAT_ABORTS, 1);
	if (txn->own_queues)
		tpc_own_queues_end(&txn->key.gtid,
						   txn->prepares_sent ? OWN_QUEUES_LINGER_MS : 0);
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	tpc_txn_free(txn);
	LWLockRelease(&tpc_shared->txns);
}

/* ---------- gathering ---------- */

/* How long something took that we waited for: a vote, or a worker. */
static void
note_round(TimestampTz since)
{
	int64		us = GetCurrentTimestamp() - since;

	us = Min(Max(us, 0), GATHER_SHARE * GATHER_MAX_US);
	round_us += ((int) us - round_us) / 16;
}

/*
 * gather: under load, leave some time between two turns, so that each finds
 * more.  True if it has waited.
 *
 * As with commit_delay, that pays where many wait for few: a batch is little
 * more work than a message, to us and to the broker.  It is a fraction of
 * what a round of messages takes anyway, so where that is fast, or nobody is
 * likely to come in that time, there is no waiting at all.
 *
 * It sleeps rather than wait for the latch or the socket, which would end at
 * once: they are what we leave alone meanwhile.  Who sets the latch now need
 * not send a signal.
 */
static bool
gather(void)
{
	int			wanted = round_us / GATHER_SHARE;
	TimestampTz left;

	if (broker == NULL || wanted < GATHER_MIN_US ||
		Max(hash_get_num_entries(tpc_txns), parts_open) < GATHER_SHARE)
		return false;
	left = turn_ended + wanted - GetCurrentTimestamp();
	if (left <= 0 || left > wanted)
		return false;
	pgstat_report_wait_start(tpc_wait_event(&wait_event_gather,
											"TpcAmqpGather"));
	pg_usleep((long) left);
	pgstat_report_wait_end();
	return true;
}

/* ---------- acknowledging deliveries ---------- */

/* A delivery of so many messages; those of votes the broker has forgotten. */
static void
open_delivery(const TpcBrokerEvent *event, int parts)
{
	Delivery   *delivery;
	bool		found;

	if (event->queue == TPC_QUEUE_VOTE)
		return;
	delivery = hash_search(deliveries, &event->delivery_tag, HASH_ENTER,
						   &found);
	if (found)
		return;					/* not from a broker */
	delivery->queue = event->queue;
	delivery->parts = parts;
	delivery->since = GetCurrentTimestamp();
	parts_open += parts;
	dlist_push_tail(&deliveries_open, &delivery->link);
}

/* One message of a delivery of this connection is dealt with. */
static void
part_done(uint64 tag)
{
	Delivery   *delivery = hash_search(deliveries, &tag, HASH_FIND, NULL);

	if (delivery == NULL || delivery->parts == 0)
		return;
	note_round(delivery->since);
	parts_open--;
	if (--delivery->parts == 0)
		deliveries_done++;
}

/*
 * Acknowledge the deliveries that are dealt with.  Tags grow, and those of
 * both queues are one sequence: all up to the first that is not dealt with
 * need but one acknowledgement.  After publishing, so that no answer is lost
 * that the broker would have made us repeat.
 */
static void
acknowledge_deliveries(void)
{
	dlist_mutable_iter iter;
	bool		from_oldest = true;
	int			n = 0;
	uint64		upto = 0;
	TpcQueueKind queue = TPC_QUEUE_PREPARE;

	if (deliveries_done == 0)
		return;
	dlist_foreach_modify(iter, &deliveries_open)
	{
		Delivery   *delivery = dlist_container(Delivery, link, iter.cur);

		if (deliveries_done == 0)
			break;
		if (delivery->parts > 0)
		{
			from_oldest = false;
			continue;
		}
		if (from_oldest)
		{
			upto = delivery->tag;
			queue = delivery->queue;
			n++;
		}
		else
			(void) tpc_broker_ack(broker, delivery->queue, delivery->tag,
								  false);
		deliveries_done--;
		dlist_delete(&delivery->link);
		(void) hash_search(deliveries, &delivery->tag, HASH_REMOVE, NULL);
	}
	if (n > 0)
		(void) tpc_broker_ack(broker, queue, upto, n > 1);
}

/* The connection they came over is gone, and the broker has them again. */
static void
forget_deliveries(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &deliveries_open)
	{
		Delivery   *delivery = dlist_container(Delivery, link, iter.cur);

		dlist_delete(&delivery->link);
		(void) hash_search(deliveries, &delivery->tag, HASH_REMOVE, NULL);
	}
	deliveries_done = 0;
	parts_open = 0;
}

/* ---------- serving sessions and workers ---------- */

/* Look at every transaction somebody queued. */
static void
serve_transactions(void)
{
	for (;;)
	{
		TpcTxn	   *txn = NULL;
		TpcTxnState state = TPC_TXN_ACTIVE;
		bool		remove = false;

		LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
		if (!dlist_is_empty(&node->txn_queue))
		{
			txn = dlist_container(TpcTxn, link,
								  dlist_pop_head_node(&node->txn_queue));
			txn->queued = false;
			state = txn->state;
			remove = state == TPC_TXN_COMMITTED && txn->done &&
				txn->waiter == NULL;
			if (remove)
				tpc_txn_free(txn);
		}
		LWLockRelease(&tpc_shared->txns);
		if (txn == NULL)
			break;
		if (remove)
			continue;

		/*
		 * The entry stays ours to read: only this process frees it.  Its
		 * backend may move on to another state meanwhile, and then queues it
		 * again.
		 */
		switch (state)
		{
			case TPC_TXN_ACTIVE:
				break;
			case TPC_TXN_PREPARING:
			case TPC_TXN_PREPARED:
				/* not connected: it times out, or we connect and requeue */
				if (!txn->prepares_sent && broker != NULL && !blocked)
					send_prepares(txn);
				break;
			case TPC_TXN_COMMITTED:
				send_commits(txn);
				break;
			case TPC_TXN_ABORTED:
				send_rollbacks(txn);
				break;
		}
	}
}

/* Publish what the workers have left, oldest first. */
static void
serve_outbox(void)
{
	dsa_pointer p = tpc_outbox_take(node);
	dsa_pointer oldest = InvalidDsaPointer;

	/* it comes newest first: turn it round */
	while (DsaPointerIsValid(p))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), p);
		dsa_pointer next = item->next;

		item->next = oldest;
		oldest = p;
		p = next;
	}

	while (DsaPointerIsValid(oldest))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), oldest);
		dsa_pointer next = item->next;

		if (broker != NULL && item->publish && !blocked)
		{
			TpcMessage	msg;

			message_init(&msg, item->type, &item->id);

			/* the next one follows by then: let them not pile up */
			if (item->counts_resent)
				msg.timeout_ms = RESENT_LIFETIME * tpc_resolve_interval;
			if (item->type == TPC_MSG_COMMIT ||
				item->type == TPC_MSG_ROLLBACK ||
				item->type == TPC_MSG_UNKNOWN)
				publish_decision(&msg, item->peer, item->own_queues,
								 item->body, item->len);
			else
				publish(&msg, item->peer, TPC_QUEUE_VOTE, item->body,
						item->len);
			if (item->type == TPC_MSG_COMMIT)
				tpc_node_count(node, TPC_STAT_COMMITS_SENT, 1);
			else if (item->type == TPC_MSG_ROLLBACK)
				tpc_node_count(node, TPC_STAT_ROLLBACKS_SENT, 1);
			else if (item->type == TPC_MSG_INQUIRY)
				tpc_node_count(node, TPC_STAT_INQUIRIES_SENT, 1);
			if (item->counts_resent)
				tpc_node_count(node, TPC_STAT_DECISIONS_RESENT, 1);
		}
		if (broker != NULL && item->ack_delivery && item->epoch == epoch)
			part_done(item->delivery_tag);
		dsa_free(tpc_area(), oldest);
		oldest = next;
	}
}

/* ---------- receiving ---------- */

/* Drop a message: count it, and say so once a minute. */
static void
bad_message(const TpcBrokerEvent *event, const char *why)
{
	tpc_node_count(node, TPC_STAT_BAD_MESSAGES, 1);
	bad_unlogged++;
	if (tpc_worker_may_log(&bad_logged_at))
	{
		static const char *const suffixes[] = {"prepare", "decision", "vote"};

		ereport(LOG,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("node \"%s\" dropped a message from its %s queue: %s",
						node->name, suffixes[event->queue], why),
				 errdetail_plural("%llu message dropped since this was last logged.",
								  "%llu messages dropped since this was last logged.",
								  (unsigned long) bad_unlogged,
								  (unsigned long long) bad_unlogged)));
		bad_unlogged = 0;
	}
}

static void
ack_delivery(const TpcBrokerEvent *event)
{
	if (event->queue != TPC_QUEUE_VOTE)
		part_done(event->delivery_tag);
}

/* Answer a prepare that cannot even be queued. */
static void
refuse_prepare(const TpcMessage *in, const char *sqlstate, const char *text)
{
	TpcMessage	msg;
	StringInfoData body;

	message_init(&msg, TPC_MSG_VOTE, &in->id);
	msg.has_floor = false;
	msg.vote = TPC_VOTE_NO;
	strlcpy(msg.error.sqlstate, sqlstate, sizeof(msg.error.sqlstate));
	msg.error.message = pstrdup(text);
	initStringInfo(&body);
	tpc_message_encode_body(&msg, &body);
	publish(&msg, in->id.coordinator, TPC_QUEUE_VOTE, body.data, body.len);
	tpc_node_count(node, TPC_STAT_BRANCHES_REFUSED, 1);
}

/*
 * The index of a kind.  One that is gone meanwhile is the general workers'
 * affair, as are its jobs (kind.c).
 */
static int
find_kind(const TpcSlice *name)
{
	int			result = TPC_KIND_GENERAL;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (strlen(node->kinds[i].name) == name->len &&
			memcmp(node->kinds[i].name, name->ptr, name->len) == 0)
			result = i;
	}
	LWLockRelease(&tpc_shared->control);
	return result;
}

/* P1: a prepare becomes a job, unless there is one already. */
static void
take_prepare(const TpcBrokerEvent *event, const TpcMessage *msg)
{
	TpcJob	   *job;
	TpcJobKey	key;
	bool		found;
	dsa_pointer body;
	TimestampTz now = GetCurrentTimestamp();
	uint32		len = (uint32) event->wire.body.len;
	int			kind = TPC_KIND_GENERAL;

	TPC_FAILPOINT("P1.before");
	tpc_node_count(node, TPC_STAT_PREPARES, 1);
	if (event->call_kind.ptr != NULL)
		kind = find_kind(&event->call_kind);
	body = tpc_area_try_alloc(Max(len, 1));
	if (!DsaPointerIsValid(body))
	{
		refuse_prepare(msg, "53200",
					   "out of shared memory for messages");
		ack_delivery(event);
		return;
	}
	memcpy(dsa_get_address(tpc_area(), body), event->wire.body.ptr, len);

	memset(&key, 0, sizeof(key));
	key.dbid = node->dbid;
	key.id = msg->id;
	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	job = hash_search(tpc_jobs, &key, HASH_ENTER_NULL, &found);
	if (job != NULL && found)
	{
		/*
		 * A repeated one.  If it came again because the connection was lost,
		 * it is this delivery that the worker has to acknowledge.
		 */
		if (job->epoch != epoch)
		{
			job->delivery_tag = event->delivery_tag;
			job->epoch = epoch;
			LWLockRelease(&tpc_shared->jobs);
			dsa_free(tpc_area(), body);
			tpc_node_count(node, TPC_STAT_DUPLICATES, 1);
			return;
		}
	}
	else if (job != NULL)
	{
		job->state = TPC_JOB_QUEUED;
		job->pid = 0;
		job->cancel = false;
		strlcpy(job->user_id, msg->user_id, sizeof(job->user_id));
		job->received = now;
		job->deadline = TimestampTzPlusMilliseconds(now, msg->timeout_ms);
		job->delivery_tag = event->delivery_tag;
		job->epoch = epoch;
		job->body = body;
		job->len = len;
		/* it may have ended since, and nobody looks at its jobs any more */
		if (kind != TPC_KIND_GENERAL && node->kinds[kind].name[0] == '\0')
			kind = TPC_KIND_GENERAL;
		job->kind = kind;
		dlist_push_tail(kind == TPC_KIND_GENERAL ? &node->job_queue :
						&node->kind_queue[kind], &job->link);
	}
	LWLockRelease(&tpc_shared->jobs);

	if (job == NULL || found)
	{
		if (job == NULL)
			refuse_prepare(msg, "53400", "too many branches are queued");
		else
			tpc_node_count(node, TPC_STAT_DUPLICATES, 1);
		dsa_free(tpc_area(), body);
		ack_delivery(event);
		return;
	}
	new_jobs[1 + kind]++;
	TPC_FAILPOINT("P1.after");
}

/* Pass a message on to the resolve workers. */
static void
pass_on(const TpcBrokerEvent *event, const TpcMessage *msg,
		TpcItemQueue *queue, bool lead_only)
{
	TpcItem		head;
	dsa_pointer item;

	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_MESSAGE;
	head.type = msg->type;
	head.id = msg->id;
	head.own_queues = msg->own_queues;
	strlcpy(head.peer, msg->from, sizeof(head.peer));
	strlcpy(head.user_id, msg->user_id, sizeof(head.user_id));
	if (event->queue != TPC_QUEUE_VOTE)
	{
		head.ack_delivery = true;
		head.ack_queue = event->queue;
		head.delivery_tag = event->delivery_tag;
		head.epoch = epoch;
	}
	item = tpc_item_try_make(&head, event->wire.body.ptr,
							 (uint32) event->wire.body.len);
	if (!DsaPointerIsValid(item))
	{
		/* it comes again: sent or asked for anew */
		ack_delivery(event);
		return;
	}
	tpc_queue_push(node, queue, item);
	if (lead_only)
		tpc_wake_lead(node);
	else
		new_decisions++;
}

static TpcParticipant *
find_participant(TpcTxn *txn, const char *name)
{
	TpcParticipant *parts;

	if (!DsaPointerIsValid(txn->participants))
		return NULL;
	parts = dsa_get_address(tpc_area(), txn->participants);
	for (int i = 0; i < txn->nparticipants; i++)
	{
		if (strcmp(parts[i].node, name) == 0)
			return &parts[i];
	}
	return NULL;
}

/* Whether votes for it may still come in. */
static bool
takes_votes(const TpcTxn *txn)
{
	return txn->state == TPC_TXN_ACTIVE || txn->state == TPC_TXN_PREPARING ||
		txn->state == TPC_TXN_PREPARED;
}

static void
wake_if_decidable(TpcTxn *txn)
{
	if (txn->waiter != NULL &&
		(txn->nrefused > 0 || txn->nvotes == txn->nexpected))
		wake_later(txn->waiter);
}

/*
 * take_vote: a vote, or an inquiry, which comes from a prepared branch and so
 * says yes.  For a transaction that is decided or not known it is a question.
 */
static void
take_vote(const TpcBrokerEvent *event, const TpcMessage *msg)
{
	TpcTxn	   *txn;
	TpcParticipant *part;
	bool		says_yes = msg->type != TPC_MSG_VOTE ||
	msg->vote == TPC_VOTE_YES;
	bool		ask = false;
	bool		resend = false;
	bool		own_queues = false;
	const char *why = NULL;
	dsa_pointer reason = InvalidDsaPointer;

	if (strcmp(msg->id.coordinator, node->name) != 0)
	{
		bad_message(event, "a vote for another coordinator's transaction");
		return;
	}
	if (msg->type == TPC_MSG_INQUIRY)
		tpc_node_count(node, TPC_STAT_INQUIRIES, 1);
	if (msg->type == TPC_MSG_VOTE &&
		(msg->vote == TPC_VOTE_NO || msg->nresults > 0))
	{
		/* without its reason it still is a no, without its results a yes */
		reason = tpc_area_try_alloc(Max(event->wire.body.len, 1));
		if (DsaPointerIsValid(reason))
			memcpy(dsa_get_address(tpc_area(), reason), event->wire.body.ptr,
				   event->wire.body.len);
	}

	TPC_FAILPOINT("C2.vote");
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = tpc_txn_find(node->dbid, &msg->id.gtid);
	part = txn != NULL ? find_participant(txn, msg->from) : NULL;
	if (txn == NULL || txn->state == TPC_TXN_ABORTED)
		ask = says_yes;
	else if (part == NULL || !part->sent)
		why = "a vote from a node that was not asked";
	else if (txn->state == TPC_TXN_COMMITTED)
	{
		resend = says_yes && awaits_commit(part);
		own_queues = part->own_queues || msg->own_queues;
		/* it takes no part in what was committed: rollback */
		ask = says_yes && part->dropped;
	}
	else if (part->dropped)
		;						/* when the transaction has ended */
	else if (takes_votes(txn) && part->vote == TPC_PART_WAITING)
	{
		/* how long an application takes tells nothing */
		if (!part->enlisted)
			note_round(txn->prepare_at);
		strlcpy(part->user_id, msg->user_id, sizeof(part->user_id));
		/* asked for after a restart, in which we have forgotten it */
		part->own_queues = part->own_queues || msg->own_queues;
		if (says_yes)
		{
			part->vote = TPC_PART_YES;
			txn->nvotes++;
			tpc_node_count(node, TPC_STAT_VOTES_YES, 1);
		}
		else if (msg->vote == TPC_VOTE_READ_ONLY)
		{
			part->vote = TPC_PART_READ_ONLY;
			txn->nvotes++;
			tpc_node_count(node, TPC_STAT_VOTES_READ_ONLY, 1);
		}
		else
		{
			part->vote = TPC_PART_NO;
			txn->nrefused++;
			tpc_node_count(node, TPC_STAT_VOTES_NO, 1);
		}
		part->reason = reason;
		part->reason_len = DsaPointerIsValid(reason) ?
			(uint32) event->wire.body.len : 0;
		reason = InvalidDsaPointer;
		wake_if_decidable(txn);
	}
	LWLockRelease(&tpc_shared->txns);

	if (DsaPointerIsValid(reason))
		dsa_free(tpc_area(), reason);
	if (why != NULL)
		bad_message(event, why);
	if (resend)
	{
		send_decision(&msg->id, msg->from, own_queues, true);
		tpc_node_count(node, TPC_STAT_DECISIONS_RESENT, 1);
	}
	if (ask)
	{
		TpcMessage	inquiry = *msg;

		inquiry.type = TPC_MSG_INQUIRY;
		pass_on(event, &inquiry, &node->decisions, false);
	}
}

/*
 * take_request: the application asks, at a participant, for an end of the
 * transaction.  It comes from a prepared branch, so it is a vote as well.
 * While the coordinator is not bound by its votes, asking for rollback takes
 * one back; once it is prepared, a resolve worker finishes it as asked.
 */
static void
take_request(const TpcBrokerEvent *event, const TpcMessage *msg)
{
	TpcTxn	   *txn;
	TpcParticipant *part;
	bool		pass = false;
	bool		rollback = false;

	take_vote(event, msg);
	if (strcmp(msg->id.coordinator, node->name) != 0)
		return;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = tpc_txn_find(node->dbid, &msg->id.gtid);
	part = txn != NULL ? find_participant(txn, msg->from) : NULL;
	if (part != NULL && part->enlisted && !part->dropped &&
		strcmp(part->user_id, msg->user_id) == 0)
	{
		if (txn->state == TPC_TXN_PREPARED)
			pass = true;
		else if (takes_votes(txn) && !txn->votes_final && !msg->wants_commit)
		{
			if (part->vote == TPC_PART_YES)
			{
				static const char reason[] =
				"{\"vote\":\"no\",\"error\":{\"sqlstate\":\"40000\","
				"\"message\":\"the application rolled its branch back\"}}";

				part->vote = TPC_PART_NO;
				if (DsaPointerIsValid(part->reason))
					dsa_free(tpc_area(), part->reason);
				part->reason = tpc_area_try_alloc(sizeof(reason));
				part->reason_len = 0;
				if (DsaPointerIsValid(part->reason))
				{
					part->reason_len = strlen(reason);
					memcpy(dsa_get_address(tpc_area(), part->reason), reason,
						   sizeof(reason));
				}
				txn->nvotes--;
				txn->nrefused++;
				wake_if_decidable(txn);
			}
			/* it cannot commit any more, so the answer is known */
			rollback = part->vote == TPC_PART_NO;
		}
	}
	LWLockRelease(&tpc_shared->txns);
	if (pass)
		pass_on(event, msg, &node->decisions, false);
	if (rollback)
		send_decision(&msg->id, msg->from, msg->own_queues, false);
}

/* P7 arrives: an acknowledgement. */
static void
take_ack(const TpcBrokerEvent *event, const TpcMessage *msg)
{
	TpcTxn	   *txn;
	TpcParticipant *part;
	const char *why = NULL;
	bool		plain = msg->outcome == TPC_ACK_COMMITTED && !msg->forced;
	bool		pass = false;

	if (strcmp(msg->id.coordinator, node->name) != 0)
	{
		bad_message(event, "an acknowledgement for another coordinator's transaction");
		return;
	}
	tpc_node_count(node, TPC_STAT_ACKS, 1);
	TPC_FAILPOINT("C6.ack");
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = tpc_txn_find(node->dbid, &msg->id.gtid);
	if (txn == NULL)
		pass = true;			/* the lead resolver looks into the table */
	else if ((part = find_participant(txn, msg->from)) == NULL)
		why = "an acknowledgement from a node that was not asked";
	else if (txn->state != TPC_TXN_COMMITTED)
		why = "an acknowledgement of a transaction that is not committed";
	else if (strcmp(part->user_id, msg->user_id) != 0)
		why = "an acknowledgement that is not from who voted";
	else if (awaits_commit(part))
	{
		part->acked = true;
		if (!plain)
		{
			/* a person has to hear of it, the waiting one first */
			txn->incident = true;
			pass = true;
		}

		/*
		 * It can come before the turn that counts them, after a restart of
		 * this process for one: send_commits() counts what is left.
		 */
		if (txn->npending_acks > 0 && --txn->npending_acks == 0 && !txn->done)
			transaction_done(txn);
	}
	LWLockRelease(&tpc_shared->txns);
	if (why != NULL)
		bad_message(event, why);
	if (pass)
		pass_on(event, msg, &node->chores, true);
	if (nforget >= FORGET_BATCH)
		push_forget();
}

/* The broker knows nobody who takes this prepare: a no-vote at once. */
static void
prepare_returned(const TpcWire *wire, TpcSlice routing_key)
{
	TpcGlobalId id;
	TpcTxn	   *txn;

	if (!tpc_gtid_from_text(wire->correlation_id.ptr,
							wire->correlation_id.len, &id))
		return;
	tpc_node_count(node, TPC_STAT_PREPARES_RETURNED, 1);
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = tpc_txn_find(node->dbid, &id.gtid);
	if (txn != NULL && takes_votes(txn))
	{
		TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);

		for (int i = 0; i < txn->nparticipants; i++)
		{
			char		key[TPC_QUEUE_NAME_SIZE];

			prepare_queue(key, &parts[i], &id);
			if (parts[i].vote == TPC_PART_WAITING &&
				strlen(key) == routing_key.len &&
				memcmp(key, routing_key.ptr, strlen(key)) == 0)
			{
				parts[i].vote = TPC_PART_RETURNED;
				txn->nrefused++;
			}
		}
		wake_if_decidable(txn);
	}
	LWLockRelease(&tpc_shared->txns);
}

/* One message, or a batch of them, came back. */
static void
take_return(const TpcBrokerEvent *event)
{
	TpcBatch	batch;
	const char *why;

	if (!tpc_message_is_batch(&event->wire))
		prepare_returned(&event->wire, event->routing_key);
	else if (tpc_message_decode_batch(&event->wire, &batch, &why))
	{
		for (int i = 0; i < batch.nitems; i++)
			prepare_returned(&batch.items[i].wire, event->routing_key);
		tpc_message_free_batch(&batch);
	}
}

/* A coordinator's floor came with one of its messages. */
static void
note_floor(const TpcMessage *msg)
{
	FloorEntry *entry;
	FloorKey	key;
	bool		found;

	if (!msg->has_floor)
		return;
	memset(&key, 0, sizeof(key));
	strlcpy(key.coordinator, msg->from, sizeof(key.coordinator));
	strlcpy(key.user_id, msg->user_id, sizeof(key.user_id));
	if (hash_get_num_entries(floors) > MAX_FLOORS &&
		hash_search(floors, &key, HASH_FIND, NULL) == NULL)
		return;					/* made-up names: rows just stay longer */
	entry = hash_search(floors, &key, HASH_ENTER, &found);
	if (!found || tpc_gtid_compare(&entry->floor, &msg->floor) < 0)
	{
		entry->floor = msg->floor;
		entry->told = false;
	}
}

/* One message, which came alone or in a batch. */
static void
take_message(const TpcBrokerEvent *event)
{
	TpcMessage	msg;
	const char *why = NULL;
	size_t		limit = event->queue == TPC_QUEUE_PREPARE ? MAX_BODY :
	MAX_SMALL_BODY;

	tpc_node_count(node, TPC_STAT_MESSAGES_RECEIVED, 1);
	if (event->kind == TPC_EVENT_OVERSIZED || event->wire.body.len > limit)
		why = "it is too large";
	else if (!tpc_message_decode_envelope(&event->wire, &msg, &why))
		;
	else if (!tpc_option_is_peer(&conninfo, msg.from, msg.user_id))
		why = "its broker user is not that of the node it is from";
	else
	{
		switch (msg.type)
		{
			case TPC_MSG_PREPARE:
				if (event->queue == TPC_QUEUE_PREPARE)
				{
					note_floor(&msg);
					take_prepare(event, &msg);
					return;
				}
				break;
			case TPC_MSG_COMMIT:
			case TPC_MSG_ROLLBACK:
			case TPC_MSG_UNKNOWN:
				if (event->queue != TPC_QUEUE_DECISION)
					break;
				/* who carries it out decodes it again, if it says anything */
				if (!tpc_message_decode_body(event->wire.body.ptr,
											 event->wire.body.len, &msg, &why))
					break;
				tpc_message_free_body(&msg);
				note_floor(&msg);
				pass_on(event, &msg, &node->decisions, false);
				return;
			case TPC_MSG_VOTE:
			case TPC_MSG_ACK:
			case TPC_MSG_INQUIRY:
			case TPC_MSG_REQUEST:
				if (event->queue != TPC_QUEUE_VOTE)
					break;
				if (!tpc_message_decode_body(event->wire.body.ptr,
											 event->wire.body.len, &msg, &why))
					break;
				if (msg.type == TPC_MSG_ACK)
					take_ack(event, &msg);
				else if (msg.type == TPC_MSG_REQUEST)
					take_request(event, &msg);
				else
					take_vote(event, &msg);
				return;
		}
		if (why == NULL)
			why = "its type does not belong there";
	}
	bad_message(event, why);
	ack_delivery(event);
}

static void
take_delivery(const TpcBrokerEvent *event)
{
	TpcBatch	batch;
	const char *why;

	if (event->kind == TPC_EVENT_OVERSIZED ||
		!tpc_message_is_batch(&event->wire))
	{
		open_delivery(event, 1);
		take_message(event);
	}
	else if (tpc_message_decode_batch(&event->wire, &batch, &why))
	{
		TpcBrokerEvent part = *event;

		open_delivery(event, batch.nitems);
		for (int i = 0; i < batch.nitems; i++)
		{
			part.wire = batch.items[i].wire;
			take_message(&part);
		}
		tpc_message_free_batch(&batch);
	}
	else
	{
		open_delivery(event, 1);
		tpc_node_count(node, TPC_STAT_MESSAGES_RECEIVED, 1);
		bad_message(event, why);
		ack_delivery(event);
	}
}

static void
set_blocked(bool is_blocked, const TpcBrokerEvent *event)
{
	blocked = is_blocked;
	if (blocked)
	{
		char		text[sizeof(node->last_error)];

		snprintf(text, sizeof(text), "connection blocked: %.*s",
				 (int) Min(event->text.len, 200), event->text.ptr);
		set_last_error(ERRCODE_INSUFFICIENT_RESOURCES, text);
		ereport(LOG,
				(errmsg("the broker has blocked the connection of node \"%s\"",
						node->name),
				 errdetail("%s", text)));
	}
	else
		ereport(LOG,
				(errmsg("the broker has unblocked the connection of node \"%s\"",
						node->name)));
	set_link(TPC_LINK_UP);
	if (!blocked)
	{
		/* what was dropped meanwhile is sent again, as after a reconnect */
		requeue_transactions();
		pg_atomic_add_fetch_u32(&node->resolve_requests, 1);
		tpc_wake_lead(node);
	}
}

/* Take what has arrived; true if there may be more. */
static bool
receive(void)
{
	TpcBrokerEvent event;

	for (int i = 0; i < EVENTS_PER_TURN; i++)
	{
		if (!tpc_broker_next_event(broker, &event))
			return false;
		switch (event.kind)
		{
			case TPC_EVENT_DELIVERY:
			case TPC_EVENT_OVERSIZED:
				take_delivery(&event);
				break;
			case TPC_EVENT_RETURN:
				take_return(&event);
				break;
			case TPC_EVENT_BLOCKED:
				set_blocked(true, &event);
				break;
			case TPC_EVENT_UNBLOCKED:
				set_blocked(false, &event);
				break;
			case TPC_EVENT_CLOSED:
				connection_lost(&event.error);
				return false;
			case TPC_EVENT_MESSAGE:
			case TPC_EVENT_RETURNED:
			case TPC_EVENT_CONFIRM:
			case TPC_EVENT_ANSWER:
			case TPC_EVENT_CANCELLED:
			case TPC_EVENT_CHANNEL_CLOSED:
				{
					TpcChannelOwner *owner = event.owner;

					owner->take(owner, node, broker, &event);
					break;
				}
		}
	}
	return true;
}

/* ---------- housekeeping ---------- */

/* Tell the lead who has acknowledged; what is lost is only acknowledged again. */
static void
pass_acks(TpcTxn *txn)
{
	static const char body[] = "{\"outcome\":\"committed\"}";
	TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);

	for (int i = 0; i < txn->nparticipants; i++)
	{
		TpcItem		head;
		dsa_pointer item;

		if (!parts[i].acked)
			continue;
		memset(&head, 0, sizeof(head));
		head.kind = TPC_ITEM_MESSAGE;
		head.type = TPC_MSG_ACK;
		global_id(txn, &head.id);
		strlcpy(head.peer, parts[i].node, sizeof(head.peer));
		strlcpy(head.user_id, parts[i].user_id, sizeof(head.user_id));
		item = tpc_item_try_make(&head, body, strlen(body));
		if (DsaPointerIsValid(item))
			tpc_queue_push(node, &node->chores, item);
	}
}

/*
 * Send decisions again that are not acknowledged, and leave those nobody
 * waits for any more to the lead resolver.
 */
static void
look_after_decided(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;

	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		if (txn->key.dbid != node->dbid ||
			txn->state != TPC_TXN_COMMITTED || txn->done || txn->queued)
			continue;
		if (txn->decision_sent && broker != NULL && !blocked &&
			TimestampDifferenceExceeds(txn->sent_at, now, txn->resend_ms))
		{
			/* the commit or an acknowledgement may be lost */
			txn->decision_sent = false;
			tpc_txn_queue(node, txn);
			tpc_node_count(node, TPC_STAT_DECISIONS_RESENT, 1);
			continue;
		}
		if (txn->waiter != NULL)
			continue;
		if (TimestampDifferenceExceeds(txn->decided_at, now, HAND_OVER_MS))
		{
			pass_acks(txn);
			send_parent_ack(txn);
			tpc_txn_free(txn);
		}
	}
	LWLockRelease(&tpc_shared->txns);
}

static void
tell_floors(void)
{
	HASH_SEQ_STATUS seq;
	FloorEntry *entry;

	hash_seq_init(&seq, floors);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		TpcItem		head;
		dsa_pointer item;

		if (entry->told)
			continue;
		memset(&head, 0, sizeof(head));
		head.kind = TPC_ITEM_FLOOR;
		strlcpy(head.peer, entry->key.coordinator, sizeof(head.peer));
		strlcpy(head.user_id, entry->key.user_id, sizeof(head.user_id));
		head.floor = entry->floor;
		head.has_floor = true;
		item = tpc_item_try_make(&head, NULL, 0);
		if (!DsaPointerIsValid(item))
			continue;			/* next time */
		tpc_queue_push(node, &node->chores, item);
		entry->told = true;
	}
}

static void
housekeeping(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(housekeeping_at, now, HOUSEKEEPING_MS))
		return;
	housekeeping_at = now;

	push_forget();
	look_after_decided(now);
	tell_floors();

	/* notice changes of the server's options; they count from a reconnect */
	StartTransactionCommand();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	if (broker != NULL && !blocked &&
		TimestampDifferenceExceeds(bound_at, now, BIND_INTERVAL_MS))
	{
		bound_at = now;
		(void) tpc_broker_bind_again(broker);
	}
	if (broker != NULL)
	{
		uint64		publishes;
		uint64		writes;

		tpc_broker_counters(broker, &publishes, &writes);
		tpc_node_count(node, TPC_STAT_PUBLISHES,
					   publishes - counted_publishes);
		tpc_node_count(node, TPC_STAT_SOCKET_WRITES, writes - counted_writes);
		counted_publishes = publishes;
		counted_writes = writes;
	}
	tpc_publisher_count(node);
}

/* ---------- start ---------- */

/*
 * attach() waits for us: connect with what it passed, answer, and wait until
 * its transaction commits.  Does not return if it rolls back.
 */
static void
serve_attach(void)
{
	bool		connected;
	Latch	   *waiter;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	if (DsaPointerIsValid(node->attach_params))
		memcpy(&conninfo, dsa_get_address(tpc_area(), node->attach_params),
			   sizeof(conninfo));
	LWLockRelease(&tpc_shared->control);

	connected = try_connect();
	if (connected)
		set_link(TPC_LINK_UP);
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node->attach_answered = true;
	waiter = node->attach_waiter;
	if (waiter != NULL)
		SetLatch(waiter);
	LWLockRelease(&tpc_shared->control);
	if (!connected)
		proc_exit(0);

	while (node->state == TPC_NODE_ATTACHING)
	{
		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		if (node->state != TPC_NODE_ATTACHING)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000,
						 tpc_wait_event(&wait_event_main, "TpcAmqpMessenger"));
	}
	if (node->state != TPC_NODE_ATTACHED)
		proc_exit(0);

	/* not needed again, and it holds the password */
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	if (DsaPointerIsValid(node->attach_params))
	{
		memset(dsa_get_address(tpc_area(), node->attach_params), 0,
			   sizeof(conninfo));
		dsa_free(tpc_area(), node->attach_params);
		node->attach_params = InvalidDsaPointer;
	}
	LWLockRelease(&tpc_shared->control);
}

/*
 * Begin an incarnation, once per server run.  Nothing is said before: what a
 * crash kept from reaching the synchronous standbys has reached them with it.
 */
static void
start_incarnation(void)
{
	uint64		incarnation;
	TimeLineID	timeline;

	if (pg_atomic_read_u64(&node->incarnation) != 0)
		return;
	tpc_worker_begin();
	incarnation = tpc_incarnation_start(node->name, &timeline);
	tpc_txn_make_synchronous();
	tpc_worker_end();
	if (tpc_worker_gave_up_standbys())
		proc_exit(0);
	node->timeline = timeline;
	node->stat_reset = GetCurrentTimestamp();
	pg_atomic_write_u64(&node->sequence, 0);
	pg_write_barrier();
	pg_atomic_write_u64(&node->incarnation, incarnation);
}

/* What sessions of an earlier run have left for the relay. */
static void
wake_relay(void)
{
	bool		waiting;

	tpc_worker_begin();
	waiting = tpc_publication_exists() || tpc_subscriptions_exist();
	tpc_worker_end();
	if (waiting)
		tpc_wake_relay(node);
}

void
tpc_messenger_main(Datum arg)
{
	HASHCTL		info;
	bool		attached;
	volatile bool options_known;
	bool		readable = true;	/* the socket may be … */
	bool		publisher_readable = true;	/* … and that for publish() */
	int			unread = 0;		/* turns since we looked at it */

	node = tpc_worker_attach(arg, NULL, NULL);
	pqsignal(SIGTERM, handle_sigterm);
	before_shmem_exit(close_at_exit, (Datum) 0);
	tpc_worker_connect(node, false);
	turn_context = AllocSetContextCreate(TopMemoryContext,
										 "tpc_amqp messenger turn",
										 ALLOCSET_DEFAULT_SIZES);
	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(FloorKey);
	info.entrysize = sizeof(FloorEntry);
	floors = hash_create("tpc_amqp floors", 16, &info,
						 HASH_ELEM | HASH_BLOBS);
	info.keysize = sizeof(uint64);
	info.entrysize = sizeof(Delivery);
	deliveries = hash_create("tpc_amqp deliveries", 256, &info,
							 HASH_ELEM | HASH_BLOBS);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, options_inval, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, options_inval, (Datum) 0);

	if (node->state == TPC_NODE_ATTACHING)
		serve_attach();
	attached = load_options(&options_known);
	if (!attached)
	{
		/* a label without a row: a restored copy */
		ereport(LOG,
				(errmsg("database is labelled as node \"%s\" but not attached",
						node->name),
				 errhint("Run tpc_amqp.attach() in it.")));
		StartTransactionCommand();
		tpc_node_label_remove();
		CommitTransactionCommand();
		LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
		node->state = TPC_NODE_STOPPING;
		LWLockRelease(&tpc_shared->control);
		proc_exit(0);
	}
	start_incarnation();
	wake_relay();
	make_wait_set();
	if (broker != NULL)
		go_live();
	pgstat_report_activity(STATE_RUNNING, "serving the broker connection");

	for (;;)
	{
		WaitEvent	events[3];
		int			nevents;
		bool		more = false;
		long		timeout = HOUSEKEEPING_MS;

		if (gather())
			readable = true;
		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);

		if (broker == NULL && GetCurrentTimestamp() >= next_attempt)
		{
			/* a change made right before the connection was lost counts */
			StartTransactionCommand();
			CommitTransactionCommand();
			MemoryContextSwitchTo(turn_context);
			if (options_changed || !options_known)
			{
				options_changed = false;
				(void) load_options(&options_known);
			}
			if (!options_known)
				schedule_attempt();
			else if (try_connect())
				go_live();
		}
		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		own_floor = node->floor;
		LWLockRelease(&tpc_shared->txns);
		if (broker != NULL)
		{
			tpc_broker_set_max_body(broker,
									Max(MAX_BODY, TPC_BATCH_MAX_BYTES));
			if (readable || tpc_broker_wait_ms(broker) == 0)
			{
				more = receive();
				wake_all();
				unread = 0;
			}
			else
				unread++;
		}
		if (broker != NULL &&
			kinds_seen != pg_atomic_read_u32(&node->kinds_changed))
			follow_kinds(false);
		serve_transactions();
		serve_outbox();
		for (int i = 0; parts[i] != NULL; i++)
			parts[i]->serve(node, broker, blocked);
		wake_all();
		if (broker != NULL)
		{
			publish_outgoing();
			acknowledge_deliveries();
			if (!tpc_broker_flush(broker))
				connection_lost(tpc_broker_error(broker));
		}
		/* last, for to connect takes its time */
		if (broker != NULL && tpc_publisher_is_due(node))
		{
			TpcBrokerParams params;

			fill_params(&params);
			tpc_publisher_connect(node, &params);
		}
		tpc_publisher_serve(node, publisher_readable);
		turn_ended = GetCurrentTimestamp();
		housekeeping();

		if (broker != NULL)
			timeout = Min(timeout, tpc_broker_wait_ms(broker));
		else
			timeout = Min(timeout,
						  Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
																 next_attempt)));
		timeout = Min(timeout, tpc_publisher_wait_ms());
		adapt_wait_set();
		readable = publisher_readable = true;
		if (more || timeout == 0)
			continue;

		/*
		 * A latch that is set already ends the wait before the socket is
		 * looked at.  Otherwise we are told of both, and need not try to read
		 * what is not there.  (The latch can be set in between, so never rely
		 * on that for long.)
		 */
		readable = MyLatch->is_set || unread >= UNREAD_TURNS;
		nevents = WaitEventSetWait(wait_set, timeout, events, lengthof(events),
								   tpc_wait_event(&wait_event_main,
												  "TpcAmqpMessenger"));
		publisher_readable = readable;
		for (int i = 0; i < nevents; i++)
		{
			if (!(events[i].events & WL_SOCKET_READABLE))
				continue;
			if (events[i].user_data == &broker)
				readable = true;
			else
				publisher_readable = true;
		}
	}
}
