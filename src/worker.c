/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  What the background processes have in common.
 *
 * A worker belongs to a place in its node's part of shared memory, which says
 * whether it runs.  The launcher starts what is missing; a worker that finds
 * its place taken, or its node stopping, leaves.  Workers are never restarted
 * by the postmaster: the launcher knows whether they are still wanted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "settings.h"
#include "txn.h"
#include "worker.h"

#define LOG_INTERVAL_MS 60000

static const char *const role_names[] = {
	[TPC_ROLE_MESSENGER] = "messenger",
	[TPC_ROLE_PREPARE] = "prepare worker",
	[TPC_ROLE_RESOLVE] = "resolve worker",
	[TPC_ROLE_RELAY] = "relay",
	[TPC_ROLE_CONSUME] = "consume worker",
};

static const char *const role_functions[] = {
	[TPC_ROLE_MESSENGER] = "tpc_messenger_main",
	[TPC_ROLE_PREPARE] = "tpc_prepare_worker_main",
	[TPC_ROLE_RESOLVE] = "tpc_resolve_worker_main",
	[TPC_ROLE_RELAY] = "tpc_relay_main",
	[TPC_ROLE_CONSUME] = "tpc_consume_worker_main",
};

static const int role_places[TPC_ROLES] = {
	[TPC_ROLE_MESSENGER] = 1,
	[TPC_ROLE_PREPARE] = TPC_MAX_PREPARE_WORKERS,
	[TPC_ROLE_RESOLVE] = TPC_MAX_RESOLVE_WORKERS,
	[TPC_ROLE_RELAY] = 1,
	[TPC_ROLE_CONSUME] = TPC_MAX_CONSUME_WORKERS,
};

/* bgw_main_arg: node, role and number in one int. */
#define ARG_MAKE(node, role, number) \
	(((node) << 16) | ((int) (role) << 12) | (number))
#define ARG_NODE(arg)	((arg) >> 16)
#define ARG_ROLE(arg)	((TpcRole) (((arg) >> 12) & 0xF))
#define ARG_NUMBER(arg) ((arg) & 0xFFF)

TpcWorker *
tpc_worker_slot(TpcNode *node, TpcRole role, int number)
{
	switch (role)
	{
		case TPC_ROLE_MESSENGER:
			return &node->messenger;
		case TPC_ROLE_PREPARE:
			return &node->prepare[number];
		case TPC_ROLE_RESOLVE:
			return &node->resolve[number];
		case TPC_ROLE_RELAY:
			return &node->relay;
		case TPC_ROLE_CONSUME:
			return &node->consume[number];
	}
	return NULL;
}

/* There is nothing to cancel, but for a wait that lasts too long. */
static void
handle_sigint(SIGNAL_ARGS)
{
	if (get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
}

static void
worker_detach(int code, Datum arg)
{
	TpcWorker  *slot = (TpcWorker *) DatumGetPointer(arg);
	TpcNode    *node = NULL;

	/* an error outside of a transaction may have left some held */
	LWLockReleaseAll();
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		if ((char *) slot >= (char *) &tpc_shared->nodes[i] &&
			(char *) slot < (char *) &tpc_shared->nodes[i + 1])
			node = &tpc_shared->nodes[i];
	}
	if (slot->pid == MyProcPid)
	{
		if (slot == &node->messenger)
		{
			/* nobody holds the connection any more */
			if (node->link == TPC_LINK_UP)
				node->link = TPC_LINK_CONNECTING;
			node->connected_since = 0;
			node->blocked = false;
		}
		pg_atomic_write_u32(&slot->idle, 0);
		if (slot >= node->consume &&
			slot < node->consume + TPC_MAX_CONSUME_WORKERS)
			pg_atomic_write_u64(&slot->retrying, 0);
		slot->pid = 0;
		slot->latch = NULL;
		slot->requested = false;
	}
	LWLockRelease(&tpc_shared->control);

	/* A wake-up that was for this process is not to be lost. */
	for (int kind = TPC_KIND_GENERAL; kind < TPC_MAX_KINDS; kind++)
		tpc_wake_prepare_worker(node, kind);
	tpc_wake_resolver(node);
	tpc_wake_consumers(node);
	tpc_wake_launcher();
}

