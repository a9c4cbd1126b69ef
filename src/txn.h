/*-------------------------------------------------------------------------
 *
 * txn.h
 *	  The coordinator's side of a transaction, in its own backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_TXN_H
#define TPC_TXN_H

extern void tpc_txn_install(void);
extern bool tpc_txn_has_calls(void);

/* There is something for the callbacks to do; set by whoever leaves it. */
extern bool tpc_xact_pending;

#endif							/* TPC_TXN_H */
