/*-------------------------------------------------------------------------
 *
 * prepared.c
 *	  Finishing prepared transactions that belong to global ones.
 *
 * COMMIT PREPARED and ROLLBACK PREPARED as a session gives them.  Three kinds
 * of prepared transactions are ours:
 *
 * - A coordinator's own.  Its COMMIT PREPARED is the decision (Q3): the row
 *   of table decision that rides in it becomes visible.  Before that, missing
 *   votes are awaited (Q2); afterwards the participants are told (Q4), as
 *   after a plain COMMIT.  Should the session die before Q4, the lead tells
 *   them (housekeeper.c).
 * - A joined branch.  The application may finish it, but never against the
 *   decision: so its statement asks the coordinator (J3), whose own prepared
 *   transaction is finished as asked if it is still undecided, and waits until
 *   the decision has been carried out here.  So databases can be told to
 *   commit in any order, and the first one that is told decides for all.
 * - A branch that runs handlers.  A session has no business with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "await.h"
#include "branch.h"
#include "compat.h"
#include "failpoint.h"
#include "message.h"
#include "node.h"
#include "prepared.h"
#include "resolve_worker.h"
#include "settings.h"
#include "txn.h"
#include "worker.h"

/* A request may be lost; it is repeated this often. */
#define REQUEST_INTERVAL_MS 1000

/* G whose transaction tpc_prepared_before() let pass as one of ours. */
static TpcGtid finishing;

static uint32 wait_event_decision = 0;

/* The node of this database, if it is attached. */
static TpcNode *
attached_node(void)
{
	TpcNode    *node;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL && node->state != TPC_NODE_ATTACHED)
		node = NULL;
	LWLockRelease(&tpc_shared->control);
	return node;
}

/* The global transaction an entry belongs to: that which decides over it. */
static void
entry_gtid(TpcNode *node, const TpcGid *entry, char text[TPC_GTID_TEXT_SIZE])
{
	TpcGlobalId id;

	memset(&id, 0, sizeof(id));
	if (entry->has_branch)
		id = entry->branch;
	else
	{
		strlcpy(id.coordinator, node->name, sizeof(id.coordinator));
		id.gtid = entry->txn;
	}
	tpc_gtid_to_text(&id, text);
}

/*
 * It was finished before: fine if as asked, an error if not.  Whoever finished
 * it need not have waited for the synchronous standbys yet.
 */
static void
report_finished(TpcNode *node, const TpcGid *entry, bool commit)
{
	char		gtid[TPC_GTID_TEXT_SIZE];
	bool		committed = entry->state == TPC_GID_COMMITTED;

	if (tpc_worker_has_standbys())
		(void) tpc_worker_await_standbys();
	entry_gtid(node, entry, gtid);
	if (committed == commit)
	{
		ereport(NOTICE,
				(errmsg(committed ?
						"prepared transaction \"%s\" has been committed already" :
						"prepared transaction \"%s\" has been rolled back already",
						entry->key.gid),
				 errdetail("It is part of global transaction %s.", gtid)));
		return;
	}
	ereport(ERROR,
			(errcode(committed ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
					 ERRCODE_TRANSACTION_ROLLBACK),
			 errmsg(committed ?
					"prepared transaction \"%s\" has been committed" :
					"prepared transaction \"%s\" has been rolled back",
					entry->key.gid),
			 errdetail("It is part of global transaction %s, which was decided so.",
					   gtid)));
}

/*
 * wait_finished: for a moment, until a prepared transaction that is gone is
 * known to be finished.
 */
static bool
wait_finished(const char *gid, TpcGid *entry)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   REQUEST_INTERVAL_MS);
	bool		known;
	long		left;

	ConditionVariablePrepareToSleep(&tpc_shared->gid_changed);
	while ((known = tpc_gid_lookup(gid, entry)) &&
		   entry->state == TPC_GID_PREPARED &&
		   (left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   deadline)) > 0)
		(void) ConditionVariableTimedSleep(&tpc_shared->gid_changed, left,
										   tpc_wait_event(&wait_event_decision,
														  "TpcAmqpDecision"));
	ConditionVariableCancelSleep();
	return known && entry->state != TPC_GID_PREPARED;
}

/* J3: ask the coordinator of a joined branch. */
static void
send_request(TpcNode *node, const TpcGlobalId *id, bool commit)
{
	TpcMessage	msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_REQUEST;
	msg.id = *id;
	msg.wants_commit = commit;
	tpc_resolve_send(node, &msg, id->coordinator, false, NULL);
}

/*
 * How a joined branch stands.  If the table has no entry of it any more, or
 * has one of another that uses its GID by now, the row tells.
 */
