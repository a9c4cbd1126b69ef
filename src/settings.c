/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The extension's settings (tpc_amqp.*).
 *
 * What sizes shared memory needs a restart; what workers read needs a reload;
 * what concerns one transaction can be set by anyone in the session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "settings.h"
#include "shmem.h"

int			tpc_prepare_timeout = 10000;
int			tpc_apply_timeout = 5000;
int			tpc_commit_wait = TPC_COMMIT_WAIT_APPLIED;
bool		tpc_prepare_wait = true;
int			tpc_prepared_timeout = 300000;
int			tpc_lock_timeout = 5000;
int			tpc_prepare_workers = 2;
int			tpc_resolve_workers = 1;
int			tpc_consume_workers = 2;
int			tpc_broker_timeout = 10000;
int			tpc_confirm_timeout = 10000;
int			tpc_slot_timeout = 1000;
int			tpc_max_requests = 100;
int			tpc_resolve_interval = 5000;
int			tpc_forget_after = 10000;
int			tpc_max_transactions = 1000;
int			tpc_max_nodes = 8;
int			tpc_max_payload = 1024;
int			tpc_max_memory = 256;
bool		tpc_failover_presumes_abort = false;
int			tpc_consume_timeout = 300000;
int			tpc_consumed_retention = 30 * 24 * 60;

static const struct config_enum_entry commit_wait_options[] = {
	{"applied", TPC_COMMIT_WAIT_APPLIED, false},
	{"decided", TPC_COMMIT_WAIT_DECIDED, false},
	{NULL, 0, false}
};

/*
 * tpc_settings_define: define the settings.  Those of PGC_POSTMASTER can only
 * be defined while the postmaster loads its libraries; elsewhere (the library
 * was loaded by a session) they do not matter, for nothing works then.
 */
void
tpc_settings_define(void)
{
	DefineCustomIntVariable("tpc_amqp.prepare_timeout",
							"Time a COMMIT waits for the participants' votes.",
							"A handler has to finish within it, too.",
							&tpc_prepare_timeout, 10000, 1, INT_MAX / 2,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.apply_timeout",
							"Time a decided COMMIT waits for the participants to apply it.",
							NULL,
							&tpc_apply_timeout, 5000, 0, INT_MAX / 2,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomEnumVariable("tpc_amqp.commit_wait",
							 "What COMMIT waits for once it is decided.",
							 "\"applied\": every node has committed; \"decided\": nothing more.",
							 &tpc_commit_wait, TPC_COMMIT_WAIT_APPLIED,
							 commit_wait_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("tpc_amqp.prepare_wait",
							 "PREPARE TRANSACTION waits for the participants' votes.",
							 "If off, COMMIT PREPARED waits for those that are missing.",
							 &tpc_prepare_wait, true,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.prepared_timeout",
							"Time after which a prepared global transaction that nobody finishes is rolled back.",
							"Counts at its coordinator, from PREPARE TRANSACTION.  Zero disables it.",
							&tpc_prepared_timeout, 300000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.lock_timeout",
							"Time a handler waits for a lock.",
							"Zero disables it; the deadline of the transaction remains.",
							&tpc_lock_timeout, 5000, 0, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.prepare_workers",
							"Number of processes per node that run handlers.",
							NULL,
							&tpc_prepare_workers, 2, 1, TPC_MAX_PREPARE_WORKERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.resolve_workers",
							"Number of processes per node that carry out decisions.",
							NULL,
							&tpc_resolve_workers, 1, 1, TPC_MAX_RESOLVE_WORKERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.consume_workers",
							"Number of processes per node that run the handlers of subscriptions.",
							"They are started once there is a subscription, besides those that have workers of their own.",
							&tpc_consume_workers, 2, 1, TPC_MAX_SHARED_CONSUMERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.consume_timeout",
							"Time the handler of a subscription may take for a message.",
							"Zero disables it.",
							&tpc_consume_timeout, 300000, 0, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.consumed_retention",
							"Time for which it is known that a message has taken effect.",
							"One that comes again later takes effect again.  Zero is for ever.",
							&tpc_consumed_retention, 30 * 24 * 60, 0,
							INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.broker_timeout",
							"Time a session waits for the broker's answer.",
							"Of functions that act on the broker at once, such as declare_queue().",
							&tpc_broker_timeout, 10000, 1, INT_MAX / 2,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.confirm_timeout",
							"Time the broker may say nothing of messages of publish().",
							"Then one message at a time finds out which of their destinations takes any.",
							&tpc_confirm_timeout, 10000, 100, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.slot_timeout",
							"Time a session waits for a place where all are taken.",
							"Of max_transactions and of max_requests.  Zero: it does not wait.",
							&tpc_slot_timeout, 1000, 0, INT_MAX / 2,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.resolve_interval",
							"Time between two looks at unfinished transactions.",
							"Decisions not acknowledged are sent again, and branches in doubt inquire, at least this often.",
							&tpc_resolve_interval, 5000, 10, 3600 * 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.forget_after",
							"Time the outcome of a finished transaction stays known.",
							NULL,
							&tpc_forget_after, 10000, 0, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.max_payload",
							"Largest message sent or taken.",
							NULL,
							&tpc_max_payload, 1024, 1, 100 * 1024,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomBoolVariable("tpc_amqp.failover_presumes_abort",
							 "Presume abort also for transactions that ran before a failover.",
							 "Right exactly where every commit was replicated synchronously.",
							 &tpc_failover_presumes_abort, false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.max_transactions",
							"Global transactions a cluster can coordinate at a time.",
							NULL,
							&tpc_max_transactions, 1000, 10, 100000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.max_requests",
							"Requests to the broker that a cluster's sessions can have at a time.",
							"A session that has taken messages of a queue counts until its transaction ends.",
							&tpc_max_requests, 100, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.max_nodes",
							"Databases of a cluster that can be attached.",
							NULL,
							&tpc_max_nodes, 8, 1, 1000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tpc_amqp.max_memory",
							"Shared memory for messages under way.",
							NULL,
							&tpc_max_memory, 256, 16, 64 * 1024,
							PGC_POSTMASTER, GUC_UNIT_MB, NULL, NULL, NULL);

	MarkGUCPrefixReserved("tpc_amqp");
}
