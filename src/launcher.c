/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The process that keeps every attached database's workers running.
 *
 * One per cluster.  It is connected to no database; it finds the attached
 * ones by their security label, a shared catalog's.  It is the only one that
 * frees a node's place, once its workers and transactions are gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_shseclabel.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "gid.h"
#include "node.h"
#include "option.h"
#include "publish.h"
#include "settings.h"
#include "subscription.h"
#include "turn.h"
#include "worker.h"

/* How often to look at the labels without being asked. */
#define SCAN_INTERVAL_MS	10000
/* How long to leave between two starts of one worker. */
#define RESTART_INTERVAL_MS 1000
/* A worker asked for that has not appeared by then is asked for again. */
#define REQUEST_TIMEOUT_MS	10000

typedef struct LabelledDatabase
{
	Oid			dbid;
	char		name[TPC_NODE_SIZE];
} LabelledDatabase;

static uint32 wait_event_launcher = 0;
static bool too_many_logged = false;
static bool out_of_slots = false;	/* in this round */

/* tpc_launcher_register: while the postmaster loads the library. */
void
tpc_launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "tpc_amqp", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "tpc_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "tpc_amqp launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "tpc_amqp launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* The labelled databases, in the current context. */
static List *
scan_labels(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	rel = table_open(SharedSecLabelRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_shseclabel form = (Form_pg_shseclabel) GETSTRUCT(tuple);
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		char	   *provider;
		char	   *label;
		LabelledDatabase *database;
		MemoryContext old;

		if (form->classoid != DatabaseRelationId)
			continue;
		provider = TextDatumGetCString(heap_getattr(tuple,
													Anum_pg_shseclabel_provider,
													desc, &isnull));
		label = TextDatumGetCString(heap_getattr(tuple,
												 Anum_pg_shseclabel_label,
												 desc, &isnull));
		if (strcmp(provider, TPC_LABEL_PROVIDER) != 0 ||
			!tpc_node_name_valid(label, strlen(label)))
			continue;
		old = MemoryContextSwitchTo(caller);
		database = palloc0(sizeof(*database));
		database->dbid = form->objoid;
		strlcpy(database->name, label, sizeof(database->name));
		result = lappend(result, database);
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return result;
}

/* Give the newly labelled a place, and stop those no longer labelled. */
static void
follow_labels(void)
{
	List	   *databases;
	ListCell   *lc;
	bool		no_place = false;
	bool	   *was_attached = palloc0(sizeof(bool) * tpc_max_nodes);

	/* One that is attached while we look need not be in what we see. */
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	for (int i = 0; i < tpc_max_nodes; i++)
		was_attached[i] = tpc_shared->nodes[i].state == TPC_NODE_ATTACHED;
	LWLockRelease(&tpc_shared->control);
	databases = scan_labels();

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	foreach(lc, databases)
	{
		LabelledDatabase *database = lfirst(lc);
		TpcNode    *node = tpc_node_find(database->dbid);

		if (node != NULL)
			continue;
		for (int i = 0; i < tpc_max_nodes && node == NULL; i++)
		{
			if (tpc_shared->nodes[i].state == TPC_NODE_FREE)
				node = &tpc_shared->nodes[i];
		}
		if (node == NULL)
		{
			no_place = true;
			break;
		}
		node->dbid = database->dbid;
		strlcpy(node->name, database->name, sizeof(node->name));
		node->paused_by = 0;
		node->link = TPC_LINK_CONNECTING;
		node->last_error[0] = '\0';
		node->last_sqlstate = 0;
		node->attach_waiter = NULL;
		node->attach_params = InvalidDsaPointer;
		node->state = TPC_NODE_ATTACHED;
	}
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		TpcNode    *node = &tpc_shared->nodes[i];
		bool		labelled = false;

		if (node->state != TPC_NODE_ATTACHED || !was_attached[i])
			continue;
		foreach(lc, databases)
		{
			LabelledDatabase *database = lfirst(lc);

			labelled = labelled || database->dbid == node->dbid;
		}
		if (!labelled)
			node->state = TPC_NODE_STOPPING;
	}
	LWLockRelease(&tpc_shared->control);

	if (no_place && !too_many_logged)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("more databases are attached than tpc_amqp has places for"),
				 errhint("Increase \"tpc_amqp.max_nodes\" and restart the server.")));
		too_many_logged = true;
	}
	list_free_deep(databases);
	pfree(was_attached);
}