static TpcGidState
joined_state(const TpcGid *entry)
{
	TpcGid		now;
	TpcBranchRow row;

	if (tpc_gid_lookup(entry->key.gid, &now) && now.has_branch &&
		tpc_global_id_equal(&now.branch, &entry->branch))
		return now.state;
	PushActiveSnapshot(GetTransactionSnapshot());
	tpc_branch_probe(&entry->branch, &row);
	PopActiveSnapshot();
	return row.state == TPC_BRANCH_IN_PROGRESS ? TPC_GID_PREPARED :
		row.state == TPC_BRANCH_COMMITTED ? TPC_GID_COMMITTED :
		TPC_GID_ABORTED;
}

/*
 * finish_joined: ask for it and wait until it has been carried out, for
 * prepare_timeout at most.  Raises if it was decided otherwise, or not.
 */
static void
finish_joined(TpcNode *node, const TpcGid *entry, bool commit)
{
	TpcGid		now = *entry;
	char		gtid[TPC_GTID_TEXT_SIZE];
	TimestampTz deadline;
	TimestampTz next = 0;

	entry_gtid(node, entry, gtid);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   tpc_prepare_timeout);
	ConditionVariablePrepareToSleep(&tpc_shared->gid_changed);
	for (;;)
	{
		TimestampTz t = GetCurrentTimestamp();
		long		left;

		now.state = joined_state(entry);
		if (now.state != TPC_GID_PREPARED)
			break;
		left = TimestampDifferenceMilliseconds(t, deadline);
		if (left <= 0)
			break;
		if (t >= next)
		{
			TPC_FAILPOINT("J3.before");
			send_request(node, &entry->branch, commit);
			TPC_FAILPOINT("J3.after");
			next = TimestampTzPlusMilliseconds(t, REQUEST_INTERVAL_MS);
		}
		(void) ConditionVariableTimedSleep(&tpc_shared->gid_changed,
										   Min(left, REQUEST_INTERVAL_MS),
										   tpc_wait_event(&wait_event_decision,
														  "TpcAmqpDecision"));
	}
	ConditionVariableCancelSleep();

	if (now.state == TPC_GID_PREPARED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" has not decided transaction %s within %d ms",
						entry->branch.coordinator, gtid, tpc_prepare_timeout),
				 errdetail("Prepared transaction \"%s\" is a branch of it, and will end as it does.",
						   entry->key.gid),
				 errhint("End the transaction on node \"%s\" first.  If that node is gone for good, tpc_amqp.force() goes on without it, at the risk that the databases end differently.",
						 entry->branch.coordinator)));
	if ((now.state == TPC_GID_COMMITTED) != commit)
		report_finished(node, &now, commit);
}

/*
 * detached_may_finish: whether it can be finished so in a database that is not
 * attached.  Of a coordinator's own, the row says the rest to who attaches it
 * again, provided that all have voted.  A joined branch of one that is
 * detached for good is for a superuser to finish.
 */
static bool
detached_may_finish(const TpcGid *entry, bool commit)
{
	TpcLocalNode local;
	bool		attached;

	PushActiveSnapshot(GetTransactionSnapshot());
	attached = tpc_local_node_read(&local);
	PopActiveSnapshot();
	if (attached)
		return false;
	if (entry->state != TPC_GID_PREPARED)
		return true;			/* the server says what is wrong with it */
	if (entry->has_branch)
		return superuser();
	tpc_txn_make_synchronous();
	return !commit || entry->votes_known;
}

/* What is finished in a database that is detached, others do not hear of. */
static void
warn_detached(const TpcGid *entry, bool commit)
{
	if (entry->state != TPC_GID_PREPARED)
		return;
	if (entry->has_branch)
		ereport(WARNING,
				(errmsg("prepared transaction \"%s\" is finished without node \"%s\", which decides over it",
						entry->key.gid, entry->branch.coordinator),
				 errdetail("This database is not attached. If that node decides otherwise, the databases end differently.")));
	else if (commit && tpc_commit_wait == TPC_COMMIT_WAIT_APPLIED)
		ereport(WARNING,
				(errmsg("this database is not attached, so the nodes that prepared transaction \"%s\" has called are told later",
						entry->key.gid),
				 errdetail("They apply it once the database is attached again.")));
}

/* A branch that runs handlers is not for a session to finish. */
static void
refuse_if_branch(const char *gid, bool commit)
{
	TpcGlobalId id;
	TpcNode    *node = attached_node();
	TpcBranchRow row;
	char		gtid[TPC_GTID_TEXT_SIZE];
	bool		prepared;

	if (node == NULL || !tpc_branch_gid_parse(gid, node->name, &id))
		return;
	/* the name alone says nothing: anybody may use it */
	PushActiveSnapshot(GetTransactionSnapshot());
	tpc_branch_probe(&id, &row);
	prepared = strcmp(row.gid, gid) == 0 && tpc_branch_is_prepared(&row);
	PopActiveSnapshot();
	if (!prepared)
		return;
	tpc_gtid_to_text(&id, gtid);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("prepared transaction \"%s\" is a branch in doubt", gid),
			 errdetail("Node \"%s\" decides over it; normally it does so by itself.",
					   id.coordinator),
			 errhint("If that node is gone for good: SELECT tpc_amqp.force('%s', '%s'), at the risk that the databases end differently.",
					 gtid, commit ? "commit" : "rollback")));
}

