/*-------------------------------------------------------------------------
 *
 * txn.c
 *	  The coordinator's side of a transaction, in its own backend.
 *
 * Calls named inside the transaction are remembered here.  At COMMIT the work
 * is handed to the messenger (C1), the votes are awaited (C2) and the decision
 * row is written (C3), all while an error still rolls everything back.  What
 * comes after the commit record (C4) only sets fields of an entry claimed
 * before and a latch (C5), and then may wait for the acknowledgements (C6)
 * within a bound, with nothing left that could raise.
 *
 * PREPARE TRANSACTION does the same up to the decision row, which then rides
 * in the prepared transaction; prepared.c takes it from there.
 *
 * A participant can also be one that the application prepares itself: it is
 * enlisted here, and may vote from then on.  Its list of participants is in
 * shared memory, and the entry the messenger's to free, from that moment.
 *
 * That last wait stands where the server releases resources, after the
 * transaction's locks: nobody else waits for our participants.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "await.h"
#include "branch.h"
#include "compat.h"
#include "decision.h"
#include "failpoint.h"
#include "get.h"
#include "gid.h"
#include "join.h"
#include "kind.h"
#include "message.h"
#include "node.h"
#include "operate.h"
#include "own_queues.h"
#include "publish.h"
#include "settings.h"
#include "shmem.h"
#include "subscribe.h"
#include "txn.h"
#include "worker.h"

typedef struct PendingCall
{
	char	   *node;
	char	   *handler;
	char	   *arg;			/* JSON text, UTF-8 */
	size_t		arg_len;
	char		kind[TPC_KIND_SIZE];	/* "": none */
	SubTransactionId subid;		/* where it was named */
} PendingCall;

typedef struct Enlisted
{
	char	   *node;
	int			index;			/* in the list of participants */
	SubTransactionId subid;		/* where it was named */
	bool		dropped;		/* that has rolled back; it may have voted */
} Enlisted;

/*
 * The transaction of this backend.  Owned by this file; txn is NULL outside
 * of a global transaction.  calls lives in TopTransactionContext.
 */
static struct
{
	TpcNode    *node;
	TpcTxn	   *txn;
	TpcGlobalId id;
	List	   *calls;
	List	   *enlisted;		/* of Enlisted *, as calls */
	char		own_queues[TPC_NODE_SIZE];	/* who is reached by its own; "":
											 * nobody */
	SubTransactionId own_queues_in; /* where that was said */
	bool		own_declared;	/* they are there */
	bool		shown;			/* gtid() has told somebody the id */
	bool		handed;			/* the messenger frees the entry */
	bool		votes_known;	/* all are in: no other can come */
	bool		wait_applied;	/* after the commit, wait */
	int			apply_timeout;	/* as it was at C1 */
}			current;

bool		tpc_xact_pending = false;

/*
 * The GID of a PREPARE TRANSACTION, and of which transaction.  A deferred
 * trigger can make it one of ours after the statement was seen, so that of
 * every such statement is kept.
 */
static char prepare_gid[TPC_GID_SIZE] = "";
static TimestampTz prepare_gid_of = 0;
static bool gid_claimed = false;

/* For a branch: when its coordinator gives up; 0 if this is none. */
static TimestampTz branch_deadline = 0;

static bool runs_branches = false;

static uint32 wait_event_place = 0;

static void
current_reset(void)
{
	memset(&current, 0, sizeof(current));
	gid_claimed = false;
	tpc_xact_pending = false;
}

/*
 * tpc_txn_set_gid: the transaction is going to be prepared under this GID.
 * The server has forgotten it by the time its callbacks run.
 */
void
tpc_txn_set_gid(const char *gid)
{
	strlcpy(prepare_gid, gid, sizeof(prepare_gid));
	prepare_gid_of = GetCurrentTransactionStartTimestamp();
}

/*
 * tpc_txn_set_deadline: the transaction is a branch, whose coordinator waits
 * no longer than this; 0 takes it back.
 */
void
tpc_txn_set_deadline(TimestampTz deadline)
{
	branch_deadline = deadline;
}

/*
 * tpc_txn_is_branch: whether the current transaction is to be prepared as a
 * branch of another node's: it runs handlers, or has joined.
 */
bool
tpc_txn_is_branch(void)
{
	return runs_branches || tpc_join_pending();
}