/*
 * Start a worker unless it runs.  False if that was impossible, or has to wait
 * for a moment: so that others do not take the slot which that one needs.
 */
static bool
want_worker(TpcNode *node, TpcRole role, int number, TimestampTz now)
{
	TpcWorker  *slot = tpc_worker_slot(node, role, number);

	if (slot->pid != 0)
		return true;
	if (slot->requested &&
		!TimestampDifferenceExceeds(slot->started, now, REQUEST_TIMEOUT_MS))
		return true;
	if (slot->started != 0 &&
		!TimestampDifferenceExceeds(slot->started, now, RESTART_INTERVAL_MS))
		return false;
	if (tpc_worker_start(node, role, number))
		return true;
	node->no_slots = true;
	out_of_slots = true;
	return false;
}

static void
assign_kind(TpcNode *node, int number, int kind)
{
	if (node->prepare_kind[number] == kind)
		return;
	node->prepare_kind[number] = (int8) kind;
	if (node->prepare[number].latch != NULL)
		SetLatch(node->prepare[number].latch);
}

/*
 * Say which prepare workers are for jobs of which kind; returns how many there
 * are to be.  One that finds itself assigned to another kind, or to none, leaves
 * when it has finished its job.  If there are not places for all, the last
 * kinds have fewer, but one each.
 */
static int
assign_kinds(TpcNode *node)
{
	int			n = 0;
	int			kinds_left = 0;

	for (int kind = 0; kind < TPC_MAX_KINDS; kind++)
	{
		if (node->kinds[kind].name[0] != '\0')
			kinds_left++;
	}
	for (int kind = TPC_KIND_GENERAL; kind < TPC_MAX_KINDS; kind++)
	{
		int			wanted = tpc_prepare_workers;

		if (kind != TPC_KIND_GENERAL)
		{
			if (node->kinds[kind].name[0] == '\0')
				continue;
			wanted = node->kinds[kind].workers;
			kinds_left--;
		}
		for (int i = 0; i < wanted && n < TPC_MAX_PREPARE_WORKERS - kinds_left;
			 i++)
		{
			assign_kind(node, n, kind);
			n++;
		}
	}
	for (int i = n; i < TPC_MAX_PREPARE_WORKERS; i++)
		assign_kind(node, i, TPC_KIND_NONE);
	return n;
}

static bool
is_running(const TpcNode *node)
{
	return node->state == TPC_NODE_ATTACHED && node->paused_by == 0;
}

/*
 * An attached node's workers are brought to the configured number in passes
 * over all nodes, for the slots are the server's: none is taken by what comes
 * later as long as something lacks that comes earlier, be it of another node.
 * Each returns whether all that it has to see to run, or have been asked for;
 * if not start, it only counts them.
 */
typedef bool (*Pass) (TpcNode *node, TimestampTz now, bool start);

/* What transactions need, and publishing. */
static bool
keep_transactions(TpcNode *node, TimestampTz now, bool start)
{
	bool		ok = start;
	int			nprepare;

	node->no_slots = false;
	ok = ok && want_worker(node, TPC_ROLE_MESSENGER, 0, now);
	for (int i = 0; i < TPC_MAX_RESOLVE_WORKERS; i++)
	{
		if (i < tpc_resolve_workers)
			ok = ok && want_worker(node, TPC_ROLE_RESOLVE, i, now);
		else if (node->resolve[i].pid != 0)
			kill(node->resolve[i].pid, SIGTERM);
	}
	nprepare = assign_kinds(node);
	node->nworkers = 1 + tpc_resolve_workers + nprepare;
	if (pg_atomic_read_u32(&node->wants_relay) != 0)
	{
		ok = ok && want_worker(node, TPC_ROLE_RELAY, 0, now);
		node->nworkers++;
	}
	for (int i = 0; i < nprepare; i++)
		ok = ok && want_worker(node, TPC_ROLE_PREPARE, i, now);
	return ok;
}