/*
 * tpc_worker_attach: take this process's place.  Does not return if the place
 * is taken or the node is not wanted any more.
 */
TpcNode *
tpc_worker_attach(Datum arg, int *number, TpcWorker **self)
{
	int			packed = DatumGetInt32(arg);
	TpcRole		role = ARG_ROLE(packed);
	TpcNode    *node = &tpc_shared->nodes[ARG_NODE(packed)];
	TpcWorker  *slot = tpc_worker_slot(node, role, ARG_NUMBER(packed));
	bool		wanted;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	/* there are statements to cancel in a handler only */
	if (role != TPC_ROLE_PREPARE && role != TPC_ROLE_CONSUME)
		pqsignal(SIGINT, handle_sigint);
	BackgroundWorkerUnblockSignals();

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	wanted = slot->pid == 0 && node->paused_by == 0 &&
		(node->state == TPC_NODE_ATTACHED ||
		 (node->state == TPC_NODE_ATTACHING && role == TPC_ROLE_MESSENGER));
	if (wanted)
	{
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		slot->requested = false;
		slot->started = GetCurrentTimestamp();
	}
	else if (slot->pid == 0)
		slot->requested = false;	/* so that it can be asked for again */
	LWLockRelease(&tpc_shared->control);
	if (!wanted)
		proc_exit(0);

	before_shmem_exit(worker_detach, PointerGetDatum(slot));
	if (number != NULL)
		*number = ARG_NUMBER(packed);
	if (self != NULL)
		*self = slot;
	return node;
}

/*
 * tpc_worker_connect: connect to the node's database, with the settings that
 * a database's own defaults must not change under us.  A handler finds the
 * search_path that a session of its database would.
 */
