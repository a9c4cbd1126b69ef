/*-------------------------------------------------------------------------
 *
 * node.c
 *	  Being a node: attaching, detaching, and who this database is.
 *
 * That a database is attached is written twice: in table local_node, for its
 * own workers, and as a security label of the database, which is a shared
 * catalog's, so that the launcher finds all attached databases without
 * connecting to each.  Both change in the user's transaction; the workers
 * follow when it commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/twophase.h"
#include "access/xlog.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/seclabel.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "branch.h"
#include "compat.h"
#include "decision.h"
#include "gid.h"
#include "node.h"
#include "option.h"
#include "publish.h"
#include "relation.h"
#include "settings.h"
#include "txn.h"
#include "worker.h"

/* How long stopping workers may take. */
#define STOP_TIMEOUT_MS 10000

/* What this transaction changes; InvalidSubTransactionId: nothing. */
static SubTransactionId attached_in = InvalidSubTransactionId;
static SubTransactionId detached_in = InvalidSubTransactionId;

/* The database whose workers this transaction keeps away; and drops. */
static Oid	paused_database = InvalidOid;
static bool paused_is_dropped = false;

static uint32 wait_event_node = 0;

static void node_unpause(Oid dbid, bool dropped);

/*
 * Anybody who may label the database could have workers started in it, so the
 * label is for superusers; attach() and detach() set it past this hook.
 */
static void
relabel_hook(const ObjectAddress *object, const char *seclabel)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set a \"%s\" label",
						TPC_LABEL_PROVIDER),
				 errhint("Use tpc_amqp.attach() and tpc_amqp.detach().")));
	if (object->classId != DatabaseRelationId)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("only databases have \"%s\" labels",
						TPC_LABEL_PROVIDER)));
}

void
tpc_node_install(void)
{
	register_label_provider(TPC_LABEL_PROVIDER, relabel_hook);
}

static void
database_label(Oid dbid, const char *label)
{
	ObjectAddress object;

	ObjectAddressSet(object, DatabaseRelationId, dbid);
	SetSecurityLabel(&object, TPC_LABEL_PROVIDER, label);
}

/* tpc_node_label_remove: the launcher shall forget this database. */
void
tpc_node_label_remove(void)
{
	database_label(MyDatabaseId, NULL);
}

/* tpc_node_check_name: raises 42602. */
void
tpc_node_check_name(const char *name)
{
	if (!tpc_node_name_valid(name, strlen(name)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid node name \"%s\"", name),
				 errdetail("A node name has 1 to %d of the characters a-z, A-Z, 0-9, \"_\", \"-\" and \".\".",
						   TPC_NODE_MAXLEN)));
}

/*
 * tpc_local_node_read: what this database is attached as; false if it is not,
 * or has no extension.  With an active snapshot.
 *
 * That the extension is installed is looked at first: a schema of that name
 * that somebody made by hand is not to be read by a superuser's worker.
 */
bool
tpc_local_node_read(TpcLocalNode *local)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	memset(local, 0, sizeof(*local));
	if (!OidIsValid(get_extension_oid("tpc_amqp", true)) ||
		!tpc_relation_exists("local_node"))
		return false;

	rel = tpc_relation_open("local_node", AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		char	   *name;

		/* the library may be newer than the extension in this database */
		if (desc->natts < 3 || TupleDescAttr(desc, 0)->atttypid != TEXTOID ||
			TupleDescAttr(desc, 1)->atttypid != NAMEOID ||
			TupleDescAttr(desc, 2)->atttypid != OIDOID)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("extension tpc_amqp in this database does not fit the library"),
					 errhint("Run ALTER EXTENSION tpc_amqp UPDATE.")));

		found = true;
		name = TextDatumGetCString(heap_getattr(tuple, 1, desc, &isnull));
		strlcpy(local->name, name, sizeof(local->name));
		strlcpy(local->server,
				NameStr(*DatumGetName(heap_getattr(tuple, 2, desc, &isnull))),
				sizeof(local->server));
		local->attached_by =
			DatumGetObjectId(heap_getattr(tuple, 3, desc, &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

static void
raise_not_attached(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("database \"%s\" is not attached",
					get_database_name(MyDatabaseId)),
			 errhint("Run tpc_amqp.attach() first.")));
}

/*
 * tpc_node_ready: the node of this database, with an incarnation.
 *
 * Waits, for as long as a COMMIT would for votes, while the workers of an
 * attached database are starting.  Raises if it is not attached.
 */