/* Shared consume workers: who is one too many leaves, between two messages. */
static bool
keep_consuming(TpcNode *node, TimestampTz now, bool start)
{
	bool		ok = start;

	if (pg_atomic_read_u32(&node->wants_consumers) == 0)
		return start;
	for (int i = 0; i < tpc_consume_workers; i++)
		ok = ok && want_worker(node, TPC_ROLE_CONSUME, i, now);
	node->nworkers += tpc_consume_workers;
	return ok;
}

/* Own ones of subscriptions. */
static bool
keep_own(TpcNode *node, TimestampTz now, bool start)
{
	bool		ok = start;

	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		if (node->consuming[i].assigned == 0 || node->consuming[i].lent)
			continue;
		ok = ok && want_worker(node, TPC_ROLE_CONSUME, i, now);
		node->nworkers++;
	}
	return ok;
}

/* Those that are lent: they are not among those that a node needs. */
static bool
keep_lent(TpcNode *node, TimestampTz now, bool start)
{
	bool		no_slots = node->no_slots;
	bool		ok = start;

	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		if (node->consuming[i].assigned == 0 || !node->consuming[i].lent)
			continue;
		ok = ok && want_worker(node, TPC_ROLE_CONSUME, i, now);
		node->lacks_lent = node->lacks_lent || (!ok && out_of_slots);
	}
	node->no_slots = no_slots;
	return ok;
}

/* Bring the workers of all attached nodes to the configured number. */
static void
keep_running(TimestampTz now)
{
	static const Pass passes[] = {
		keep_transactions, keep_consuming, keep_own, keep_lent
	};
	bool		ok = true;

	out_of_slots = false;
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		if (is_running(&tpc_shared->nodes[i]))
			tpc_turn_assign(&tpc_shared->nodes[i]);
	}
	for (int pass = 0; pass < (int) lengthof(passes); pass++)
	{
		bool		start = ok;

		for (int i = 0; i < tpc_max_nodes; i++)
		{
			if (is_running(&tpc_shared->nodes[i]))
				ok = passes[pass] (&tpc_shared->nodes[i], now, start) && ok;
		}
	}
}

/* Say, and not while holding a lock, that workers are missing. */
static void
report_missing_workers(void)
{
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		TpcNode    *node = &tpc_shared->nodes[i];

		if (node->no_slots && !node->no_slots_logged)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("out of background worker slots for node \"%s\"",
							node->name),
					 errdetail("It needs %d processes.", node->nworkers),
					 errhint("You might need to increase \"max_worker_processes\".")));
		node->no_slots_logged = node->no_slots;
		if (is_running(node) && node->lacks_lent &&
			tpc_worker_may_log(&node->lacks_lent_logged))
			ereport(LOG,
					(errmsg("subscriptions of node \"%s\" wait for workers",
							node->name),
					 errdetail("Handlers of others keep all shared workers busy, and there is no worker slot, or place, left to lend them one."),
					 errhint("You might need to increase \"max_worker_processes\", or to subscribe what takes long with workers of its own.")));
	}
}

/*
 * Free what a node's transactions and queues hold, when its workers are gone.
 * False if sessions still use some of it.  The caller holds control.
 */
