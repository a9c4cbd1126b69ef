/*-------------------------------------------------------------------------
 *
 * request.c
 *	  What sessions ask of the broker, and its answers.
 *
 * A session that wants something of the broker takes one of a fixed number of
 * places in shared memory, leaves there what is to be called, and waits on
 * its latch.  The messenger opens a channel for it, so that a refusal, which
 * closes the channel, touches nobody else; what the broker answers it leaves
 * in the place.  That channel is closed then, unless a message was taken on
 * it that the end of the session's transaction settles (get.c).
 *
 * Two processes have to do with a place, and either may end at any time.
 * "served" says that the messenger is at it, or has a channel for it: then only
 * the messenger frees it, and a session that goes just says so (abandoned, or
 * commit).  Otherwise the session frees it itself.  Whatever ends that (the
 * answer, the broker, the loss of the connection, the messenger's exit) takes
 * back "served" under the lock, and frees the place if its session has gone.
 *
 * Where all places are taken, a session waits for one, for a bounded time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "failpoint.h"
#include "report.h"
#include "request.h"
#include "settings.h"
#include "worker.h"

/*
 * One place.  All fields under requests.  What is marked "session" is written
 * by who has taken it, the rest by the messenger.
 */
struct TpcRequest
{
	TpcRequestState state;		/* both */
	bool		in_queue;		/* link is in node->request_queue */
	dlist_node	link;
	TpcNode    *node;			/* session */
	Oid			dbid;			/* session: the node's */
	pid_t		pid;			/* session */
	Latch	   *waiter;			/* session */
	TimestampTz since;			/* session: when it was asked */
	TpcCallKind kind;			/* session: of the first call … */
	char		object[TPC_NAME_MAX + 1];	/* … and what it is about, UTF-8 */

	bool		served;			/* the messenger is at it, or has a channel */
	bool		abandoned;		/* session: has gone */
	bool		commit;			/* session: acknowledge all, and close */
	uint64		requeue_from;	/* session: put back this one and all later */
	uint64		acknowledge;	/* session: this one, before the call */
	bool		lost;			/* the channel went, with messages unsettled … */
	TpcBrokerError lost_why;	/* … for this reason */

	bool		keep;			/* session: the channel stays */
	int			ncalls;			/* session */
	dsa_pointer calls;			/* session; whoever sets it to none frees it */

	TpcAnswer	answer;			/* its slices are not used … */
	dsa_pointer message;		/* … but a Message; freed as calls */
};

/* A message in the area. */
typedef struct Message
{
	uint32		exchange_len;
	uint32		routing_key_len;
	uint32		properties_len;
	uint32		body_len;
	char		bytes[FLEXIBLE_ARRAY_MEMBER];	/* in this order */
} Message;

#define NSLICES	6

static TpcRequest *requests = NULL;

static uint32 wait_event_request = 0;
static uint32 wait_event_place = 0;

void
tpc_request_shmem_request(void)
{
	RequestAddinShmemSpace(mul_size(tpc_max_requests, sizeof(TpcRequest)));
}

void
tpc_request_shmem_startup(void)
{
	bool		found;

	requests = ShmemInitStruct("tpc_amqp requests",
							   mul_size(tpc_max_requests, sizeof(TpcRequest)),
							   &found);
	if (!found)
		memset(requests, 0, mul_size(tpc_max_requests, sizeof(TpcRequest)));
}

/*-------------------------------------------------------------------------
 * Places.
 *-------------------------------------------------------------------------
 */

/* Never raises.  The caller holds requests. */
static void
push(TpcRequest *r)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->requests, LW_EXCLUSIVE));
	if (r->in_queue)
		return;
	dlist_push_tail(&r->node->request_queue, &r->link);
	r->in_queue = true;
	pg_atomic_fetch_add_u32(&r->node->requests_queued, 1);
}

static void
unqueue(TpcRequest *r)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->requests, LW_EXCLUSIVE));
	if (!r->in_queue)
		return;
	dlist_delete(&r->link);
	r->in_queue = false;
	pg_atomic_fetch_sub_u32(&r->node->requests_queued, 1);
}

/*
 * The place is free; what it pointed to is the caller's to free, without the
 * lock.  Never raises.  The caller holds requests.
 */
static void
set_free(TpcRequest *r, dsa_pointer garbage[2])
{
	Assert(!r->served);
	unqueue(r);
	garbage[0] = r->calls;
	garbage[1] = r->message;
	memset(r, 0, sizeof(*r));
	ConditionVariableBroadcast(&tpc_shared->request_freed);
}

static void
collect(dsa_pointer garbage[2])
{
	for (int i = 0; i < 2; i++)
	{
		if (DsaPointerIsValid(garbage[i]))
			dsa_free(tpc_area(), garbage[i]);
	}
}