/* tpc_txn_runs_branches: every transaction of this process is a branch. */
void
tpc_txn_runs_branches(void)
{
	runs_branches = true;
}

/*
 * claim_entry: draw a number and make its entry, in one go under txns, which
 * is what the floor rests on (tpc_decision_floor).  NULL if all places are
 * taken (*say: nobody has said so lately); raises if the node is not there any
 * more.
 */
static TpcTxn *
claim_entry(TpcNode *node, TpcTxnKey *key, bool *say)
{
	TpcTxn	   *txn;
	bool		found;

	/* The place must still be ours when the number is drawn. */
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	if (node->state != TPC_NODE_ATTACHED || node->dbid != MyDatabaseId ||
		pg_atomic_read_u64(&node->incarnation) == 0)
	{
		LWLockRelease(&tpc_shared->control);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database has been detached")));
	}
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	key->gtid.incarnation = pg_atomic_read_u64(&node->incarnation);
	key->gtid.sequence = pg_atomic_add_fetch_u64(&node->sequence, 1);
	txn = hash_search(tpc_txns, key, HASH_ENTER_NULL, &found);
	if (txn != NULL)
	{
		memset((char *) txn + sizeof(TpcTxnKey), 0,
			   sizeof(TpcTxn) - sizeof(TpcTxnKey));
		txn->state = TPC_TXN_ACTIVE;
		txn->pid = MyProcPid;
		txn->started = GetCurrentTransactionStartTimestamp();
	}
	*say = txn == NULL && tpc_worker_may_log(&tpc_shared->txns_full_logged);
	LWLockRelease(&tpc_shared->txns);
	LWLockRelease(&tpc_shared->control);
	return txn;
}

/*
 * wait_for_entry: the same, once one is free; NULL if none is within
 * slot_timeout, nor while the coordinator of this branch still waits for it.
 */
static TpcTxn *
wait_for_entry(TpcNode *node, TpcTxnKey *key)
{
	TpcTxn	   *txn;
	TimestampTz deadline;
	bool		say;

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   tpc_slot_timeout);
	if (branch_deadline != 0 && branch_deadline < deadline)
		deadline = branch_deadline;
	/* one that is freed from here on wakes us */
	ConditionVariablePrepareToSleep(&tpc_shared->txn_freed);
	while ((txn = claim_entry(node, key, &say)) == NULL)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   deadline);

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&tpc_shared->txn_freed, left,
										   tpc_wait_event(&wait_event_place,
														  "TpcAmqpPlace"));
	}
	ConditionVariableCancelSleep();
	return txn;
}

/* txn_claim: make the current transaction a global one, if it is not yet. */
static void
txn_claim(void)
{
	TpcNode    *node;
	TpcTxn	   *txn;
	TpcTxnKey	key;
	bool		say;

	if (current.txn != NULL)
		return;

	node = tpc_node_ready();

	/* What the callbacks will need, while raising is allowed. */
	(void) tpc_area();
	tpc_await_init();

	memset(&key, 0, sizeof(key));
	key.dbid = MyDatabaseId;
	txn = claim_entry(node, &key, &say);
	if (txn == NULL)
	{
		/* The messenger may have entries to free that are done with. */
		tpc_wake_messenger(node);
		if (say)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("all %d places for global transactions are taken",
							tpc_max_transactions),
					 errhint("Increase \"tpc_amqp.max_transactions\". This is logged once a minute at most.")));
		txn = wait_for_entry(node, &key);
	}
	if (txn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many global transactions"),
				 errdetail("All %d places are taken, and none was free within %d ms.",
						   tpc_max_transactions, tpc_slot_timeout),
				 errhint("Increase \"tpc_amqp.max_transactions\", or look for stuck ones in view tpc_amqp.transactions. With a longer \"tpc_amqp.slot_timeout\" transactions wait longer.")));

	current.node = node;
	current.txn = txn;
	strlcpy(current.id.coordinator, node->name,
			sizeof(current.id.coordinator));
	current.id.gtid = key.gtid;
	current.calls = NIL;
	current.enlisted = NIL;
	current.handed = false;
	tpc_xact_pending = true;
}

/*
 * The node's, or NULL.  Raises if it was enlisted in a savepoint that has
 * rolled back: a vote for that branch may be on its way, and would be taken
 * for that of a new one.
 */
