/*-------------------------------------------------------------------------
 *
 * await.c
 *	  What a coordinator's session waits for.
 *
 * Before the commit record: the connection to the broker, and the votes (C2;
 * of a prepared transaction Q2), with an error if they do not come.  After it:
 * the acknowledgements (C6, Q5), where nothing may raise any more, and where
 * the server calls us with interrupts held.  So that wait looks for cancel,
 * terminate and the postmaster's death itself, as SyncRepWaitForLSN() does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"

#include "await.h"
#include "compat.h"
#include "failpoint.h"
#include "report.h"
#include "settings.h"

/* Names in the warning of C6, built without allocating. */
static char missing_names[1024];

static uint32 wait_event_vote = 0;
static uint32 wait_event_applied = 0;
static uint32 wait_event_connect = 0;

/* tpc_await_init: what waiting needs, while raising is allowed. */
void
tpc_await_init(void)
{
	(void) tpc_wait_event(&wait_event_vote, "TpcAmqpVotes");
	(void) tpc_wait_event(&wait_event_applied, "TpcAmqpApplied");
	(void) tpc_wait_event(&wait_event_connect, "TpcAmqpConnection");
}

/*
 * tpc_await_link: before C1, wait while the messenger is (re)connecting; raise
 * if it cannot, or if the broker takes nothing.
 */
void
tpc_await_link(TpcNode *node, TimestampTz deadline)
{
	for (;;)
	{
		TpcNodeState state;
		TpcLinkState link;
		bool		blocked;
		int			sqlstate;
		char		last_error[sizeof(node->last_error)];
		long		left;

		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		state = node->dbid == MyDatabaseId ? node->state : TPC_NODE_FREE;
		link = node->link;
		blocked = node->blocked;
		sqlstate = node->last_sqlstate;
		strlcpy(last_error, node->last_error, sizeof(last_error));
		LWLockRelease(&tpc_shared->control);

		if (state != TPC_NODE_ATTACHED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this database has been detached")));
		if (link == TPC_LINK_UP && !blocked)
			return;
		if (link == TPC_LINK_UP && blocked)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("the broker does not accept messages at present"),
					 errdetail("The broker says: %s", last_error)));

		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (link == TPC_LINK_DOWN || left <= 0)
			ereport(ERROR,
					(errcode(sqlstate != 0 ? sqlstate :
							 ERRCODE_CONNECTION_FAILURE),
					 errmsg("node \"%s\" is not connected to the broker",
							node->name),
					 last_error[0] != '\0' ?
					 errdetail("Last error: %s", last_error) : 0,
					 errhint("View tpc_amqp.node shows the state of the connection.")));

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 10),
						 tpc_wait_event(&wait_event_connect,
										"TpcAmqpConnection"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * tpc_await_raise_refusal: raise for the first participant that refused, if the entry
 * is still there.  hint: instead of the participant's, or NULL.
 */
void
tpc_await_raise_refusal(TpcNode *node, const TpcGlobalId *id,
						const char *hint)
{
	TpcTxn	   *txn;
	char		name[TPC_NODE_SIZE] = "";
	char		kind[TPC_KIND_SIZE] = "";
	bool		returned = false;
	char	   *reason = NULL;
	uint32		reason_len = 0;
	char		gtid[TPC_GTID_TEXT_SIZE];

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	txn = tpc_txn_find(node->dbid, &id->gtid);
	for (int i = 0; txn != NULL && i < txn->nparticipants; i++)
	{
		TpcParticipant *part = (TpcParticipant *)
		dsa_get_address(tpc_area(), txn->participants) + i;

		if (part->dropped || (part->vote != TPC_PART_NO &&
							  part->vote != TPC_PART_RETURNED))
			continue;
		strlcpy(name, part->node, sizeof(name));
		strlcpy(kind, part->kind, sizeof(kind));
		returned = part->vote == TPC_PART_RETURNED;
		if (DsaPointerIsValid(part->reason))
		{
			reason_len = part->reason_len;
			reason = palloc(Max(reason_len, 1));
			memcpy(reason, dsa_get_address(tpc_area(), part->reason),
				   reason_len);
		}
		break;
	}
	LWLockRelease(&tpc_shared->txns);
	if (name[0] == '\0')
		return;

	tpc_gtid_to_text(id, gtid);
	if (returned && kind[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the broker knows no queue of node \"%s\" for calls of kind \"%s\"",
						name, kind),
				 hint == NULL ?
				 errdetail("Transaction %s has been rolled back on all nodes.",
						   gtid) : 0,
				 errhint("%s", hint != NULL ? hint :
						 "The node has it once it is attached and has registered a handler of that kind.")));
	if (returned)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("node \"%s\" is not known to the broker", name),
				 hint == NULL ?
				 errdetail("Transaction %s has been rolled back on all nodes.",
						   gtid) : 0,
				 errhint("%s", hint != NULL ? hint :
						 "A node is known once it has been attached with tpc_amqp.attach().")));
	tpc_report_remote_error(name, gtid, reason, reason_len, hint);
}