/*
 * tpc_prepared_before: a session wants to finish a prepared transaction.
 * Says what is to be done; raises if it cannot be finished so, or not yet.
 */
TpcFinish
tpc_prepared_before(const char *gid, bool commit, bool top_level)
{
	TpcGid		entry;
	TpcNode    *node;
	TpcGlobalId id;
	bool		votes_known = true;

	if (tpc_shared == NULL || !IsUnderPostmaster || RecoveryInProgress())
		return TPC_FINISH_PASS;
	if (!tpc_gid_lookup(gid, &entry) ||
		(entry.has_txn && tpc_branch_gid_is_ours(gid)))
	{
		if (strncmp(gid, TPC_GID_PREFIX, strlen(TPC_GID_PREFIX)) == 0)
			refuse_if_branch(gid, commit);
		return TPC_FINISH_PASS;
	}

	/* The server says who may do it, and where. */
	if (entry.state == TPC_GID_PREPARED && !superuser() &&
		GetUserId() != entry.owner)
		return TPC_FINISH_PASS;
	PreventInTransactionBlock(top_level, commit ? "COMMIT PREPARED" :
							  "ROLLBACK PREPARED");

	node = attached_node();
	if (node == NULL)
	{
		if (detached_may_finish(&entry, commit))
		{
			warn_detached(&entry, commit);
			return TPC_FINISH_PASS;
		}
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("prepared transaction \"%s\" is part of a global transaction, and this node is not running",
						gid),
				 errhint("It starts shortly after the server, if the database is attached; try again then.")));
	}

	switch (entry.state)
	{
		case TPC_GID_PREPARING:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("prepared transaction with identifier \"%s\" is busy",
							gid)));
			break;

		case TPC_GID_COMMITTED:
		case TPC_GID_ABORTED:
			/* the GID can be in use again: look anew */
			if (tpc_branch_gid_exists(gid))
			{
				tpc_gid_drop(gid, true);
				return tpc_prepared_before(gid, commit, top_level);
			}
			report_finished(node, &entry, commit);
			return TPC_FINISH_DONE;

		case TPC_GID_PREPARED:
			break;
	}

	/* Also if it is gone: who has finished it is about to say how. */
	if (entry.has_branch)
	{
		finish_joined(node, &entry, commit);
		return TPC_FINISH_DONE;
	}

	/*
	 * Gone: a worker has finished it just now and is about to say so; or it
	 * was finished past us, which is for the server to say.
	 */
	if (!tpc_branch_gid_exists(gid))
	{
		if (!wait_finished(gid, &entry))
			return TPC_FINISH_PASS;
		report_finished(node, &entry, commit);
		return TPC_FINISH_DONE;
	}

	if (commit)
	{
		memset(&id, 0, sizeof(id));
		strlcpy(id.coordinator, node->name, sizeof(id.coordinator));
		id.gtid = entry.txn;
		TPC_FAILPOINT("Q2.before");
		votes_known = tpc_await_prepared_votes(node, &id) || entry.votes_known;
		TPC_FAILPOINT("Q2.after");
	}
	/* a rollback, too: after a failover it would still be prepared */
	tpc_txn_make_synchronous();
	(void) tpc_area();
	TPC_FAILPOINT("Q3.before");

	/* Meanwhile a worker may have finished it, for a participant or for time. */
	finishing = entry.txn;
	if (tpc_gid_lookup(gid, &entry) &&
		(entry.state == TPC_GID_COMMITTED || entry.state == TPC_GID_ABORTED))
	{
		report_finished(node, &entry, commit);
		return TPC_FINISH_DONE;
	}
	if (!votes_known)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the votes for prepared transaction \"%s\" are not known",
						gid),
				 errhint("Try again in a moment, or use ROLLBACK PREPARED.")));
	return TPC_FINISH_OURS;
}

/*
 * leave_ack: have the acknowledgement of a branch go together with those of
 * whom it has called.  One is enough: of a second one only the delivery is
 * dealt with.  The caller holds txns, and has made the item, if there is one,
 * so that this never raises.
 */
static void
leave_ack(TpcNode *node, TpcTxn *txn, dsa_pointer ack)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->txns, LW_EXCLUSIVE));
	if (!DsaPointerIsValid(ack))
		return;
	if (DsaPointerIsValid(txn->parent_ack))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), ack);

		item->publish = false;
		tpc_outbox_push(node, ack);
	}
	else
		txn->parent_ack = ack;
}