static Enlisted *
find_enlisted(const char *node)
{
	ListCell   *lc;

	foreach(lc, current.enlisted)
	{
		Enlisted   *enlisted = lfirst(lc);

		if (strcmp(enlisted->node, node) != 0)
			continue;
		if (enlisted->dropped)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("node \"%s\" was enlisted in a savepoint that has been rolled back",
							node),
					 errdetail("It cannot take part in this transaction again.")));
		return enlisted;
	}
	return NULL;
}

/*
 * tpc_call(node text, handler text, arg jsonb, kind text) returns void
 *
 * Remember work for another node.  Nothing is sent before COMMIT, and nothing
 * at all if the (sub)transaction rolls back.  With a kind, it goes through the
 * queue that the node has for that, with all others of this transaction.
 */
PG_FUNCTION_INFO_V1(tpc_call);
Datum
tpc_call(PG_FUNCTION_ARGS)
{
	char	   *node;
	char	   *handler;
	const char *kind;
	Jsonb	   *arg;
	char	   *json;
	char	   *utf8;
	MemoryContext old;
	PendingCall *call;
	Size		total = 0;
	ListCell   *lc;

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.call()");
	PreventCommandDuringRecovery("tpc_amqp.call()");

	/* Not STRICT: work that was named must not be left out in silence. */
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("node, handler and argument of a call cannot be null")));
	node = text_to_cstring(PG_GETARG_TEXT_PP(0));
	handler = text_to_cstring(PG_GETARG_TEXT_PP(1));
	arg = PG_GETARG_JSONB_P(2);
	kind = PG_ARGISNULL(3) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(3));

	tpc_node_check_name(node);
	if (!PG_ARGISNULL(3))
		tpc_kind_check_name(kind);
	if (handler[0] == '\0' || strlen(handler) > TPC_HANDLER_MAXLEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid handler name \"%s\"", handler),
				 errdetail("A handler name has 1 to %d bytes.",
						   TPC_HANDLER_MAXLEN)));

	json = JsonbToCString(NULL, &arg->root, VARSIZE(arg));

	txn_claim();

	if (kind[0] != '\0' && strcmp(current.own_queues, node) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" is called by the queues of this transaction",
						node),
				 errdetail("It cannot be called by the queue of a kind.")));

	if (find_enlisted(node) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is enlisted in this transaction", node),
				 errdetail("A node has one branch of a transaction: the application's, or one that runs handlers.")));

	/* All of one node travels in one message; check where the user sees it. */
	foreach(lc, current.calls)
	{
		PendingCall *other = lfirst(lc);

		if (strcmp(other->node, node) != 0)
			continue;
		total += other->arg_len + strlen(other->handler) + 32;
		if (strcmp(other->kind, kind) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("calls to node \"%s\" in one transaction are of one kind",
							node),
					 errdetail("They are one branch there, and run by one worker.")));
	}
	utf8 = pg_server_to_any(json, strlen(json), PG_UTF8);
	total += strlen(utf8) + strlen(handler) + 64;
	if (total > (Size) tpc_max_payload * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("calls to node \"%s\" are too large for one message",
						node),
				 errdetail("They take %zu bytes; the limit is %d kB.",
						   total, tpc_max_payload),
				 errhint("Increase \"tpc_amqp.max_payload\" on both nodes, or pass less data.")));
	if (list_length(current.calls) >= TPC_MAX_CALLS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many calls in one transaction"),
				 errdetail("The limit is %d.", TPC_MAX_CALLS)));

	old = MemoryContextSwitchTo(TopTransactionContext);
	call = palloc(sizeof(PendingCall));
	call->node = pstrdup(node);
	call->handler = pg_server_to_any(handler, strlen(handler), PG_UTF8);
	if (call->handler == handler)
		call->handler = pstrdup(handler);
	call->arg_len = strlen(utf8);
	call->arg = pnstrdup(utf8, call->arg_len);
	strlcpy(call->kind, kind, sizeof(call->kind));
	call->subid = GetCurrentSubTransactionId();
	current.calls = lappend(current.calls, call);
	MemoryContextSwitchTo(old);

	PG_RETURN_VOID();
}

/*
 * add_participants: append to the list of participants in shared memory;
 * returns the index of the first.  Votes of enlisted ones may arrive as soon
 * as the lock is released.  From now on the messenger frees the entry.
 */