/* A free place; NULL if there is none.  *say: nobody has said so lately. */
static TpcRequest *
try_take(TpcNode *node, bool *say)
{
	TpcRequest *r = NULL;

	*say = false;
	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	for (int i = 0; i < tpc_max_requests; i++)
	{
		if (requests[i].state == TPC_REQUEST_FREE)
		{
			r = &requests[i];
			r->state = TPC_REQUEST_IDLE;
			r->node = node;
			r->dbid = MyDatabaseId;
			r->pid = MyProcPid;
			r->waiter = MyLatch;
			r->since = GetCurrentTimestamp();
			break;
		}
	}
	if (r == NULL)
		*say = tpc_worker_may_log(&tpc_shared->requests_full_logged);
	LWLockRelease(&tpc_shared->requests);
	return r;
}

/*
 * take: step R1, a place for this session.  Waits for one for at most
 * slot_timeout, then raises 53400.
 */
static TpcRequest *
take(TpcNode *node)
{
	TimestampTz deadline = 0;

	/* what must not raise later */
	(void) tpc_area();
	for (;;)
	{
		bool		say;
		TpcRequest *r = try_take(node, &say);
		long		left;

		if (r != NULL)
		{
			if (deadline != 0)
				ConditionVariableCancelSleep();
			return r;
		}
		if (say)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("all %d places for requests to the broker are taken",
							tpc_max_requests),
					 errhint("Increase \"tpc_amqp.max_requests\". This is logged once a minute at most.")));
		if (deadline == 0)
		{
			deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   tpc_slot_timeout);
			/* one that is freed from here on wakes us */
			ConditionVariablePrepareToSleep(&tpc_shared->request_freed);
			if (tpc_slot_timeout > 0)
				continue;
		}
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left > 0)
		{
			(void) ConditionVariableTimedSleep(&tpc_shared->request_freed,
											   left,
											   tpc_wait_event(&wait_event_place,
															  "TpcAmqpPlace"));
			continue;
		}
		ConditionVariableCancelSleep();
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many requests to the broker"),
				 errdetail("All %d places are taken, and none was free within %d ms.",
						   tpc_max_requests, tpc_slot_timeout),
				 errhint("View tpc_amqp.requests shows who has them. You might need to increase \"tpc_amqp.max_requests\", or \"tpc_amqp.slot_timeout\" to wait longer.")));
	}
}

/*
 * tpc_request_abandon: this session is done with it: what was taken on its
 * channel and not settled goes back to the queue.  Never raises, but for what
 * freeing memory of ours could.
 */
void
tpc_request_abandon(TpcRequest *r)
{
	dsa_pointer garbage[2] = {InvalidDsaPointer, InvalidDsaPointer};
	TpcNode    *node = r->node;
	bool		served;

	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	served = r->served;
	if (served)
	{
		r->abandoned = true;
		r->waiter = NULL;
		push(r);
	}
	else
		set_free(r, garbage);
	LWLockRelease(&tpc_shared->requests);
	if (served)
		tpc_wake_messenger(node);
	else
		collect(garbage);
}

static void
abandon_at_exit(int code, Datum arg)
{
	tpc_request_abandon((TpcRequest *) DatumGetPointer(arg));
}

/*-------------------------------------------------------------------------
 * Calls as bytes.
 *-------------------------------------------------------------------------
 */

static void
slices_of(TpcBrokerCall *call, TpcSlice *slices[NSLICES])
{
	slices[0] = &call->queue;
	slices[1] = &call->exchange;
	slices[2] = &call->routing_key;
	slices[3] = &call->type;
	slices[4] = &call->consumer_tag;
	slices[5] = &call->arguments;
}

/* A copy in the area: the calls, then what their slices point to, in order. */
static dsa_pointer
flatten(const TpcBrokerCall *calls, int n)
{
	Size		size = mul_size(sizeof(TpcBrokerCall), n);
	dsa_pointer result;
	char	   *p;

	for (int i = 0; i < n; i++)
	{
		TpcBrokerCall call = calls[i];
		TpcSlice   *slices[NSLICES];

		slices_of(&call, slices);
		for (int j = 0; j < NSLICES; j++)
			size = add_size(size, slices[j]->len);
	}
	result = tpc_area_alloc(size);
	p = dsa_get_address(tpc_area(), result);
	memcpy(p, calls, sizeof(TpcBrokerCall) * n);
	p += sizeof(TpcBrokerCall) * n;
	for (int i = 0; i < n; i++)
	{
		TpcBrokerCall call = calls[i];
		TpcSlice   *slices[NSLICES];

		slices_of(&call, slices);
		for (int j = 0; j < NSLICES; j++)
		{
			if (slices[j]->len > 0)
				memcpy(p, slices[j]->ptr, slices[j]->len);
			p += slices[j]->len;
		}
	}
	return result;
}

