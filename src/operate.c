/*-------------------------------------------------------------------------
 *
 * operate.c
 *	  What a person can ask and do: outcome(), resolve(), force(), forget().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "branch.h"
#include "decision.h"
#include "node.h"
#include "operate.h"
#include "shmem.h"
#include "txn.h"

/* tpc_parse_gtid: an argument of an SQL function; raises 22P02. */
void
tpc_parse_gtid(text * arg, TpcGlobalId *id)
{
	char	   *gtid = text_to_cstring(arg);

	if (!tpc_gtid_from_text(gtid, strlen(gtid), id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid global transaction id \"%s\"", gtid),
				 errdetail("It has the form <coordinator node>/<uuid>.")));
}

/* What this node knows of a branch of another node's transaction. */
static const char *
branch_outcome(const TpcGlobalId *id)
{
	TpcBranchRow row;
	bool		job;

	LWLockAcquire(&tpc_shared->jobs, LW_SHARED);
	job = tpc_job_find(MyDatabaseId, id) != NULL;
	LWLockRelease(&tpc_shared->jobs);
	if (job)
		return "pending";
	tpc_branch_probe(id, &row);
	if (row.state == TPC_BRANCH_IN_PROGRESS)
		return "pending";
	return row.state == TPC_BRANCH_COMMITTED ? "committed" : "unknown";
}

/*
 * tpc_outcome(gtid text) returns text
 *
 * 'pending', 'committed', 'aborted' or 'unknown'.  At the coordinator it is
 * exact from the transaction's start until it is forgotten; then, and for a
 * history that is not this one's, 'unknown'.  At a participant: what became
 * of its branch, as far as it can tell.
 */
PG_FUNCTION_INFO_V1(tpc_outcome);
Datum
tpc_outcome(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {
		[TPC_OUTCOME_PENDING] = "pending",
		[TPC_OUTCOME_COMMITTED] = "committed",
		[TPC_OUTCOME_ABORTED] = "aborted",
		[TPC_OUTCOME_UNKNOWN] = "unknown",
	};
	TpcGlobalId id;
	TpcNode    *node;

	tpc_parse_gtid(PG_GETARG_TEXT_PP(0), &id);
	node = tpc_node_ready();
	if (strcmp(id.coordinator, node->name) == 0)
		PG_RETURN_TEXT_P(cstring_to_text(names[tpc_decision_outcome(node, &id.gtid, true)]));
	PG_RETURN_TEXT_P(cstring_to_text(branch_outcome(&id)));
}

/*
 * tpc_resolve(gtid text DEFAULT NULL) returns void
 *
 * Have decisions sent again and branches in doubt inquire without waiting for
 * their interval.  Returns at once.  With a gtid the same: it is only checked.
 */
PG_FUNCTION_INFO_V1(tpc_resolve);
Datum
tpc_resolve(PG_FUNCTION_ARGS)
{
	TpcNode    *node;

	if (!PG_ARGISNULL(0))
	{
		TpcGlobalId id;

		tpc_parse_gtid(PG_GETARG_TEXT_PP(0), &id);
	}
	node = tpc_node_ready();
	pg_atomic_add_fetch_u32(&node->resolve_requests, 1);
	tpc_wake_lead(node);
	PG_RETURN_VOID();
}

/* force() has decided about a branch; the lead carries it out. */
static bool force_pending = false;

/*
 * tpc_force(gtid text, outcome text) returns void
 *
 * Finish a branch in doubt without its coordinator: outcome is 'commit' or
 * 'rollback'.  In force when the transaction commits; the lead resolve worker
 * carries it out right after that.  It is reported to the coordinator when
 * that tells its decision, and listed on both nodes if they differ.
 */
PG_FUNCTION_INFO_V1(tpc_force);
Datum
tpc_force(PG_FUNCTION_ARGS)
{
	TpcGlobalId id;
	TpcNode    *node;
	char	   *outcome = text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool		commit = strcmp(outcome, "commit") == 0;
	TpcBranchRow row;
	char		gtid[TPC_GTID_TEXT_SIZE];
	char		detail[200];

	PreventCommandIfReadOnly("tpc_amqp.force()");
	memset(&id, 0, sizeof(id));
	tpc_parse_gtid(PG_GETARG_TEXT_PP(0), &id);
	if (!commit && strcmp(outcome, "rollback") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid outcome \"%s\"", outcome),
				 errhint("Use \"commit\" or \"rollback\".")));
	node = tpc_node_ready();
	tpc_gtid_to_text(&id, gtid);
	if (strcmp(id.coordinator, node->name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("transaction %s is coordinated by this node", gtid),
				 errhint("If it is prepared, COMMIT PREPARED or ROLLBACK PREPARED decides it.")));
	tpc_branch_probe(&id, &row);
	if (!tpc_branch_is_prepared(&row))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("no branch of transaction %s is in doubt here", gtid),
				 errhint("View tpc_amqp.branches lists those that are.")));
	tpc_heuristic_record(&id, commit);
	snprintf(detail, sizeof(detail),
			 "\"%s\" decided to %s the branch without its coordinator.",
			 GetUserNameFromId(GetSessionUserId(), false), outcome);
	tpc_incident_report(&id, "forced", node->name, detail);
	force_pending = true;
	tpc_xact_pending = true;
	PG_RETURN_VOID();
}

/* tpc_operate_at_eoxact: at the end of the transaction.  Never raises. */
void
tpc_operate_at_eoxact(bool committed)
{
	if (force_pending && committed)
	{
		TpcNode    *node;

		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		node = tpc_node_find(MyDatabaseId);
		if (node != NULL)
		{
			pg_atomic_add_fetch_u32(&node->resolve_requests, 1);
			tpc_wake_lead(node);
		}
		LWLockRelease(&tpc_shared->control);
	}
	force_pending = false;
}

/*
 * tpc_forget(gtid text) returns boolean
 *
 * Drop what this node keeps about a transaction it committed, and incidents
 * of it; whether there was anything.  In force when the transaction commits.
 * For a participant that will never come back: any other that has yet to
 * apply it would be told to roll back, hence the warning.
 */
PG_FUNCTION_INFO_V1(tpc_forget);
Datum
tpc_forget(PG_FUNCTION_ARGS)
{
	TpcGlobalId id;
	TpcNode    *node;
	bool		forgot;

	PreventCommandIfReadOnly("tpc_amqp.forget()");
	tpc_parse_gtid(PG_GETARG_TEXT_PP(0), &id);
	node = tpc_node_ready();
	forgot = tpc_incident_clear(&id, NULL);
	forgot = tpc_heuristic_answered(&id) || forgot;
	if (strcmp(id.coordinator, node->name) == 0)
	{
		TpcTxn	   *txn;
		bool		live;
		TpcDecisionRow row;

		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		txn = tpc_txn_find(node->dbid, &id.gtid);
		live = txn != NULL && (txn->state == TPC_TXN_ACTIVE ||
							   txn->state == TPC_TXN_PREPARING ||
							   txn->state == TPC_TXN_PREPARED);
		LWLockRelease(&tpc_shared->txns);
		if (live)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("transaction is not decided yet")));
		if (tpc_decision_lookup(&id.gtid, &row))
		{
			for (int i = 0; i < row.nparticipants; i++)
			{
				if (!row.acked[i])
					ereport(WARNING,
							(errmsg("node \"%s\" is not known to have applied the transaction",
									row.participants[i]),
							 errdetail("A branch that is still prepared there will be rolled back.")));
			}
			(void) tpc_decision_delete(&id.gtid, 1);
			forgot = true;
		}
	}
	PG_RETURN_BOOL(forgot);
}