static int
add_participants(char **names, int n, bool enlisted)
{
	TpcTxn	   *txn = current.txn;
	TpcParticipant *parts;
	dsa_pointer array;
	dsa_pointer old = txn->participants;
	int			first = txn->nparticipants;
	Size		size = mul_size(sizeof(TpcParticipant), first + n);

	array = tpc_area_alloc(size);
	parts = dsa_get_address(tpc_area(), array);
	memset(parts, 0, size);
	for (int i = 0; i < n; i++)
	{
		TpcParticipant *part = &parts[first + i];

		strlcpy(part->node, names[i], sizeof(part->node));
		part->body = InvalidDsaPointer;
		part->reason = InvalidDsaPointer;
		part->enlisted = enlisted;
		part->sent = enlisted;
	}

	current.handed = true;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	if (first > 0)
		memcpy(parts, dsa_get_address(tpc_area(), old),
			   sizeof(TpcParticipant) * first);
	txn->participants = array;
	txn->nparticipants = first + n;
	txn->nexpected += n;
	LWLockRelease(&tpc_shared->txns);
	if (first > 0)
		dsa_free(tpc_area(), old);
	return first;
}

/*
 * tpc_enlist(node text) returns text
 *
 * Expect a branch that the application prepares on that node itself, after
 * tpc_amqp.join() with the id that this returns: COMMIT waits for its vote.
 * Again for the same node, the same id.
 */
PG_FUNCTION_INFO_V1(tpc_enlist);
Datum
tpc_enlist(PG_FUNCTION_ARGS)
{
	char	   *node = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char		text[TPC_GTID_TEXT_SIZE];
	ListCell   *lc;

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.enlist()");
	PreventCommandDuringRecovery("tpc_amqp.enlist()");
	tpc_node_check_name(node);
	txn_claim();

	if (strcmp(node, current.id.coordinator) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("node \"%s\" cannot enlist itself", node)));
	foreach(lc, current.calls)
	{
		PendingCall *call = lfirst(lc);

		if (strcmp(call->node, node) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("node \"%s\" is called in this transaction", node),
					 errdetail("A node has one branch of a transaction: the application's, or one that runs handlers.")));
	}
	if (find_enlisted(node) == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
		Enlisted   *enlisted = palloc(sizeof(Enlisted));

		enlisted->node = pstrdup(node);
		enlisted->dropped = false;
		enlisted->subid = GetCurrentSubTransactionId();
		current.enlisted = lappend(current.enlisted, enlisted);
		/* if this raises, the transaction is over, and the list with it */
		enlisted->index = -1;
		enlisted->index = add_participants(&node, 1, true);
		MemoryContextSwitchTo(old);
	}
	current.shown = true;
	tpc_gtid_to_text(&current.id, text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

/*
 * tpc_own_queues(participant text) returns text
 *
 * Give the transaction queues of its own, by which that participant is reached;
 * returns the uuid in their names.  They are there when it returns, whatever
 * becomes of the transaction, and are gone when it has ended.
 */
PG_FUNCTION_INFO_V1(tpc_own_queues);
Datum
tpc_own_queues(PG_FUNCTION_ARGS)
{
	char	   *participant = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char		uuid[TPC_UUID_TEXT_SIZE];
	ListCell   *lc;

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.own_queues()");
	PreventCommandDuringRecovery("tpc_amqp.own_queues()");
	tpc_node_check_name(participant);
	txn_claim();
	if (find_enlisted(participant) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is enlisted in this transaction",
						participant)));
	if (current.own_queues[0] != '\0' &&
		strcmp(current.own_queues, participant) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the queues of this transaction are those of \"%s\"",
						current.own_queues),
				 errdetail("Two participants would take each other's messages."),
				 errhint("Call others by queues of their own.")));
	foreach(lc, current.calls)
	{
		PendingCall *call = lfirst(lc);

		if (strcmp(call->node, participant) == 0 && call->kind[0] != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("\"%s\" has been called by the queue of a kind",
							participant)));
	}
	if (!current.own_declared)
	{
		/* from here on the messenger frees the entry, and deletes them */
		current.handed = true;
		LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
		current.txn->own_queues = true;
		LWLockRelease(&tpc_shared->txns);
		tpc_own_queues_declare(current.node, &current.id.gtid);
		current.own_declared = true;
	}
	if (current.own_queues[0] == '\0')
	{
		strlcpy(current.own_queues, participant, sizeof(current.own_queues));
		current.own_queues_in = GetCurrentSubTransactionId();
	}
	current.shown = true;
	tpc_uuid_to_text(&current.id.gtid, uuid);
	PG_RETURN_TEXT_P(cstring_to_text(uuid));
}

