/*-------------------------------------------------------------------------
 *
 * utility.c
 *	  Commands that concern us.
 *
 * PREPARE TRANSACTION, COMMIT PREPARED and ROLLBACK PREPARED may be part of
 * global transactions (prepared.c).
 *
 * DROP DATABASE and its like demand that nobody is connected, and DROP
 * EXTENSION needs locks on tables the workers use; so the workers are asked
 * to leave first, and come back if the command fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/snapmgr.h"

#include "branch.h"
#include "compat.h"
#include "decision.h"
#include "node.h"
#include "prepared.h"
#include "publish.h"
#include "shmem.h"
#include "txn.h"
#include "utility.h"

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;
static uint32 wait_event_acks = 0;

/*
 * affected_database: the database the command needs to itself, or NULL.
 */
static const char *
affected_database(Node *parsetree, const char **action)
{
	switch (nodeTag(parsetree))
	{
		case T_DropdbStmt:
			*action = "drop the database";
			return ((DropdbStmt *) parsetree)->dbname;

		case T_RenameStmt:
			if (((RenameStmt *) parsetree)->renameType != OBJECT_DATABASE)
				return NULL;
			*action = "rename the database";
			return ((RenameStmt *) parsetree)->subname;

		case T_AlterDatabaseStmt:
			{
				ListCell   *lc;

				foreach(lc, ((AlterDatabaseStmt *) parsetree)->options)
				{
					DefElem    *option = lfirst_node(DefElem, lc);

					if (strcmp(option->defname, "tablespace") == 0)
					{
						*action = "move the database";
						return ((AlterDatabaseStmt *) parsetree)->dbname;
					}
				}
				return NULL;
			}

		case T_CreatedbStmt:
			{
				ListCell   *lc;

				foreach(lc, ((CreatedbStmt *) parsetree)->options)
				{
					DefElem    *option = lfirst_node(DefElem, lc);

					if (strcmp(option->defname, "template") == 0 &&
						option->arg != NULL)
					{
						*action = "copy the database";
						return defGetString(option);
					}
				}
				return NULL;
			}

		default:
			return NULL;
	}
}

/* Whether the command drops our extension in this database. */
static bool
drops_extension(Node *parsetree)
{
	DropStmt   *stmt = (DropStmt *) parsetree;
	ListCell   *lc;

	if (!IsA(parsetree, DropStmt) || stmt->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "tpc_amqp") == 0)
			return OidIsValid(get_extension_oid("tpc_amqp", true));
	}
	return false;
}

/*
 * Acknowledgements of what has just been committed may still be on their way
 * to the list of finished transactions.  How many are missing after a moment.
 */