TpcNode *
tpc_node_ready(void)
{
	TimestampTz deadline = 0;

	tpc_shmem_require();
	if (detached_in != InvalidSubTransactionId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has detached the database")));
	for (;;)
	{
		TpcNode    *node;
		TpcNodeState state = TPC_NODE_FREE;

		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		node = tpc_node_find(MyDatabaseId);
		if (node != NULL)
			state = node->state;
		LWLockRelease(&tpc_shared->control);

		if (state == TPC_NODE_ATTACHED &&
			pg_atomic_read_u64(&node->incarnation) != 0)
			return node;
		if (attached_in != InvalidSubTransactionId)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this transaction has attached the database"),
					 errhint("Commit first.")));

		/* Nobody home: is that how it should be? */
		if (deadline == 0)
		{
			TpcLocalNode local;

			if (!tpc_local_node_read(&local))
				raise_not_attached();
			if (RecoveryInProgress())
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("recovery is in progress"),
						 errhint("The node works on the primary server.")));
			deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   tpc_prepare_timeout);
		}
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the workers of this node are not running"),
					 errhint("See the server log; \"max_worker_processes\" may be too low.")));
		tpc_wake_launcher();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 tpc_wait_event(&wait_event_node, "TpcAmqpNode"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * claim_node: take a node place for attach().  Raises if this database is
 * attached, or another one of this cluster has the name, or no place is left.
 */
static TpcNode *
claim_node(const char *name)
{
	TpcNode    *node;
	TpcNode    *free_node = NULL;
	TimestampTz deadline;

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   STOP_TIMEOUT_MS);
	for (;;)
	{
		bool		name_taken = false;
		bool		stopping;

		free_node = NULL;
		LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
		node = tpc_node_find(MyDatabaseId);
		stopping = node != NULL && node->state == TPC_NODE_STOPPING;
		for (int i = 0; i < tpc_max_nodes; i++)
		{
			TpcNode    *other = &tpc_shared->nodes[i];

			if (other->state == TPC_NODE_FREE && free_node == NULL)
				free_node = other;
			if ((other->state == TPC_NODE_ATTACHED ||
				 other->state == TPC_NODE_ATTACHING) &&
				strcmp(other->name, name) == 0)
				name_taken = true;
		}
		if (node == NULL && !name_taken && free_node != NULL)
		{
			node = free_node;
			node->dbid = MyDatabaseId;
			strlcpy(node->name, name, sizeof(node->name));
			node->state = TPC_NODE_ATTACHING;
			node->paused_by = 0;
			node->link = TPC_LINK_CONNECTING;
			node->last_error[0] = '\0';
			node->last_sqlstate = 0;
			node->attach_waiter = MyLatch;
			node->attach_answered = false;
			node->attach_params = InvalidDsaPointer;
			LWLockRelease(&tpc_shared->control);
			return node;
		}
		LWLockRelease(&tpc_shared->control);

		if (!stopping)
		{
			if (node != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_IN_USE),
						 errmsg("database \"%s\" is already attached as node \"%s\"",
								get_database_name(MyDatabaseId), node->name),
						 errhint("Run tpc_amqp.detach() first.")));
			if (name_taken)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("another database of this cluster is attached as node \"%s\"",
								name)));
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many attached databases"),
					 errdetail("All %d places are taken.", tpc_max_nodes),
					 errhint("Increase \"tpc_amqp.max_nodes\" and restart the server.")));
		}

		/* A detach is being carried out: let it finish. */
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("the detaching of node \"%s\" has not finished yet",
							node->name),
					 errhint("Sessions with open global transactions hold it up.")));
		tpc_wake_launcher();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 tpc_wait_event(&wait_event_node, "TpcAmqpNode"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Raise if branches are in doubt here that belong to another node name. */
static void
check_branches_name(const char *name)
{
	char	   *other = tpc_branch_other_name(name);

	/* A GID that an application chose does not say whose it is. */
	if (other == NULL && tpc_gid_count_prepared() > 0)
	{
		other = tpc_incarnation_last_node();
		if (other != NULL && strcmp(other, name) == 0)
			other = NULL;
	}
	if (other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("this database has branches in doubt of node \"%s\"",
						other),
				 errhint("Attach as \"%s\" until they are finished.", other)));
}