/* drop_enlisted: its savepoint has rolled back.  Never raises. */
static void
drop_enlisted(Enlisted *enlisted)
{
	TpcTxn	   *txn = current.txn;
	TpcParticipant *part;

	enlisted->dropped = true;
	if (enlisted->index < 0)
		return;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	part = (TpcParticipant *) dsa_get_address(tpc_area(), txn->participants) +
		enlisted->index;
	part->dropped = true;
	txn->nexpected--;
	if (part->vote == TPC_PART_YES || part->vote == TPC_PART_READ_ONLY)
		txn->nvotes--;
	else if (part->vote != TPC_PART_WAITING)
		txn->nrefused--;
	LWLockRelease(&tpc_shared->txns);
}

/*
 * tpc_txn_has_calls: whether the current transaction has participants, or
 * named work that will make some.
 */
bool
tpc_txn_has_calls(void)
{
	ListCell   *lc;

	foreach(lc, current.enlisted)
	{
		if (!((Enlisted *) lfirst(lc))->dropped)
			return true;
	}
	return current.calls != NIL;
}

/*
 * tpc_gtid() returns text
 *
 * The current global transaction's id, NULL if it is none (yet).
 */
PG_FUNCTION_INFO_V1(tpc_gtid);
Datum
tpc_gtid(PG_FUNCTION_ARGS)
{
	char		text[TPC_GTID_TEXT_SIZE];

	if (current.txn == NULL)
		PG_RETURN_NULL();
	current.shown = true;
	tpc_gtid_to_text(&current.id, text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

/* The distinct nodes of the calls, in the order they were first named. */
static int
participant_names(char ***names)
{
	int			n = 0;
	ListCell   *lc;

	*names = palloc(sizeof(char *) * list_length(current.calls));
	foreach(lc, current.calls)
	{
		PendingCall *call = lfirst(lc);
		bool		known = false;

		for (int i = 0; i < n; i++)
			known = known || strcmp((*names)[i], call->node) == 0;
		if (!known)
			(*names)[n++] = call->node;
	}
	return n;
}

/*
 * hand_over: step C1.  Put the prepares into shared memory and have the
 * messenger publish them.  From here on an abort tells the participants.
 */
static void
hand_over(char **names, int n, TimestampTz deadline, bool must_prepare)
{
	TpcTxn	   *txn = current.txn;
	TpcParticipant *parts;
	int			first;

	first = n > 0 ? add_participants(names, n, false) : txn->nparticipants;
	parts = dsa_get_address(tpc_area(), txn->participants);

	for (int i = 0; i < n; i++)
	{
		StringInfoData body;
		ListCell   *lc;
		dsa_pointer p;

		initStringInfo(&body);
		tpc_message_begin_calls(&body);
		foreach(lc, current.calls)
		{
			PendingCall *call = lfirst(lc);

			if (strcmp(call->node, names[i]) != 0)
				continue;
			strlcpy(parts[first + i].kind, call->kind,
					sizeof(parts[first + i].kind));
			tpc_message_add_call(&body, call->handler, call->arg,
								 call->arg_len);
		}
		parts[first + i].own_queues = strcmp(names[i],
											 current.own_queues) == 0;
		tpc_message_end_calls(&body, must_prepare);

		p = tpc_area_alloc(body.len);
		memcpy(dsa_get_address(tpc_area(), p), body.data, body.len);
		parts[first + i].body = p;
		parts[first + i].body_len = body.len;
		pfree(body.data);
	}

	TPC_FAILPOINT("C1.before");
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn->state = TPC_TXN_PREPARING;
	txn->prepare_at = GetCurrentTimestamp();
	txn->timeout_ms = tpc_prepare_timeout;
	if (branch_deadline != 0)
		txn->timeout_ms = (int) TimestampDifferenceMilliseconds(txn->prepare_at,
																deadline);
	txn->waiter = MyLatch;
	tpc_txn_queue(current.node, txn);
	LWLockRelease(&tpc_shared->txns);
	tpc_wake_messenger(current.node);
	TPC_FAILPOINT("C1.after");
}

/*
 * bind_votes: instead of step C2, if PREPARE is not to wait: from here on no
 * vote can be taken back, for what the record says of them has to hold after a
 * restart, too.
 */
static void
bind_votes(void)
{
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	current.txn->votes_final = true;
	LWLockRelease(&tpc_shared->txns);
}

/*
 * second_phase: the participants that have one, and the users that voted:
 * those that voted yes, or (if votes are still out) those that may, with ""
 * for the user of one that has not.
 */
static int
second_phase(char **names, char **users, bool *enlisted, bool all)
{
	TpcTxn	   *txn = current.txn;
	TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);
	int			n = 0;

	/* Copies: while votes are out, the messenger is at it. */
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	for (int i = 0; i < txn->nparticipants; i++)
	{
		bool		yes = parts[i].vote == TPC_PART_YES;

		if (!parts[i].dropped &&
			(yes || (all && parts[i].vote != TPC_PART_READ_ONLY)))
		{
			strcpy(users[n], yes ? parts[i].user_id : "");
			enlisted[n] = parts[i].enlisted;
			names[n++] = parts[i].node;
		}
	}
	LWLockRelease(&tpc_shared->txns);
	return n;
}

/*
 * record_shown: a transaction that in the end has no participants needs no
 * record, except for who knows its id and may ask for its outcome().
 */
static void
record_shown(void)
{
	if (!current.shown)
		return;
	ForceSyncCommit();
	tpc_decision_insert(&current.id.gtid, NULL, NULL, 0, NULL, NULL);
}

/*
 * tpc_txn_make_synchronous: what the transaction writes last is a promise or
 * a decision: it must be on disk before anybody hears of it, and on the
 * synchronous standbys, if there are any.
 */
void
tpc_txn_make_synchronous(void)
{
	ForceSyncCommit();
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
								 false);
}