static int
wait_until_acknowledged(void)
{
	int			unacked = 0;

	for (int i = 0; i < 60; i++)
	{
		PushActiveSnapshot(GetLatestSnapshot());
		unacked = tpc_decision_count_open();
		PopActiveSnapshot();
		if (unacked == 0)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 tpc_wait_event(&wait_event_acks, "TpcAmqpDrop"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return unacked;
}

/* The same for messages of publish() that the broker has not confirmed. */
static int64
wait_until_published(void)
{
	int64		unsent = 0;

	for (int i = 0; i < 60; i++)
	{
		PushActiveSnapshot(GetLatestSnapshot());
		unsent = tpc_publication_count();
		PopActiveSnapshot();
		if (unsent == 0)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 tpc_wait_event(&wait_event_acks, "TpcAmqpDrop"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return unsent;
}

/*
 * before_drop_extension: refuse while branches are in doubt, for nothing
 * could finish them then; else end being a node.
 */
static void
before_drop_extension(void)
{
	TpcLocalNode local;
	int			in_doubt;
	int			unacked;
	int64		unsent;

	/*
	 * What prepared branches hold locks on, the command would wait for; also
	 * those of a node that has been detached.
	 */
	PushActiveSnapshot(GetTransactionSnapshot());
	in_doubt = list_length(tpc_branch_prepared(NULL)) +
		tpc_gid_count_prepared();
	PopActiveSnapshot();
	if (in_doubt > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg_plural("cannot drop extension tpc_amqp: %d branch is in doubt",
							   "cannot drop extension tpc_amqp: %d branches are in doubt",
							   in_doubt, in_doubt),
				 errhint("View tpc_amqp.branches lists them while the database is attached, pg_prepared_xacts always.")));
	if (!tpc_local_node_read(&local))
		return;
	unacked = wait_until_acknowledged();
	if (unacked > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg_plural("cannot drop extension tpc_amqp: %d committed transaction is not acknowledged by all nodes",
							   "cannot drop extension tpc_amqp: %d committed transactions are not acknowledged by all nodes",
							   unacked, unacked),
				 errhint("View tpc_amqp.transactions lists them; tpc_amqp.forget() drops one.")));
	unsent = wait_until_published();
	if (unsent > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg_plural("cannot drop extension tpc_amqp: " INT64_FORMAT " message has not been published yet",
							   "cannot drop extension tpc_amqp: " INT64_FORMAT " messages have not been published yet",
							   (unsigned long) unsent, unsent),
				 errhint("View tpc_amqp.publications lists them; after tpc_amqp.detach() they are dropped with the extension.")));
	tpc_node_detach_on_commit();
	tpc_node_stop_workers(MyDatabaseId, "drop extension tpc_amqp");
}

/*
 * prepared_statement: PREPARE TRANSACTION, COMMIT PREPARED and ROLLBACK
 * PREPARED; others' pass through.
 */
static TpcFinish
prepared_statement(TransactionStmt *stmt, ProcessUtilityContext context)
{
	switch (stmt->kind)
	{
		case TRANS_STMT_PREPARE:
			/* even if nothing is pending: a deferred trigger may call */
			tpc_txn_set_gid(stmt->gid);
			return TPC_FINISH_PASS;

		case TRANS_STMT_COMMIT_PREPARED:
		case TRANS_STMT_ROLLBACK_PREPARED:
			return tpc_prepared_before(stmt->gid,
									   stmt->kind == TRANS_STMT_COMMIT_PREPARED,
									   context == PROCESS_UTILITY_TOPLEVEL);

		default:
			return TPC_FINISH_PASS;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *parsetree = pstmt->utilityStmt;
	const char *action = NULL;
	const char *dbname = affected_database(parsetree, &action);
	TpcFinish	finish = TPC_FINISH_PASS;

	if (IsA(parsetree, TransactionStmt))
	{
		finish = prepared_statement((TransactionStmt *) parsetree, context);
		if (finish == TPC_FINISH_DONE)
			return;
	}

	/* Workers stopped here come back when the transaction ends. */
	if (dbname != NULL)
	{
		Oid			dbid = get_database_oid(dbname, true);

		/* Who may not do it shall not get to stop the workers either. */
		if (OidIsValid(dbid) &&
			tpc_database_ownercheck(dbid, GetUserId()))
			tpc_node_stop_workers(dbid, action);
	}
	else if (drops_extension(parsetree) && superuser())
		before_drop_extension();

	if (prev_process_utility)
		prev_process_utility(pstmt, queryString, readOnlyTree, context,
							 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	if (IsA(parsetree, TransactionStmt) &&
		((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED)
		tpc_publish_after_prepared(NULL);
	if (finish == TPC_FINISH_OURS)
	{
		TransactionStmt *stmt = (TransactionStmt *) parsetree;

		tpc_prepared_after(stmt->gid,
						   stmt->kind == TRANS_STMT_COMMIT_PREPARED);
	}
	if (IsA(parsetree, DropdbStmt))
		tpc_node_paused_is_dropped();
}

/*
 * The extension can also go with its schema or its owner's objects.  Nothing
 * is refused then, the locks on its tables have been waited for; but this
 * database ends being a node all the same.
 */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);

	if (access == OAT_DROP && classId == ExtensionRelationId && subId == 0 &&
		!tpc_node_xact_pending())
	{
		char	   *name = get_extension_name(objectId);

		if (name != NULL && strcmp(name, "tpc_amqp") == 0)
			tpc_node_detach_on_commit();
	}
}

void
tpc_utility_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}