/* Wait for the messenger to say that it has connected, or why not. */
static void
wait_until_attached(TpcNode *node, int timeout_ms)
{
	TimestampTz deadline;

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	for (;;)
	{
		bool		answered;
		bool		running;
		TpcLinkState link;
		int			sqlstate;
		char		last_error[sizeof(node->last_error)];

		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		answered = node->attach_answered;
		running = node->messenger.pid != 0 || node->messenger.requested;
		link = node->link;
		sqlstate = node->last_sqlstate;
		strlcpy(last_error, node->last_error, sizeof(last_error));
		LWLockRelease(&tpc_shared->control);

		if (answered && link == TPC_LINK_UP)
			return;
		if (answered)
			ereport(ERROR,
					(errcode(sqlstate != 0 ? sqlstate :
							 ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("could not attach node \"%s\"", node->name),
					 errdetail("%s", last_error)));
		if (!running || GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("could not attach node \"%s\"", node->name),
					 errdetail("Its messenger process did not answer."),
					 errhint("See the server log.")));
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 tpc_wait_event(&wait_event_node, "TpcAmqpNode"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * tpc_attach(server name, node text) returns void
 *
 * Make this database a node.  Returns once connected to the broker; durable
 * and in force when the transaction commits.
 */
PG_FUNCTION_INFO_V1(tpc_attach);
Datum
tpc_attach(PG_FUNCTION_ARGS)
{
	char	   *server;
	char	   *name;
	Oid			serverid;
	TpcConnInfo info;
	TpcNode    *node;
	dsa_pointer params;
	bool		started;
	Oid			types[3] = {TEXTOID, NAMEOID, OIDOID};
	Datum		values[3];

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.attach()");
	PreventCommandDuringRecovery("tpc_amqp.attach()");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("server and node cannot be null")));
	server = NameStr(*PG_GETARG_NAME(0));
	name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (max_prepared_xacts == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("prepared transactions are disabled"),
				 errhint("Set \"max_prepared_transactions\" to a nonzero value and restart the server.")));
	tpc_node_check_name(name);
	serverid = tpc_option_server_oid(server);
	tpc_option_load(serverid, GetUserId(), &info);

	if (attached_in != InvalidSubTransactionId ||
		detached_in != InvalidSubTransactionId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has attached or detached the database already"),
				 errhint("Commit first.")));

	params = tpc_area_alloc(sizeof(info));
	memcpy(dsa_get_address(tpc_area(), params), &info, sizeof(info));
	PG_TRY();
	{
		node = claim_node(name);
		/* From here on the end of the (sub)transaction takes it back. */
		attached_in = GetCurrentSubTransactionId();
		tpc_xact_pending = true;
		tpc_decision_delete_foreign();
		tpc_relation_delete_foreign("publication");
		tpc_relation_delete_foreign("failed_message");
		tpc_decision_check_name(name);
		check_branches_name(name);
	}
	PG_CATCH();
	{
		dsa_free(tpc_area(), params);
		PG_RE_THROW();
	}
	PG_END_TRY();

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node->attach_params = params;
	started = tpc_worker_start(node, TPC_ROLE_MESSENGER, 0);
	LWLockRelease(&tpc_shared->control);
	if (!started)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots"),
				 errhint("You might need to increase \"max_worker_processes\".")));

	wait_until_attached(node, info.connect_timeout_ms * 2 + 5000);

	values[0] = CStringGetTextDatum(name);
	values[1] = PG_GETARG_DATUM(0);
	values[2] = ObjectIdGetDatum(GetUserId());
	SPI_connect();
	tpc_spi_execute("DELETE FROM tpc_amqp.local_node", 0, NULL, NULL, NULL,
					false, SPI_OK_DELETE);
	tpc_spi_execute("INSERT INTO tpc_amqp.local_node"
					" VALUES ($1, $2, $3, pg_catalog.now())",
					3, types, values, NULL, false, SPI_OK_INSERT);
	SPI_finish();
	database_label(MyDatabaseId, name);

	PG_RETURN_VOID();
}

/*
 * tpc_node_detach_on_commit: in the current transaction, end being a node;
 * the workers leave when it commits.  The caller has dealt with local_node.
 */
void
tpc_node_detach_on_commit(void)
{
	database_label(MyDatabaseId, NULL);
	detached_in = GetCurrentSubTransactionId();
	tpc_xact_pending = true;
}

/*
 * tpc_detach() returns void
 *
 * End being a node.  Unfinished transactions stay as they are, and go on when
 * the database is attached again under the same name.
 */