/*
 * tpc_prepared_set_decided: step Q4: the entry of a transaction whose own
 * prepared transaction was finished; the messenger tells the participants.
 * waiter: who waits for the acknowledgements, or NULL.  parent_ack: the item
 * that acknowledges the branch it is as well, which goes when those have come;
 * or InvalidDsaPointer.  Returns the entry, which stays as long as it has a
 * waiter; NULL if there is none, or nothing to wait for any more (the rest is
 * the caller's then).  Never raises.
 */
TpcTxn *
tpc_prepared_set_decided(TpcNode *node, const TpcGtid *gtid, bool commit,
						 Latch *waiter, dsa_pointer parent_ack)
{
	TpcTxn	   *txn;
	bool		found;
	bool		waiting = false;

	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = tpc_txn_find(node->dbid, gtid);
	found = txn != NULL && txn->state == TPC_TXN_PREPARED;
	if (found)
	{
		txn->state = commit ? TPC_TXN_COMMITTED : TPC_TXN_ABORTED;
		txn->decided_at = GetCurrentTimestamp();
		txn->waiter = waiter;
		leave_ack(node, txn, parent_ack);
		tpc_txn_queue(node, txn);
	}
	else if (txn != NULL && txn->state == TPC_TXN_COMMITTED && commit &&
			 !txn->done)
	{
		/* somebody was quicker to notice; there still is what to wait for */
		if (waiter != NULL && txn->waiter == NULL)
		{
			txn->waiter = waiter;
			waiting = true;
		}
		waiting = waiting || DsaPointerIsValid(parent_ack);
		leave_ack(node, txn, parent_ack);
	}
	LWLockRelease(&tpc_shared->txns);
	if (found)
	{
		tpc_wake_messenger(node);
		if (commit)
			tpc_node_count(node, TPC_STAT_COMMITS, 1);
	}
	return found || waiting ? txn : NULL;
}

/*
 * tpc_prepared_tell: a worker has finished a prepared transaction, or found it
 * finished: tell who waits for that, and its own participants, if it has some.
 * branch, txn: what it belonged to, as far as is known, or NULL.  parent_ack:
 * the acknowledgement of the branch; whether it was taken over, to go with
 * those of its own participants.  Never raises.
 */
bool
tpc_prepared_tell(TpcNode *node, const char *gid, const TpcGlobalId *branch,
				  const TpcGtid *txn, bool commit, dsa_pointer parent_ack)
{
	TpcGid		entry;

	if (!tpc_gid_set_finished(gid, branch, txn, commit, &entry))
	{
		/* It is told; but its participants may not all have answered. */
		return DsaPointerIsValid(parent_ack) && tpc_gid_peek(gid, &entry) &&
			entry.has_txn && entry.has_branch &&
			tpc_global_id_equal(&entry.branch, branch) &&
			tpc_prepared_set_decided(node, &entry.txn, commit, NULL,
									 parent_ack) != NULL;
	}
	if (!entry.has_txn)
		return false;
	if (tpc_prepared_set_decided(node, &entry.txn, commit, NULL,
								 parent_ack) != NULL)
		return DsaPointerIsValid(parent_ack);

	/* There was no room for its entry: the lead goes by the table. */
	pg_atomic_add_fetch_u32(&node->resolve_requests, 1);
	tpc_wake_lead(node);
	return false;
}

/*
 * tpc_prepared_after: steps Q4 and Q5: a session has finished its
 * coordinator's transaction, durably; wait as COMMIT does.  Never raises.
 */
void
tpc_prepared_after(const char *gid, bool commit)
{
	TpcNode    *node;
	TpcGid		entry;
	TpcTxn	   *txn = NULL;
	bool		wait = commit && tpc_commit_wait == TPC_COMMIT_WAIT_APPLIED &&
	tpc_apply_timeout > 0;

	HOLD_INTERRUPTS();
	TPC_FAILPOINT("Q4.before");
	node = attached_node();
	if (node != NULL)
	{
		(void) tpc_gid_set_finished(gid, NULL, &finishing, commit, &entry);
		txn = tpc_prepared_set_decided(node, &finishing, commit,
									   wait ? MyLatch : NULL,
									   InvalidDsaPointer);
		if (txn == NULL)
		{
			/* the lead goes by the table */
			pg_atomic_add_fetch_u32(&node->resolve_requests, 1);
			tpc_wake_lead(node);
		}
		TPC_FAILPOINT("Q4.after");
		if (txn != NULL && wait)
			tpc_await_applied(node, txn, tpc_apply_timeout);
	}
	RESUME_INTERRUPTS();
}