/*
 * gather: steps C1 to C3.  An error here rolls back everywhere.  gid: of the
 * PREPARE TRANSACTION that follows, or NULL.
 */
static void
gather(const char *gid)
{
	char	  **names;
	char	  **users;
	bool	   *enlisted;
	int			n;
	TimestampTz deadline;
	bool		timed;
	bool		wait;

	tpc_txn_make_synchronous();

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   tpc_prepare_timeout);
	/* A branch has to answer while its coordinator still listens. */
	if (branch_deadline != 0 && branch_deadline < deadline)
		deadline = branch_deadline;
	/* Nor can it promise what its own participants have not. */
	wait = gid == NULL || tpc_prepare_wait || tpc_join_pending() ||
		branch_deadline != 0;
	n = participant_names(&names);

	/* The server has stopped this clock before the transaction commits. */
	timed = StatementTimeout > 0 && !get_timeout_active(STATEMENT_TIMEOUT);
	if (timed)
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
	tpc_await_link(current.node, deadline);
	/* a no that is there already; what is asked now may answer later */
	if (!wait)
		tpc_await_raise_refusal(current.node, &current.id, NULL);
	hand_over(names, n, deadline, !wait);
	if (wait)
		tpc_await_votes(current.node, current.txn, &current.id,
						current.enlisted != NIL, deadline);
	else
		bind_votes();
	current.votes_known = wait;
	if (timed)
		disable_timeout(STATEMENT_TIMEOUT, false);

	/* Those that voted read-only are finished, and no part of the record. */
	n = current.txn->nparticipants;
	names = palloc(sizeof(char *) * n);
	users = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
		users[i] = palloc(TPC_USER_MAXLEN + 1);
	enlisted = palloc(sizeof(bool) * n);
	n = second_phase(names, users, enlisted, !wait);
	TPC_FAILPOINT("C3.before");
	tpc_decision_insert(&current.id.gtid, names, users, n, gid, enlisted);
	TPC_FAILPOINT("C3.after");
}

static void
pre_commit(void)
{
	tpc_join_at_pre_commit();
	tpc_publish_at_pre_commit();
	if (current.txn == NULL)
		return;
	if (!tpc_txn_has_calls())
	{
		record_shown();
		return;
	}
	gather(NULL);
	current.wait_applied = tpc_commit_wait == TPC_COMMIT_WAIT_APPLIED &&
		tpc_apply_timeout > 0;
	current.apply_timeout = tpc_apply_timeout;
	TPC_FAILPOINT("C4.before");
}

