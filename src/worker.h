/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What the background processes have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_WORKER_H
#define TPC_WORKER_H

#include "postmaster/bgworker.h"

#include "shmem.h"

extern TpcNode *tpc_worker_attach(Datum arg, int *number,
								  TpcWorker **self);
extern void tpc_worker_wait(TpcWorker *self, bool (*more_work) (void),
							long timeout_ms, uint32 wait_event);
extern void tpc_worker_connect(TpcNode *node, bool runs_handlers);
extern void tpc_worker_set_lock_timeout(void);
extern bool tpc_worker_start(TpcNode *node, TpcRole role, int number);
extern TpcWorker *tpc_worker_slot(TpcNode *node, TpcRole role, int number);
extern bool tpc_worker_may_log(TimestampTz *logged_at);
extern void tpc_worker_begin(void);
extern void tpc_worker_end(void);
extern bool tpc_worker_has_standbys(void);
extern bool tpc_worker_gave_up_standbys(void);
extern bool tpc_worker_await_standbys(void);
extern int	tpc_worker_stop_all(TpcNode *node);
extern bool tpc_worker_should_exit(TpcNode *node);

extern PGDLLEXPORT void tpc_launcher_main(Datum arg);
extern PGDLLEXPORT void tpc_messenger_main(Datum arg);
extern PGDLLEXPORT void tpc_prepare_worker_main(Datum arg);
extern PGDLLEXPORT void tpc_resolve_worker_main(Datum arg);
extern PGDLLEXPORT void tpc_relay_main(Datum arg);
extern PGDLLEXPORT void tpc_consume_worker_main(Datum arg);
extern void tpc_launcher_register(void);

#endif							/* TPC_WORKER_H */