static bool
clear_node(TpcNode *node)
{
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;
	TpcJob	   *job;
	bool		busy = false;
	dsa_pointer item;

	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		if (txn->key.dbid != node->dbid)
			continue;
		if (txn->state == TPC_TXN_ACTIVE || txn->state == TPC_TXN_PREPARING ||
			txn->waiter != NULL)
		{
			/* A session is still in it, and sees that the node stops. */
			if (txn->waiter != NULL)
				SetLatch(txn->waiter);
			busy = true;
			continue;
		}
		tpc_txn_free(txn);
	}
	LWLockRelease(&tpc_shared->txns);

	/* First: as long as this is said, what is not in the table is not ours. */
	Assert(LWLockHeldByMeInMode(&tpc_shared->control, LW_EXCLUSIVE));
	node->gids_known = false;
	tpc_gid_clear(node->dbid);

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_jobs);
	while ((job = hash_seq_search(&seq)) != NULL)
	{
		if (job->key.dbid != node->dbid)
			continue;
		if (DsaPointerIsValid(job->body))
			dsa_free(tpc_area(), job->body);
		hash_search(tpc_jobs, &job->key, HASH_REMOVE, NULL);
	}
	dlist_init(&node->job_queue);
	for (int i = 0; i < TPC_MAX_KINDS; i++)
		dlist_init(&node->kind_queue[i]);
	LWLockRelease(&tpc_shared->jobs);

	item = tpc_outbox_take(node);
	while (DsaPointerIsValid(item))
	{
		dsa_pointer next = ((TpcItem *) dsa_get_address(tpc_area(), item))->next;

		dsa_free(tpc_area(), item);
		item = next;
	}
	while (DsaPointerIsValid(item = tpc_queue_pop(node, &node->decisions)))
		dsa_free(tpc_area(), item);
	while (DsaPointerIsValid(item = tpc_queue_pop(node, &node->chores)))
		dsa_free(tpc_area(), item);
	tpc_publications_free(node);
	tpc_subscription_clear(node);
	return !busy;
}

/* A node that stops: end its workers, then free its place. */
static void
wind_down(TpcNode *node)
{
	if (tpc_worker_stop_all(node) > 0)
		return;
	if (!clear_node(node))
		return;
	if (DsaPointerIsValid(node->attach_params))
	{
		/* it holds the password */
		memset(dsa_get_address(tpc_area(), node->attach_params), 0,
			   sizeof(TpcConnInfo));
		dsa_free(tpc_area(), node->attach_params);
	}
	node->attach_params = InvalidDsaPointer;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	if (DsaPointerIsValid(node->finished))
		dsa_free(tpc_area(), node->finished);
	node->finished = InvalidDsaPointer;
	node->nfinished = 0;
	node->finished_size = 0;
	LWLockRelease(&tpc_shared->txns);
	memset(node->kinds, 0, sizeof(node->kinds));
	node->dbid = InvalidOid;
	node->name[0] = '\0';
	node->broker[0] = '\0';
	node->blocked = false;
	node->connected_since = 0;
	node->no_slots = false;
	node->no_slots_logged = false;
	node->lacks_lent = false;
	node->lacks_lent_logged = 0;
	tpc_node_init_workers(node);
	memset(&node->floor, 0, sizeof(node->floor));
	pg_atomic_write_u64(&node->incarnation, 0);
	pg_atomic_write_u64(&node->sequence, 0);
	for (int i = 0; i < TPC_STAT_NCOUNTERS; i++)
		pg_atomic_write_u64(&node->stat[i], 0);
	node->state = TPC_NODE_FREE;
}

/* Look after all nodes; returns whether one of them is in transition. */
static bool
look_after_nodes(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		moving = false;

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		TpcNode    *node = &tpc_shared->nodes[i];

		switch (node->state)
		{
			case TPC_NODE_FREE:
			case TPC_NODE_ATTACHING:
				break;
			case TPC_NODE_ATTACHED:
				if (node->paused_by != 0 &&
					BackendPidGetProc(node->paused_by) == NULL)
					node->paused_by = 0;
				moving = moving || node->paused_by != 0;
				break;
			case TPC_NODE_STOPPING:
				wind_down(node);
				moving = moving || node->state != TPC_NODE_FREE;
				break;
		}
	}
	keep_running(now);
	LWLockRelease(&tpc_shared->control);
	report_missing_workers();
	return moving;
}

void
tpc_launcher_main(Datum arg)
{
	TimestampTz scanned_at = 0;

	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, SIG_IGN);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	(void) tpc_area();

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	tpc_shared->launcher = MyLatch;
	LWLockRelease(&tpc_shared->control);

	for (;;)
	{
		bool		moving;

		ResetLatch(MyLatch);
		if (ProcDiePending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (TimestampDifferenceExceeds(scanned_at, GetCurrentTimestamp(),
									   SCAN_INTERVAL_MS))
		{
			follow_labels();
			scanned_at = GetCurrentTimestamp();
		}
		moving = look_after_nodes();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 moving ? 20 : RESTART_INTERVAL_MS,
						 tpc_wait_event(&wait_event_launcher,
										"TpcAmqpLauncher"));
	}
}