PG_FUNCTION_INFO_V1(tpc_detach);
Datum
tpc_detach(PG_FUNCTION_ARGS)
{
	TpcLocalNode local;
	int			in_doubt;

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.detach()");
	PreventCommandDuringRecovery("tpc_amqp.detach()");
	if (attached_in != InvalidSubTransactionId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has attached the database"),
				 errhint("Roll it back instead.")));
	if (tpc_txn_has_calls())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has called other nodes"),
				 errhint("Commit first.")));
	if (!tpc_local_node_read(&local))
		raise_not_attached();

	in_doubt = list_length(tpc_branch_prepared(local.name)) +
		tpc_gid_count_prepared();
	if (in_doubt > 0)
		ereport(WARNING,
				(errmsg_plural("%d branch is in doubt",
							   "%d branches are in doubt",
							   in_doubt, in_doubt),
				 errdetail("They keep their locks until this database is attached again as node \"%s\".",
						   local.name)));

	tpc_decision_delete_finished();
	(void) tpc_spi_run("DELETE FROM tpc_amqp.local_node", 0, NULL, NULL, NULL,
					   false, SPI_OK_DELETE);
	tpc_node_detach_on_commit();

	PG_RETURN_VOID();
}

bool
tpc_node_xact_pending(void)
{
	return attached_in != InvalidSubTransactionId ||
		detached_in != InvalidSubTransactionId;
}

/* Take back an attach(), or carry out a detach(): the workers leave. */
static void
node_stop(void)
{
	TpcNode    *node;

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL)
	{
		node->state = TPC_NODE_STOPPING;
		node->attach_waiter = NULL;
		(void) tpc_worker_stop_all(node);
	}
	LWLockRelease(&tpc_shared->control);
	tpc_wake_launcher();
}

/* tpc_node_at_eoxact: after commit or abort.  Never raises. */
void
tpc_node_at_eoxact(bool committed)
{
	if (attached_in != InvalidSubTransactionId)
	{
		if (committed)
		{
			TpcNode    *node;

			LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
			node = tpc_node_find(MyDatabaseId);
			if (node != NULL && node->state == TPC_NODE_ATTACHING)
			{
				node->state = TPC_NODE_ATTACHED;
				node->attach_waiter = NULL;
				tpc_wake_messenger(node);
			}
			LWLockRelease(&tpc_shared->control);
			tpc_wake_launcher();
		}
		else
			node_stop();
	}
	else if (detached_in != InvalidSubTransactionId && committed)
		node_stop();

	if (OidIsValid(paused_database))
		node_unpause(paused_database, committed && paused_is_dropped);

	attached_in = InvalidSubTransactionId;
	detached_in = InvalidSubTransactionId;
	paused_database = InvalidOid;
	paused_is_dropped = false;
}

/* tpc_node_at_subxact: the same for a subtransaction.  Never raises. */
void
tpc_node_at_subxact(bool committed, SubTransactionId subid,
					SubTransactionId parent)
{
	if (attached_in == subid)
	{
		if (!committed)
			node_stop();
		attached_in = committed ? parent : InvalidSubTransactionId;
	}
	if (detached_in == subid)
		detached_in = committed ? parent : InvalidSubTransactionId;
}

/*
 * tpc_node_stop_workers: have the workers of a database leave, and keep them
 * away until the transaction ends.  For commands that need the database to
 * themselves.  Raises if they do not leave in time.
 */
void
tpc_node_stop_workers(Oid dbid, const char *action)
{
	TimestampTz deadline;

	if (tpc_shared == NULL)
		return;
	paused_database = dbid;
	paused_is_dropped = false;
	tpc_xact_pending = true;
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   STOP_TIMEOUT_MS);
	for (;;)
	{
		TpcNode    *node;
		int			running = 0;

		LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
		node = tpc_node_find(dbid);
		if (node != NULL)
		{
			node->paused_by = MyProcPid;
			running = tpc_worker_stop_all(node);
		}
		LWLockRelease(&tpc_shared->control);
		if (running == 0)
			return;
		if (GetCurrentTimestamp() >= deadline)
		{
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("cannot %s: the workers of node \"%s\" do not stop",
							action, node->name)));
		}
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10,
						 tpc_wait_event(&wait_event_node, "TpcAmqpNode"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * tpc_node_paused_is_dropped: with the database its name goes, when the
 * transaction commits.
 */
void
tpc_node_paused_is_dropped(void)
{
	paused_is_dropped = true;
}

/* Let the launcher start them again, or free the place.  Never raises. */
static void
node_unpause(Oid dbid, bool dropped)
{
	TpcNode    *node;

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node = tpc_node_find(dbid);
	if (node != NULL && node->paused_by == MyProcPid)
	{
		node->paused_by = 0;
		if (dropped)
			node->state = TPC_NODE_STOPPING;
	}
	LWLockRelease(&tpc_shared->control);
	tpc_wake_launcher();
}