/* The i-th call of those at flat, whose bytes begin at *p; moves it on. */
static void
unflatten(const TpcBrokerCall *flat, int i, const char **p,
		  TpcBrokerCall *call)
{
	TpcSlice   *slices[NSLICES];

	*call = flat[i];
	slices_of(call, slices);
	for (int j = 0; j < NSLICES; j++)
	{
		slices[j]->ptr = *p;
		*p += slices[j]->len;
	}
}

/*-------------------------------------------------------------------------
 * Asking.
 *-------------------------------------------------------------------------
 */

/* Hands the calls to the messenger.  Owns r, which is idle. */
static void
ask(TpcRequest *r, const TpcBrokerCall *calls, int n, bool keep,
	uint64 acknowledge)
{
	TpcNode    *node = r->node;
	dsa_pointer flat = flatten(calls, n);
	const TpcSlice *object = calls[0].queue.len > 0 ?
	&calls[0].queue : &calls[0].exchange;

	TPC_FAILPOINT("R1.before");
	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	Assert(r->state == TPC_REQUEST_IDLE && r->pid == MyProcPid);
	r->kind = calls[0].kind;
	memcpy(r->object, object->ptr, Min(object->len, TPC_NAME_MAX));
	r->object[Min(object->len, TPC_NAME_MAX)] = '\0';
	r->since = GetCurrentTimestamp();
	r->keep = keep;
	r->acknowledge = acknowledge;
	r->ncalls = n;
	r->calls = flat;
	memset(&r->answer, 0, sizeof(r->answer));
	r->state = TPC_REQUEST_QUEUED;
	push(r);
	LWLockRelease(&tpc_shared->requests);
	tpc_wake_messenger(node);
	TPC_FAILPOINT("R1.after");
}

/* The answer is not there in time. */
static void
raise_timeout(TpcNode *node, TpcRequestState state)
{
	if (state == TPC_REQUEST_QUEUED)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_EXCEPTION),
				 errmsg("node \"%s\" could not ask the broker within %d ms",
						node->name, tpc_broker_timeout),
				 errdetail("Nothing has been sent."),
				 errhint("View tpc_amqp.node shows the state of the connection.")));
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_EXCEPTION),
			 errmsg("the broker has not answered within %d ms",
					tpc_broker_timeout),
			 errdetail("It is not known whether it has done, or will do, what it was asked for.")));
}

/* Waits until the answer is there, and takes it. */
static void
await(TpcRequest *r, TpcAnswer *answer)
{
	TpcNode    *node = r->node;
	TimestampTz deadline =
	TimestampTzPlusMilliseconds(GetCurrentTimestamp(), tpc_broker_timeout);
	dsa_pointer p = InvalidDsaPointer;

	for (;;)
	{
		TpcRequestState state;
		long		left;

		ResetLatch(MyLatch);
		LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
		state = r->state;
		if (state == TPC_REQUEST_ANSWERED)
		{
			/* the messenger does not touch these any more */
			*answer = r->answer;
			p = r->message;
			r->state = TPC_REQUEST_IDLE;
		}
		LWLockRelease(&tpc_shared->requests);
		if (state == TPC_REQUEST_ANSWERED)
			break;

		if (node->state != TPC_NODE_ATTACHED || node->dbid != MyDatabaseId)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this database has been detached"),
					 state == TPC_REQUEST_SENT ?
					 errdetail("It is not known whether the broker has done, or will do, what it was asked for.") : 0));
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0)
			raise_timeout(node, state);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 1000),
						 tpc_wait_event(&wait_event_request,
										"TpcAmqpRequest"));
		CHECK_FOR_INTERRUPTS();
	}

	TPC_FAILPOINT("R4.before");
	if (DsaPointerIsValid(p))
	{
		Message    *message = dsa_get_address(tpc_area(), p);
		Size		size = (Size) message->exchange_len +
		message->routing_key_len + message->properties_len +
		message->body_len;
		char	   *bytes = MemoryContextAllocExtended(CurrentMemoryContext,
													   Max(size, 1),
													   MCXT_ALLOC_HUGE |
													   MCXT_ALLOC_NO_OOM);

		if (bytes != NULL)
		{
			memcpy(bytes, message->bytes, size);
			answer->exchange.ptr = bytes;
			answer->exchange.len = message->exchange_len;
			bytes += message->exchange_len;
			answer->routing_key.ptr = bytes;
			answer->routing_key.len = message->routing_key_len;
			bytes += message->routing_key_len;
			answer->properties.ptr = bytes;
			answer->properties.len = message->properties_len;
			bytes += message->properties_len;
			answer->body.ptr = bytes;
			answer->body.len = message->body_len;
		}
		LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
		r->message = InvalidDsaPointer;
		LWLockRelease(&tpc_shared->requests);
		dsa_free(tpc_area(), p);
		if (bytes == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory"),
					 errdetail("Failed on a message of %zu bytes.", size)));
	}
	TPC_FAILPOINT("R4.after");
}