/*
 * pre_prepare: as pre_commit, and claim the GID for what rides in the
 * prepared transaction: our decision, a branch that was joined, or both.
 */
static void
pre_prepare(void)
{
	TpcGid		claim;

	if (tpc_node_xact_pending())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has attached or detached this database")));

	/* Everything later goes by it. */
	if ((tpc_txn_has_calls() || tpc_join_pending()) &&
		prepare_gid_of != GetCurrentTransactionStartTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot prepare a global transaction other than by PREPARE TRANSACTION")));

	memset(&claim, 0, sizeof(claim));
	if ((tpc_txn_has_calls() || tpc_join_pending()) &&
		tpc_branch_gid_parse(prepare_gid, NULL, &claim.branch))
	{
		if (branch_deadline == 0)
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("transaction identifier \"%s\" is reserved",
							prepare_gid),
					 errdetail("Identifiers of this form are those of branches that run handlers.")));
		claim.has_branch = true;
	}

	/* One that runs handlers is of one coordinator; its GID is not a user's. */
	if (tpc_join_pending() && (claim.has_branch || prepare_gid[0] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a handler cannot join another transaction")));
	if (tpc_txn_has_calls())
	{
		gather(prepare_gid);
		claim.has_txn = true;
		claim.txn = current.id.gtid;
		claim.votes_known = current.votes_known;
	}
	else if (current.txn != NULL)
		record_shown();
	if (tpc_join_pending())
	{
		tpc_join_at_pre_prepare(prepare_gid, &claim.branch);
		claim.has_branch = true;
	}
	if (claim.has_txn || tpc_join_pending())
	{
		strlcpy(claim.key.gid, prepare_gid, sizeof(claim.key.gid));
		claim.owner = GetUserId();
		tpc_gid_claim(&claim);
		gid_claimed = true;
	}
	TPC_FAILPOINT("Q1.before");
}

/*
 * at_prepare: PREPARE TRANSACTION is durable.  Must not raise: that would
 * destroy what was promised.  The GID first, so that nobody who hears of the
 * transaction takes it for somebody else's.
 */
static void
at_prepare(void)
{
	TpcTxn	   *txn = current.txn;

	TPC_FAILPOINT("Q1.after");
	if (gid_claimed)
		tpc_gid_set_prepared(prepare_gid);
	tpc_join_at_prepare();
	if (txn == NULL)
		return;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	if (!current.handed)
		tpc_txn_remove(txn);
	else if (!tpc_txn_has_calls())
	{
		/* all were enlisted in savepoints that rolled back */
		txn->state = TPC_TXN_ABORTED;
		txn->waiter = NULL;
		tpc_txn_queue(current.node, txn);
	}
	else
	{
		txn->state = TPC_TXN_PREPARED;
		txn->waiter = NULL;
		txn->pid = 0;
	}
	LWLockRelease(&tpc_shared->txns);
	current.txn = NULL;
}

/*
 * at_commit: steps C4 (just done by the server) and C5.  Must not raise.
 */
static void
at_commit(void)
{
	TpcTxn	   *txn = current.txn;

	if (txn == NULL)
		return;

	if (!current.handed)
	{
		/* It named nothing, or only in savepoints that rolled back. */
		LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
		tpc_txn_remove(txn);
		LWLockRelease(&tpc_shared->txns);
		current.txn = NULL;
		return;
	}

	TPC_FAILPOINT("C5.before");
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn->state = TPC_TXN_COMMITTED;
	txn->decided_at = GetCurrentTimestamp();
	txn->waiter = current.wait_applied ? MyLatch : NULL;
	tpc_txn_queue(current.node, txn);
	LWLockRelease(&tpc_shared->txns);
	tpc_wake_messenger(current.node);
	tpc_node_count(current.node, TPC_STAT_COMMITS, 1);
	TPC_FAILPOINT("C5.after");
}

/* at_abort: tell the messenger, who tells the participants.  Never raises. */
static void
at_abort(void)
{
	TpcTxn	   *txn = current.txn;

	if (gid_claimed)
		tpc_gid_drop(prepare_gid, false);
	tpc_join_at_abort();
	if (txn == NULL)
		return;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	if (current.handed)
	{
		txn->state = TPC_TXN_ABORTED;
		txn->waiter = NULL;
		tpc_txn_queue(current.node, txn);
	}
	else
		tpc_txn_remove(txn);
	LWLockRelease(&tpc_shared->txns);
	if (current.handed)
		tpc_wake_messenger(current.node);
}

/* The one transaction callback. */
static void
xact_callback(XactEvent event, void *arg)
{
	if (!tpc_xact_pending)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			tpc_get_check();
			pre_commit();
			tpc_get_at_pre_commit();
			break;

		case XACT_EVENT_COMMIT:
			at_commit();
			tpc_join_at_commit();
			tpc_publish_at_commit();
			tpc_get_at_commit();
			tpc_operate_at_eoxact(true);
			tpc_subscription_at_eoxact(true);
			tpc_node_at_eoxact(true);
			if (current.txn == NULL || !current.wait_applied)
				current_reset();
			break;

		case XACT_EVENT_ABORT:
			at_abort();
			tpc_publish_at_abort();
			tpc_get_at_abort();
			tpc_operate_at_eoxact(false);
			tpc_subscription_at_eoxact(false);
			tpc_node_at_eoxact(false);
			current_reset();
			break;

		case XACT_EVENT_PRE_PREPARE:
			tpc_get_at_pre_prepare();
			pre_prepare();
			break;

		case XACT_EVENT_PREPARE:
			at_prepare();
			tpc_publish_at_prepare();
			/* there is nothing but what savepoints have put back */
			tpc_get_at_abort();
			tpc_operate_at_eoxact(false);
			tpc_subscription_at_eoxact(false);
			/* workers that left for ALTER DATABASE come back */
			tpc_node_at_eoxact(false);
			current_reset();
			break;

		default:
			break;
	}
}