/* The nodes whose vote is missing, for an error message. */
static char *
missing_votes(TpcNode *node, const TpcGlobalId *id)
{
	TpcTxn	   *txn;
	TpcParticipant *parts = NULL;
	StringInfoData names;

	initStringInfo(&names);
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	txn = tpc_txn_find(node->dbid, &id->gtid);
	if (txn != NULL && DsaPointerIsValid(txn->participants))
		parts = dsa_get_address(tpc_area(), txn->participants);
	for (int i = 0; parts != NULL && i < txn->nparticipants; i++)
	{
		if (parts[i].vote == TPC_PART_WAITING && !parts[i].dropped)
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
							 parts[i].node);
	}
	LWLockRelease(&tpc_shared->txns);
	return names.data;
}

/*
 * votes_are_final: whether no vote can change any more.  An application may
 * take back that of a branch it prepared, until the coordinator goes by it.
 */
static bool
votes_are_final(TpcTxn *txn, bool enlisted)
{
	bool		final;

	if (!enlisted)
		return true;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	final = txn->nrefused == 0 && txn->nvotes == txn->nexpected;
	txn->votes_final = final;
	LWLockRelease(&tpc_shared->txns);
	return final;
}

/*
 * tpc_await_votes: step C2, for an entry of this process.  Returns once all
 * have voted yes or read-only; raises for a no, at the deadline, and when
 * interrupted.  enlisted: some of them are.
 */
void
tpc_await_votes(TpcNode *node, TpcTxn *txn, const TpcGlobalId *id,
				bool enlisted, TimestampTz deadline)
{
	TPC_FAILPOINT("C2.before");
	for (;;)
	{
		long		left;
		int			nvotes;
		int			nrefused;

		ResetLatch(MyLatch);
		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		nvotes = txn->nvotes;
		nrefused = txn->nrefused;
		LWLockRelease(&tpc_shared->txns);

		if (nrefused > 0)
			tpc_await_raise_refusal(node, id, NULL);
		if (nvotes == txn->nexpected && votes_are_final(txn, enlisted))
			break;

		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0)
		{
			char		gtid[TPC_GTID_TEXT_SIZE];

			tpc_node_count(node, TPC_STAT_TIMEOUTS, 1);
			tpc_gtid_to_text(id, gtid);
			ereport(ERROR,
					(errcode(ERRCODE_TRANSACTION_ROLLBACK),
					 errmsg("no vote from node %s within %d ms",
							missing_votes(node, id),
							txn->timeout_ms),
					 errdetail("Transaction %s has been rolled back on all nodes.",
							   gtid),
					 errhint("The transaction can be retried. If this persists, check that the node is running and connected, or increase \"tpc_amqp.prepare_timeout\".")));
		}
		if (node->state != TPC_NODE_ATTACHED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this database has been detached")));

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 1000),
						 tpc_wait_event(&wait_event_vote, "TpcAmqpVotes"));
		CHECK_FOR_INTERRUPTS();
	}
	tpc_node_count(node, TPC_STAT_PREPARE_WAIT_US,
				   GetCurrentTimestamp() - txn->prepare_at);
	TPC_FAILPOINT("C2.after");
}

/*
 * tpc_await_prepared_votes: before COMMIT PREPARED, step Q2: wait until all
 * participants of a prepared transaction of this node have voted yes.  Raises
 * for a no, after prepare_timeout, and when interrupted; the transaction
 * stays prepared then.  True as well if somebody else has finished it; false
 * if there is no such entry.
 */