/*
 * tpc_request_call: have the broker do these, one after the other, and wait
 * for its answer, at most broker_timeout.  If one is refused, those after it
 * are not carried out.  *answer is that to the last; its error, if there is
 * one, is the caller's to raise (tpc_request_raise).  Raises itself if there
 * is no answer: 53400, 55000, 08000, and when interrupted.
 */
void
tpc_request_call(TpcNode *node, const TpcBrokerCall *calls, int n,
				 TpcAnswer *answer)
{
	TpcRequest *r = take(node);

	PG_ENSURE_ERROR_CLEANUP(abandon_at_exit, PointerGetDatum(r));
	{
		ask(r, calls, n, false, 0);
		await(r, answer);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon_at_exit, PointerGetDatum(r));
	tpc_request_abandon(r);
}

static void
get_in(TpcRequest *r, const TpcBrokerCall *call, uint64 acknowledge,
	   TpcAnswer *answer)
{
	PG_ENSURE_ERROR_CLEANUP(abandon_at_exit, PointerGetDatum(r));
	{
		ask(r, call, 1, true, acknowledge);
		await(r, answer);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon_at_exit, PointerGetDatum(r));
}

/*
 * tpc_request_get: the same for a GET whose message remains to be settled, in
 * a place that stays the caller's: request, or a new one (NULL).  acknowledge:
 * a message taken before that has to go first, or 0.  If it raises, the place
 * is no longer the caller's, and what was taken in it goes back to its queue.
 */
TpcRequest *
tpc_request_get(TpcNode *node, TpcRequest *request, const TpcBrokerCall *call,
				uint64 acknowledge, TpcAnswer *answer)
{
	if (request == NULL)
		request = take(node);
	get_in(request, call, acknowledge, answer);
	return request;
}

/*
 * tpc_request_requeue: this message and all taken after it go back to their
 * queue.  Never raises.
 */
void
tpc_request_requeue(TpcRequest *r, uint64 from)
{
	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	if (r->served)
	{
		r->requeue_from = r->requeue_from == 0 ? from :
			Min(r->requeue_from, from);
		push(r);
	}
	LWLockRelease(&tpc_shared->requests);
	tpc_wake_messenger(r->node);
}

/*
 * tpc_request_check: whether what was taken can still be settled; if not, why
 * not.
 */
bool
tpc_request_check(TpcRequest *r, TpcBrokerError *why)
{
	bool		lost;

	LWLockAcquire(&tpc_shared->requests, LW_SHARED);
	lost = r->lost;
	if (lost)
		*why = r->lost_why;
	LWLockRelease(&tpc_shared->requests);
	return !lost;
}

/*
 * tpc_request_commit: acknowledge what was taken and not put back; the place
 * is no longer the caller's.  Allocates nothing, never raises.
 */
void
tpc_request_commit(TpcRequest *r)
{
	dsa_pointer garbage[2];
	TpcNode    *node = r->node;

	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	r->waiter = NULL;
	if (r->served)
	{
		r->commit = true;
		push(r);
	}
	else
		set_free(r, garbage);	/* idle: there is nothing to collect */
	LWLockRelease(&tpc_shared->requests);
	tpc_wake_messenger(node);
}

/* tpc_request_raise: raise what is in answer->error. */
void
tpc_request_raise(TpcNode *node, const TpcAnswer *answer)
{
	const TpcBrokerError *error = &answer->error;
	char	   *text = tpc_report_wire_text(error->text, strlen(error->text));

	Assert(error->sqlstate != 0);
	if (error->reply_code != 0 && !answer->unknown)
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg_internal("%s", text),
				 errdetail("The broker's reply code is %d.",
						   error->reply_code)));
	if (answer->unknown)
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg("node \"%s\" has lost its connection to the broker",
						node->name),
				 errdetail("%s: %s. It is not known whether the broker has done what it was asked for.",
						   error->phase, text)));
	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("node \"%s\" could not ask the broker", node->name),
			 errdetail("%s: %s", error->phase, text),
			 errhint("View tpc_amqp.node shows the state of the connection.")));
}

