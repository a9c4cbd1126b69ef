/*-------------------------------------------------------------------------
 *
 * tpc_amqp.c
 *	  PostgreSQL databases that commit together, over RabbitMQ.
 *
 * Where the server loads the library.  src/README describes the design.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "node.h"
#include "settings.h"
#include "shmem.h"
#include "txn.h"
#include "utility.h"
#include "worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * Loaded by a session instead of the postmaster, nothing is set up: every
 * function then says that the library has to be preloaded.
 */
void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	tpc_settings_define();
	tpc_shmem_install();
	tpc_node_install();
	tpc_txn_install();
	tpc_utility_install();
	tpc_launcher_register();
}