void
tpc_worker_connect(TpcNode *node, bool runs_handlers)
{
	BackgroundWorkerInitializeConnectionByOid(node->dbid, InvalidOid, 0);
	SetConfigOption("default_transaction_read_only", "off",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_deferrable", "off",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	/* Ours are tried again: what waits for decisions must not wait for them. */
	SetConfigOption("lock_timeout", runs_handlers ? "0" : "1s",
					PGC_SUSET, PGC_S_OVERRIDE);
	if (GetConfigOption("transaction_timeout", true, false) != NULL)
		SetConfigOption("transaction_timeout", "0",
						PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("idle_in_transaction_session_timeout", "0",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("session_replication_role", "origin",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "on", PGC_SUSET, PGC_S_OVERRIDE);
	if (!runs_handlers)
		SetConfigOption("search_path", "pg_catalog, pg_temp",
						PGC_SUSET, PGC_S_OVERRIDE);
	(void) tpc_area();
}

/*
 * tpc_worker_set_lock_timeout: the one that handlers find, and that a RESET in
 * them goes back to.  Outside of a transaction, so that ending one has nothing
 * to take back.
 */
void
tpc_worker_set_lock_timeout(void)
{
	char		value[32];

	if (LockTimeout == tpc_lock_timeout)
		return;
	snprintf(value, sizeof(value), "%d", tpc_lock_timeout);
	SetConfigOption("lock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * tpc_worker_start: ask the postmaster for a worker.  False if the server has
 * no worker slot left.  The caller holds control.
 */
bool
tpc_worker_start(TpcNode *node, TpcRole role, int number)
{
	BackgroundWorker worker;
	TpcWorker  *slot = tpc_worker_slot(node, role, number);
	int			index = node - tpc_shared->nodes;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(ARG_MAKE(index, role, number));
	strlcpy(worker.bgw_library_name, "tpc_amqp", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, role_functions[role], BGW_MAXLEN);
	if (role == TPC_ROLE_MESSENGER || role == TPC_ROLE_RELAY)
		snprintf(worker.bgw_name, BGW_MAXLEN, "tpc_amqp %s %s",
				 node->name, role_names[role]);
	else
		snprintf(worker.bgw_name, BGW_MAXLEN, "tpc_amqp %s %s %d",
				 node->name, role_names[role], number + 1);
	snprintf(worker.bgw_type, BGW_MAXLEN, "tpc_amqp %s", role_names[role]);

	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
		return false;
	slot->requested = true;
	slot->started = GetCurrentTimestamp();
	return true;
}

/*
 * tpc_worker_stop_all: terminate what runs; returns how many still do.  The
 * caller holds control.
 */
int
tpc_worker_stop_all(TpcNode *node)
{
	int			n = 0;

	for (int role = 0; role < TPC_ROLES; role++)
	{
		for (int i = 0; i < role_places[role]; i++)
		{
			TpcWorker  *slot = tpc_worker_slot(node, role, i);

			if (slot->pid != 0)
			{
				kill(slot->pid, SIGTERM);
				n++;
			}
		}
	}
	return n;
}

/*
 * tpc_worker_should_exit: in a worker's main loop, between two pieces of
 * work: leave quietly, before CHECK_FOR_INTERRUPTS would say FATAL.
 */
bool
tpc_worker_should_exit(TpcNode *node)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	return ProcDiePending || node->paused_by != 0 ||
		(node->state != TPC_NODE_ATTACHED &&
		 node->state != TPC_NODE_ATTACHING);
}

/*
 * tpc_worker_wait: wait for work, for at most timeout_ms.  more_work looks
 * whether there is some, after we have said that we are idle: who leaves work
 * afterwards sees that.
 */
void
tpc_worker_wait(TpcWorker *self, bool (*more_work) (void), long timeout_ms,
				uint32 wait_event)
{
	pg_atomic_write_u32(&self->idle, 1);
	pg_memory_barrier();
	if (!more_work())
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout_ms, wait_event);
	pg_atomic_write_u32(&self->idle, 0);
}

/*
 * tpc_worker_may_log: whether to log something of a kind that others can have
 * us log: once a minute.  logged_at: when that was last done, 0 if never; if
 * it is shared, the caller holds its lock.  Sessions use it, too.
 */
bool
tpc_worker_may_log(TimestampTz *logged_at)
{
	TimestampTz now = GetCurrentTimestamp();

	if (*logged_at != 0 &&
		!TimestampDifferenceExceeds(*logged_at, now, LOG_INTERVAL_MS))
		return false;
	*logged_at = now;
	return true;
}

/*
 * tpc_worker_begin, tpc_worker_end: a transaction with a snapshot.  Statistics
 * are for the caller to report, once it has nothing else to do.
 */
void
tpc_worker_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
tpc_worker_end(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Whether commits wait for standbys here. */
bool
tpc_worker_has_standbys(void)
{
	return max_wal_senders > 0 && SyncRepStandbyNames != NULL &&
		SyncRepStandbyNames[0] != '\0';
}

/*
 * tpc_worker_gave_up_standbys: whether the last wait for them may have ended
 * before they had it, because this process is to end.  Then nobody is to hear
 * of what was written.
 */
bool
tpc_worker_gave_up_standbys(void)
{
	return ProcDiePending && tpc_worker_has_standbys();
}

/*
 * tpc_worker_await_standbys: wait until the synchronous standbys, if there are
 * any, have what is on disk here.  What we find in tables they need not have:
 * a prepared transaction is to be seen before its PREPARE has waited for them,
 * and who waited may have been terminated.  In a transaction.  False if we
 * are.
 */
bool
tpc_worker_await_standbys(void)
{
	tpc_txn_make_synchronous();
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(GetFlushRecPtr(NULL), false);
	RESUME_INTERRUPTS();
	return !tpc_worker_gave_up_standbys();
}