/*-------------------------------------------------------------------------
 * What view requests shows.
 *-------------------------------------------------------------------------
 */

static const char *
request_state_name(TpcRequestState state, bool finished)
{
	if (finished)
		return "closing";
	switch (state)
	{
		case TPC_REQUEST_QUEUED:
			return "queued";
		case TPC_REQUEST_SENT:
			return "sent";
		default:
			return "held";
	}
}

static const char *
call_name(TpcCallKind kind)
{
	switch (kind)
	{
		case TPC_CALL_DECLARE_QUEUE:
			return "declare_queue";
		case TPC_CALL_DELETE_QUEUE:
			return "delete_queue";
		case TPC_CALL_PURGE_QUEUE:
			return "purge_queue";
		case TPC_CALL_BIND_QUEUE:
			return "bind_queue";
		case TPC_CALL_UNBIND_QUEUE:
			return "unbind_queue";
		case TPC_CALL_DECLARE_EXCHANGE:
			return "declare_exchange";
		case TPC_CALL_DELETE_EXCHANGE:
			return "delete_exchange";
		case TPC_CALL_CONSUME:
			return "consume";
		case TPC_CALL_CANCEL:
			return "cancel";
		case TPC_CALL_GET:
			return "get";
	}
	return "unknown";
}

/* tpc_live_requests() returns setof record: those of this database */
PG_FUNCTION_INFO_V1(tpc_live_requests);
Datum
tpc_live_requests(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	typedef struct Row
	{
		pid_t		pid;
		TpcRequestState state;
		bool		finished;
		TpcCallKind kind;
		TimestampTz since;
		char		object[TPC_NAME_MAX + 1];
	} Row;
	Row		   *rows;
	int			n = 0;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	rows = palloc(mul_size(sizeof(Row), tpc_max_requests));
	LWLockAcquire(&tpc_shared->requests, LW_SHARED);
	for (int i = 0; i < tpc_max_requests; i++)
	{
		TpcRequest *r = &requests[i];

		if (r->state == TPC_REQUEST_FREE || r->dbid != MyDatabaseId)
			continue;
		rows[n].pid = r->pid;
		rows[n].state = r->state;
		rows[n].finished = r->abandoned || r->commit;
		rows[n].kind = r->kind;
		rows[n].since = r->since;
		strcpy(rows[n].object, r->object);
		n++;
	}
	LWLockRelease(&tpc_shared->requests);
	for (int i = 0; i < n; i++)
	{
		Row		   *row = &rows[i];
		Datum		values[5];
		bool		nulls[5] = {false};

		values[0] = Int32GetDatum((int) row->pid);
		values[1] = CStringGetTextDatum(request_state_name(row->state,
														   row->finished));
		values[2] = CStringGetTextDatum(call_name(row->kind));
		values[3] = CStringGetTextDatum(tpc_report_wire_text(row->object,
															 strlen(row->object)));
		values[4] = TimestampTzGetDatum(row->since);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*-------------------------------------------------------------------------
 * The messenger's part.
 *-------------------------------------------------------------------------
 */

/* The channel of a place, if it has one.  Of this process. */
typedef struct Channel
{
	TpcChannelOwner owner;
	uint16		number;			/* 0: none */
	int			missing;		/* answers to come */
	uint64	   *tags;			/* messages not settled, ascending */
	int			ntags;
	int			tags_size;
} Channel;

static Channel *channels = NULL;	/* one per place */
static TpcNode *own_node = NULL;

static void take_event(TpcChannelOwner *owner, TpcNode *node,
					   TpcBroker *broker, const TpcBrokerEvent *event);

static Channel *
channel_of(TpcRequest *r)
{
	return &channels[r - requests];
}

static TpcRequest *
request_of(Channel *ch)
{
	return &requests[ch - channels];
}

static TpcBrokerError
make_error(int sqlstate, const char *phase, const char *text)
{
	TpcBrokerError error;

	memset(&error, 0, sizeof(error));
	error.sqlstate = sqlstate;
	strlcpy(error.phase, phase, sizeof(error.phase));
	strlcpy(error.text, text, sizeof(error.text));
	return error;
}

/*
 * The messenger lets go of a place: if its session has, too, it is free, and
 * true the result.  The caller holds requests.
 */
static bool
let_go(TpcRequest *r, dsa_pointer garbage[2])
{
	r->served = false;
	if (!r->abandoned && !r->commit)
		return false;
	set_free(r, garbage);
	return true;
}

/* The answer is an error.  The caller holds requests. */
static void
answer_error(TpcRequest *r, const TpcBrokerError *error, bool unknown,
			 dsa_pointer garbage[2])
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->requests, LW_EXCLUSIVE));
	garbage[0] = r->calls;
	r->calls = InvalidDsaPointer;
	r->answer.error = *error;
	r->answer.unknown = unknown;
	r->state = TPC_REQUEST_ANSWERED;
	if (r->waiter != NULL)
		SetLatch(r->waiter);
}

