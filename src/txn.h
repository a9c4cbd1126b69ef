/*-------------------------------------------------------------------------
 *
 * txn.h
 *	  The coordinator's side of a transaction, in its own backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_TXN_H
#define TPC_TXN_H

#include "shmem.h"

extern void tpc_txn_install(void);
extern bool tpc_txn_has_calls(void);
extern void tpc_txn_set_gid(const char *gid);
extern void tpc_txn_set_deadline(TimestampTz deadline);
extern void tpc_txn_runs_branches(void);
extern bool tpc_txn_is_branch(void);
extern void tpc_txn_make_synchronous(void);

/* There is something for the callbacks to do; set by whoever leaves it. */
extern bool tpc_xact_pending;

#endif							/* TPC_TXN_H */