/*
 * The wait of C6: called for each phase of releasing the transaction's
 * resources, of which the last comes after its locks.
 */
static void
resource_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel,
				  void *arg)
{
	if (!tpc_xact_pending || phase != RESOURCE_RELEASE_AFTER_LOCKS ||
		!isTopLevel || !isCommit)
		return;
	if (current.txn != NULL && current.wait_applied)
		tpc_await_applied(current.node, current.txn, current.apply_timeout);
	current_reset();
}

/* The one subtransaction callback. */
static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	ListCell   *lc;

	if (!tpc_xact_pending)
		return;

	switch (event)
	{
		case SUBXACT_EVENT_COMMIT_SUB:
			foreach(lc, current.calls)
			{
				PendingCall *call = lfirst(lc);

				if (call->subid == mySubid)
					call->subid = parentSubid;
			}
			foreach(lc, current.enlisted)
			{
				Enlisted   *enlisted = lfirst(lc);

				if (enlisted->subid == mySubid)
					enlisted->subid = parentSubid;
			}
			if (current.own_queues_in == mySubid)
				current.own_queues_in = parentSubid;
			tpc_join_at_subxact(true, mySubid, parentSubid);
			tpc_get_at_subxact(true, mySubid, parentSubid);
			tpc_node_at_subxact(true, mySubid, parentSubid);
			break;

		case SUBXACT_EVENT_ABORT_SUB:
			foreach(lc, current.calls)
			{
				PendingCall *call = lfirst(lc);

				if (call->subid == mySubid)
					current.calls = foreach_delete_current(current.calls, lc);
			}
			foreach(lc, current.enlisted)
			{
				Enlisted   *enlisted = lfirst(lc);

				if (enlisted->subid == mySubid && !enlisted->dropped)
					drop_enlisted(enlisted);
			}
			if (current.own_queues_in == mySubid)
			{
				/* the queues stay until the end of the transaction */
				current.own_queues[0] = '\0';
				current.own_queues_in = InvalidSubTransactionId;
			}
			tpc_join_at_subxact(false, mySubid, parentSubid);
			tpc_get_at_subxact(false, mySubid, parentSubid);
			tpc_node_at_subxact(false, mySubid, parentSubid);
			break;

		default:
			break;
	}
}

/* tpc_txn_install: register the callbacks, once per process. */
void
tpc_txn_install(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	RegisterResourceReleaseCallback(resource_callback, NULL);
}
