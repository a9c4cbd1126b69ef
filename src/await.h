/*-------------------------------------------------------------------------
 *
 * await.h
 *	  What a coordinator's session waits for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_AWAIT_H
#define TPC_AWAIT_H

#include "shmem.h"

extern void tpc_await_init(void);
extern void tpc_await_link(TpcNode *node, TimestampTz deadline);
extern void tpc_await_raise_refusal(TpcNode *node, const TpcGlobalId *id,
									const char *hint);
extern void tpc_await_votes(TpcNode *node, TpcTxn *txn,
							const TpcGlobalId *id, bool enlisted,
							TimestampTz deadline);
extern bool tpc_await_prepared_votes(TpcNode *node, const TpcGlobalId *id);
extern void tpc_await_applied(TpcNode *node, TpcTxn *txn, int timeout_ms);

#endif							/* TPC_AWAIT_H */