/*
 * The messenger is done with a place: it has no channel, or none any more, for
 * this reason.  unknown: what was under way may have been carried out.
 */
static void
channel_gone(Channel *ch, const TpcBrokerError *error, bool unknown)
{
	TpcRequest *r = request_of(ch);
	dsa_pointer garbage[2] = {InvalidDsaPointer, InvalidDsaPointer};
	bool		unsettled = ch->ntags > 0;

	ch->number = 0;
	ch->ntags = 0;
	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	if (!let_go(r, garbage))
	{
		if (unsettled && !r->lost)
		{
			r->lost = true;
			r->lost_why = *error;
		}
		if (r->state == TPC_REQUEST_SENT)
			answer_error(r, error, unknown, garbage);
	}
	LWLockRelease(&tpc_shared->requests);
	collect(garbage);
}

/* Nothing has been sent; its channel, if it has one, stays. */
static void
refuse(Channel *ch, const TpcBrokerError *error)
{
	TpcRequest *r = request_of(ch);
	dsa_pointer garbage[2] = {InvalidDsaPointer, InvalidDsaPointer};

	if (ch->number == 0)
	{
		channel_gone(ch, error, false);
		return;
	}
	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	answer_error(r, error, false, garbage);
	LWLockRelease(&tpc_shared->requests);
	collect(garbage);
}

/* The broker has answered, or part of that. */
static void
answered(Channel *ch, TpcBroker *broker, const TpcBrokerEvent *event,
		 dsa_pointer message)
{
	TpcRequest *r = request_of(ch);
	dsa_pointer garbage[2] = {InvalidDsaPointer, InvalidDsaPointer};
	TpcAnswer  *a = &r->answer;

	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	if (r->state == TPC_REQUEST_SENT && !r->abandoned)
	{
		memcpy(a->name, event->name.ptr ? event->name.ptr : "",
			   Min(event->name.len, TPC_NAME_MAX));
		a->name[Min(event->name.len, TPC_NAME_MAX)] = '\0';
		a->messages = event->messages;
		a->consumers = event->consumers;
		a->empty = event->empty;
		a->delivery_tag = event->delivery_tag;
		a->redelivered = event->redelivered;
		r->message = message;
		message = InvalidDsaPointer;
		r->state = TPC_REQUEST_ANSWERED;
		if (r->waiter != NULL)
			SetLatch(r->waiter);
	}
	if (!r->keep)
	{
		tpc_channel_close(broker, ch->number);
		ch->number = 0;
		ch->ntags = 0;
		(void) let_go(r, garbage);
	}
	LWLockRelease(&tpc_shared->requests);
	collect(garbage);
	if (DsaPointerIsValid(message))
		dsa_free(tpc_area(), message);
}

/* Remembers a message that is to be settled. */
static void
add_tag(Channel *ch, uint64 tag)
{
	if (ch->ntags == ch->tags_size)
	{
		int			size = Max(8, 2 * ch->tags_size);
		Size		bytes = mul_size(size, sizeof(uint64));

		if (ch->tags == NULL)
			ch->tags = MemoryContextAllocHuge(TopMemoryContext, bytes);
		else
			ch->tags = repalloc_huge(ch->tags, bytes);
		ch->tags_size = size;
	}
	ch->tags[ch->ntags++] = tag;
}

/* Settles this one, if it is still to be. */
static void
settle_one(Channel *ch, TpcBroker *broker, uint64 tag, TpcSettlement how)
{
	for (int i = 0; i < ch->ntags; i++)
	{
		if (ch->tags[i] == tag)
		{
			(void) tpc_channel_settle(broker, ch->number, tag, false, how);
			memmove(&ch->tags[i], &ch->tags[i + 1],
					sizeof(uint64) * (ch->ntags - i - 1));
			ch->ntags--;
			return;
		}
	}
}