bool
tpc_await_prepared_votes(TpcNode *node, const TpcGlobalId *id)
{
	TimestampTz deadline;
	char		gtid[TPC_GTID_TEXT_SIZE];
	static const char *const hint =
	"ROLLBACK PREPARED rolls it back on all nodes.";

	(void) tpc_area();
	tpc_gtid_to_text(id, gtid);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   tpc_prepare_timeout);
	for (;;)
	{
		TpcTxn	   *txn;
		bool		refused = false;
		bool		complete = false;
		bool		decided = false;
		long		left;

		ResetLatch(MyLatch);
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
											   deadline);
		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		txn = tpc_txn_find(node->dbid, &id->gtid);
		if (txn != NULL && txn->state == TPC_TXN_PREPARED)
		{
			refused = txn->nrefused > 0;
			complete = !refused && txn->nvotes == txn->nexpected;
			/* mapped now, for step Q5 may not raise */
			if (complete && DsaPointerIsValid(txn->participants))
				(void) dsa_get_address(tpc_area(), txn->participants);
		}
		else if (txn != NULL)
			decided = txn->state == TPC_TXN_COMMITTED ||
				txn->state == TPC_TXN_ABORTED;
		LWLockRelease(&tpc_shared->txns);

		if (refused)
			tpc_await_raise_refusal(node, id, hint);
		if (complete || decided)
			return true;
		if (txn == NULL)
			return false;
		if (left <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("no vote from node %s within %d ms",
							missing_votes(node, id), tpc_prepare_timeout),
					 errdetail("Transaction %s is still prepared.", gtid),
					 errhint("COMMIT PREPARED can be tried again. %s", hint)));
		/* Nobody wakes us: any number of sessions may ask at a time. */
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 10),
						 tpc_wait_event(&wait_event_vote, "TpcAmqpVotes"));
		CHECK_FOR_INTERRUPTS();
	}
}

/* Who has yet to apply it, into missing_names.  Allocates nothing. */
static void
collect_missing(TpcTxn *txn)
{
	TpcParticipant *parts = dsa_get_address(tpc_area(), txn->participants);
	size_t		len = 0;

	missing_names[0] = '\0';
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	for (int i = 0; i < txn->nparticipants; i++)
	{
		if (parts[i].vote == TPC_PART_YES && !parts[i].dropped &&
			!parts[i].acked &&
			len + TPC_NODE_SIZE + 4 < sizeof(missing_names))
			len += snprintf(missing_names + len, sizeof(missing_names) - len,
							"%s\"%s\"", len > 0 ? ", " : "", parts[i].node);
	}
	LWLockRelease(&tpc_shared->txns);
}

/*
 * tpc_await_applied: step C6.  Wait until all have acknowledged, for at
 * most timeout_ms, and let go of the entry, whose waiter this process is.
 * The caller holds interrupts; never raises.
 */
void
tpc_await_applied(TpcNode *node, TpcTxn *txn, int timeout_ms)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end = TimestampTzPlusMilliseconds(start, timeout_ms);

	TPC_FAILPOINT("C6.before");
	for (;;)
	{
		bool		done;
		bool		incident;
		long		left;
		int			rc;

		ResetLatch(MyLatch);
		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		done = txn->done;
		incident = txn->incident;
		LWLockRelease(&tpc_shared->txns);
		if (done && incident)
			ereport(WARNING,
					(errmsg("a node could not apply the transaction as decided"),
					 errdetail("The transaction has committed here."),
					 errhint("View tpc_amqp.incidents tells what happened.")));
		if (done)
			break;

		if (ProcDiePending)
		{
			collect_missing(txn);
			ereport(WARNING,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("canceling the wait for participants and terminating connection due to administrator command"),
					 errdetail("The transaction has already committed on all nodes, but %s might not have applied it yet.",
							   missing_names)));
			whereToSendOutput = DestNone;
			break;
		}
		if (QueryCancelPending)
		{
			QueryCancelPending = false;
			collect_missing(txn);
			ereport(WARNING,
					(errmsg("canceling wait for participants due to user request"),
					 errdetail("The transaction has already committed on all nodes, but %s might not have applied it yet.",
							   missing_names)));
			break;
		}
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (left <= 0)
		{
			collect_missing(txn);
			ereport(WARNING,
					(errmsg("node %s has not applied the transaction within %d ms",
							missing_names, timeout_ms),
					 errdetail("The transaction has already committed; it will be applied there once the node can be reached.")));
			break;
		}
		rc = WaitLatch(MyLatch,
					   WL_LATCH_SET | WL_TIMEOUT | WL_POSTMASTER_DEATH,
					   Min(left, 1000),
					   tpc_wait_event(&wait_event_applied, "TpcAmqpApplied"));
		if (rc & WL_POSTMASTER_DEATH)
		{
			ProcDiePending = true;
			whereToSendOutput = DestNone;
			break;
		}
	}

	tpc_node_count(node, TPC_STAT_APPLY_WAIT_US,
				   GetCurrentTimestamp() - start);

	/* The messenger frees it when all is done. */
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn->waiter = NULL;
	tpc_txn_queue(node, txn);
	LWLockRelease(&tpc_shared->txns);
	TPC_FAILPOINT("C6.after");
}
