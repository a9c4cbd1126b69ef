/*-------------------------------------------------------------------------
 *
 * join.c
 *	  A branch that the application prepares itself.
 *
 * The application has a session here and one at the coordinator, which has
 * enlisted this node.  join() makes the transaction a branch; what its
 * PREPARE TRANSACTION makes durable includes a row of table branch, as for a
 * branch that runs handlers.  The vote follows from XACT_EVENT_PREPARE, where
 * nothing may be raised or allocated: so both possible votes are made when it
 * joins, and one of them is sent.
 *
 * No prepare has come from the coordinator, so its broker user is not known:
 * the row has "" for the sender, and takes its decision from whoever speaks
 * for the node it joined.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "branch.h"
#include "failpoint.h"
#include "join.h"
#include "message.h"
#include "node.h"
#include "operate.h"
#include "resolve_worker.h"
#include "shmem.h"
#include "txn.h"

/* The branch this transaction is.  Owned by this file; reset at its end. */
static struct
{
	bool		pending;		/* it has joined */
	TpcNode    *node;
	TpcGlobalId id;
	SubTransactionId subid;		/* where it joined */
	dsa_pointer yes;			/* votes, made beforehand */
	dsa_pointer no;
}			joined;

static void
joined_reset(void)
{
	memset(&joined, 0, sizeof(joined));
}

/* tpc_join_pending: whether the current transaction is such a branch. */
bool
tpc_join_pending(void)
{
	return joined.pending;
}

static dsa_pointer
make_vote(const TpcGlobalId *id, TpcVote vote, char *reason)
{
	TpcMessage	msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_VOTE;
	msg.id = *id;
	msg.vote = vote;
	if (reason != NULL)
	{
		strcpy(msg.error.sqlstate, "40000");
		msg.error.message = reason;
	}
	return tpc_resolve_make(&msg, id->coordinator, false, NULL, false);
}

/*
 * send_vote: hand one of the votes to the messenger, if it still is that of
 * this database, and drop the other.  Never raises.
 */
static void
send_vote(bool yes)
{
	dsa_pointer vote = yes ? joined.yes : joined.no;
	dsa_pointer other = yes ? joined.no : joined.yes;
	bool		attached;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	attached = joined.node->state == TPC_NODE_ATTACHED &&
		joined.node->dbid == MyDatabaseId;
	if (attached)
		tpc_outbox_push(joined.node, vote);
	LWLockRelease(&tpc_shared->control);
	if (!attached)
		dsa_free(tpc_area(), vote);
	dsa_free(tpc_area(), other);
}

/*
 * tpc_join(gtid text) returns void
 *
 * Make this transaction a branch of a global one that another node
 * coordinates and has enlisted this node for.  It then ends by PREPARE
 * TRANSACTION, which votes yes once it is durable, or rolls back, which votes
 * no.  Nothing is durable when this returns.
 */
PG_FUNCTION_INFO_V1(tpc_join);
Datum
tpc_join(PG_FUNCTION_ARGS)
{
	TpcGlobalId id;
	TpcNode    *node;
	char		gtid[TPC_GTID_TEXT_SIZE];

	PreventCommandIfReadOnly("tpc_amqp.join()");
	PreventCommandDuringRecovery("tpc_amqp.join()");
	memset(&id, 0, sizeof(id));
	tpc_parse_gtid(PG_GETARG_TEXT_PP(0), &id);
	node = tpc_node_ready();
	tpc_gtid_to_text(&id, gtid);

	if (strcmp(id.coordinator, node->name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("node \"%s\" cannot join its own transaction",
						node->name)));
	if (joined.pending)
	{
		if (tpc_global_id_equal(&joined.id, &id))
			PG_RETURN_VOID();
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has joined another one already")));
	}
	if (tpc_branch_below_floor(&id, ""))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction %s is closed", gtid)));

	(void) tpc_area();
	joined_reset();
	joined.yes = make_vote(&id, TPC_VOTE_YES, NULL);
	PG_TRY();
	{
		joined.no = make_vote(&id, TPC_VOTE_NO,
							  "the application rolled its branch back");
	}
	PG_CATCH();
	{
		dsa_free(tpc_area(), joined.yes);
		joined_reset();
		PG_RE_THROW();
	}
	PG_END_TRY();
	joined.node = node;
	joined.id = id;
	joined.subid = GetCurrentSubTransactionId();
	joined.pending = true;
	tpc_xact_pending = true;
	PG_RETURN_VOID();
}

/* A branch on its own cannot commit: that would be against the promise. */
void
tpc_join_at_pre_commit(void)
{
	if (joined.pending)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a transaction that has joined a global one cannot be committed alone"),
				 errhint("Use PREPARE TRANSACTION.")));
}

/*
 * tpc_join_at_pre_prepare: step J1: write the row that rides in the prepared
 * transaction.  What it is a branch of is returned in *id.
 */
void
tpc_join_at_pre_prepare(const char *gid, TpcGlobalId *id)
{
	char		gtid[TPC_GTID_TEXT_SIZE];
	TpcBranchRow row;

	if (joined.node->state != TPC_NODE_ATTACHED ||
		joined.node->dbid != MyDatabaseId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database has been detached")));

	TPC_FAILPOINT("J1.before");
	tpc_txn_make_synchronous();
	/* Inserting would wait until the other one is decided. */
	tpc_gtid_to_text(&joined.id, gtid);
	tpc_branch_probe(&joined.id, &row);
	if (row.state != TPC_BRANCH_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg(row.state == TPC_BRANCH_COMMITTED ?
						"transaction %s has taken effect here already" :
						"transaction %s has a branch here already", gtid),
				 row.state == TPC_BRANCH_COMMITTED ? 0 :
				 errdetail("It is that of prepared transaction \"%s\".",
						   row.gid)));
	/* Insert first, then look at the floor: see tpc_branch_below_floor. */
	tpc_branch_insert(&joined.id, gid, "");
	if (tpc_branch_below_floor(&joined.id, ""))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction %s is closed", gtid)));
	*id = joined.id;
	TPC_FAILPOINT("J1.after");
}

/* tpc_join_at_prepare: step J2: it is durable, vote yes.  Never raises. */
void
tpc_join_at_prepare(void)
{
	if (!joined.pending)
		return;
	TPC_FAILPOINT("J2.before");
	send_vote(true);
	joined_reset();
	TPC_FAILPOINT("J2.after");
}

/* It joined only in a savepoint that rolled back, and has said so. */
void
tpc_join_at_commit(void)
{
	joined_reset();
}

/* tpc_join_at_abort: vote no.  Never raises. */
void
tpc_join_at_abort(void)
{
	if (joined.pending)
		send_vote(false);
	joined_reset();
}

/* Its savepoint has ended; if by rolling back, the branch has.  Never raises. */
void
tpc_join_at_subxact(bool committed, SubTransactionId subid,
					SubTransactionId parent)
{
	if (!joined.pending || joined.subid != subid)
		return;
	if (committed)
		joined.subid = parent;
	else
	{
		send_vote(false);
		joined_reset();
	}
}