/* A message, the answer to a GET. */
static void
take_message(Channel *ch, TpcBroker *broker, const TpcBrokerEvent *event)
{
	TpcRequest *r = request_of(ch);
	const TpcSlice *slices[] = {&event->exchange, &event->routing_key,
	&event->properties, &event->body};
	Size		size = offsetof(Message, bytes);
	dsa_pointer p = InvalidDsaPointer;
	TpcBrokerError error;

	error.sqlstate = 0;
	for (size_t i = 0; i < lengthof(slices); i++)
		size += slices[i]->len;
	if (event->body.ptr == NULL ||
		event->body.len > (size_t) tpc_max_payload * 1024)
		error = make_error(ERRCODE_PROGRAM_LIMIT_EXCEEDED, "get",
						   "the message is larger than \"tpc_amqp.max_payload\"");
	else
	{
		p = tpc_area_try_alloc(size);
		if (!DsaPointerIsValid(p))
			error = make_error(ERRCODE_OUT_OF_MEMORY, "get",
							   "out of shared memory for messages (\"tpc_amqp.max_memory\")");
	}
	add_tag(ch, event->delivery_tag);
	if (error.sqlstate != 0)
	{
		/* it stays in its queue, and so does what came before it here */
		settle_one(ch, broker, event->delivery_tag, TPC_SETTLE_REQUEUE);
		LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
		r->answer.error = error;
		LWLockRelease(&tpc_shared->requests);
	}
	else
	{
		Message    *message = dsa_get_address(tpc_area(), p);
		char	   *bytes = message->bytes;

		message->exchange_len = event->exchange.len;
		message->routing_key_len = event->routing_key.len;
		message->properties_len = event->properties.len;
		message->body_len = event->body.len;
		for (size_t i = 0; i < lengthof(slices); i++)
		{
			memcpy(bytes, slices[i]->ptr, slices[i]->len);
			bytes += slices[i]->len;
		}
		/* nobody settles it later */
		if (!r->keep)
			settle_one(ch, broker, event->delivery_tag, TPC_SETTLE_ACK);
	}
	answered(ch, broker, event, p);
}

/* An event of a channel of ours. */
static void
take_event(TpcChannelOwner *owner, TpcNode *node, TpcBroker *broker,
		   const TpcBrokerEvent *event)
{
	Channel    *ch = (Channel *) owner;

	TPC_FAILPOINT("R3.before");
	switch (event->kind)
	{
		case TPC_EVENT_CHANNEL_CLOSED:
			channel_gone(ch, &event->error, false);
			break;
		case TPC_EVENT_MESSAGE:
			take_message(ch, broker, event);
			break;
		case TPC_EVENT_ANSWER:
			if (--ch->missing == 0)
				answered(ch, broker, event, InvalidDsaPointer);
			break;
		default:
			break;
	}
	TPC_FAILPOINT("R3.after");
}

/*
 * Sends the calls of a place that is ours.  False if it has to wait for a
 * channel.
 */
static bool
send_calls(Channel *ch, TpcBroker *broker)
{
	TpcRequest *r = request_of(ch);
	dsa_pointer calls = r->calls;
	const TpcBrokerCall *flat;
	const char *p;
	bool		sent = true;

	if (ch->number == 0)
	{
		ch->number = tpc_channel_open(broker, ch, false);
		if (ch->number == 0)
			return false;
	}
	flat = dsa_get_address(tpc_area(), calls);
	p = (const char *) (flat + r->ncalls);
	ch->missing = r->ncalls;
	for (int i = 0; i < r->ncalls && sent; i++)
	{
		TpcBrokerCall call;

		unflatten(flat, i, &p, &call);
		sent = tpc_channel_call(broker, ch->number, &call);
	}
	/* else the connection is lost, which is said to all */
	if (!sent && tpc_broker_error(broker) == NULL)
	{
		TpcBrokerError error;

		error = make_error(ERRCODE_PROGRAM_LIMIT_EXCEEDED, "send",
						   "a name or the arguments are too long");
		tpc_channel_close(broker, ch->number);
		channel_gone(ch, &error, false);
	}
	else
	{
		/* the session cannot have freed the place: it is served */
		LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
		r->calls = InvalidDsaPointer;
		LWLockRelease(&tpc_shared->requests);
		dsa_free(tpc_area(), calls);
	}
	return true;
}

/* Not now: it goes back to the end of the queue, unless its session has gone. */
static void
put_back(TpcRequest *r)
{
	dsa_pointer garbage[2] = {InvalidDsaPointer, InvalidDsaPointer};

	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	if (!let_go(r, garbage))
	{
		r->state = TPC_REQUEST_QUEUED;
		push(r);
	}
	LWLockRelease(&tpc_shared->requests);
	collect(garbage);
}

/* One that a session has queued, for whatever reason there is. */
static void
serve_one(TpcNode *node, TpcBroker *broker, bool blocked)
{
	TpcRequest *r;
	Channel    *ch;
	bool		finish;
	bool		commit;
	bool		send = false;
	bool		foreign;
	uint64		requeue_from;
	uint64		acknowledge;

	LWLockAcquire(&tpc_shared->requests, LW_EXCLUSIVE);
	if (dlist_is_empty(&node->request_queue))
	{
		LWLockRelease(&tpc_shared->requests);
		return;
	}
	r = dlist_container(TpcRequest, link,
						dlist_head_node(&node->request_queue));
	unqueue(r);
	ch = channel_of(r);
	finish = r->abandoned || r->commit;
	commit = r->commit;
	/* left by a session of a node that had this place before */
	foreign = r->dbid != node->dbid;
	requeue_from = r->requeue_from;
	acknowledge = r->acknowledge;
	r->requeue_from = 0;
	r->acknowledge = 0;
	if (!finish && r->state == TPC_REQUEST_QUEUED)
	{
		send = true;
		r->served = true;
		r->state = TPC_REQUEST_SENT;
	}
	LWLockRelease(&tpc_shared->requests);

	if (ch->number != 0)
	{
		if (requeue_from != 0)
		{
			TPC_FAILPOINT("G4.before");
			for (int i = ch->ntags - 1; i >= 0; i--)
			{
				if (ch->tags[i] >= requeue_from)
					settle_one(ch, broker, ch->tags[i], TPC_SETTLE_REQUEUE);
			}
			TPC_FAILPOINT("G4.after");
		}
		if (acknowledge != 0)
			settle_one(ch, broker, acknowledge, TPC_SETTLE_ACK);
		if (commit && ch->ntags > 0)
		{
			TPC_FAILPOINT("G6.before");
			(void) tpc_channel_settle(broker, ch->number,
									  ch->tags[ch->ntags - 1], true,
									  TPC_SETTLE_ACK);
			ch->ntags = 0;
			TPC_FAILPOINT("G6.after");
		}
		if (finish)
		{
			TpcBrokerError none;

			/* whatever is not settled goes back to its queue */
			memset(&none, 0, sizeof(none));
			tpc_channel_close(broker, ch->number);
			channel_gone(ch, &none, false);
		}
	}
	if (!send)
		return;

	TPC_FAILPOINT("R2.before");
	if (foreign || broker == NULL || blocked)
	{
		TpcBrokerError error;

		if (foreign)
			error = make_error(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
							   "node", "it has been detached");
		else
			/* we write these, so we may read them */
			error = make_error(node->last_sqlstate != 0 ?
							   node->last_sqlstate :
							   ERRCODE_CONNECTION_FAILURE,
							   blocked ? "blocked" : "not connected",
							   node->last_error);
		refuse(ch, &error);
	}
	else if (!send_calls(ch, broker))
		put_back(r);
	TPC_FAILPOINT("R2.after");
}

/*
 * The messenger ends: what was under way is unknown, and what waits may want to
 * know that the node stops.
 */
static void
at_messenger_exit(int code, Datum arg)
{
	TpcBrokerError error;

	/* an error may have left some held */
	LWLockReleaseAll();
	error = make_error(ERRCODE_CONNECTION_FAILURE, "messenger",
					   "it has ended");
	for (int i = 0; i < tpc_max_requests; i++)
	{
		bool		served;

		LWLockAcquire(&tpc_shared->requests, LW_SHARED);
		served = requests[i].served && requests[i].node == own_node;
		if (!served && requests[i].in_queue && requests[i].node == own_node &&
			requests[i].waiter != NULL)
			SetLatch(requests[i].waiter);
		LWLockRelease(&tpc_shared->requests);
		if (served)
			channel_gone(&channels[i], &error, true);
	}
}

/* Once, before this process has to do with any place. */
static void
start(TpcNode *node)
{
	if (channels != NULL)
		return;
	channels = MemoryContextAllocZero(TopMemoryContext,
									  mul_size(tpc_max_requests,
											   sizeof(Channel)));
	for (int i = 0; i < tpc_max_requests; i++)
		channels[i].owner.take = take_event;
	own_node = node;
	before_shmem_exit(at_messenger_exit, (Datum) 0);
}

static void
connected(TpcNode *node, TpcBroker *broker)
{
	start(node);
}

static void
serve(TpcNode *node, TpcBroker *broker, bool blocked)
{
	uint32		n = pg_atomic_read_u32(&node->requests_queued);

	/* what is queued without a connection is new, and the next one is near */
	if (n == 0 || (broker == NULL && node->link == TPC_LINK_CONNECTING))
		return;
	start(node);
	for (; n > 0; n--)
		serve_one(node, broker, blocked);
}

static void
lost(TpcNode *node, const TpcBrokerError *error)
{
	for (int i = 0; channels != NULL && i < tpc_max_requests; i++)
	{
		if (channels[i].number != 0)
			channel_gone(&channels[i], error, true);
	}
}

const TpcMessengerPart tpc_request_part = {
	connected, lost, serve
};
