/*-------------------------------------------------------------------------
 *
 * join.h
 *	  A branch that the application prepares itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_JOIN_H
#define TPC_JOIN_H

#include "gtid.h"

extern bool tpc_join_pending(void);

/* At the events of the transaction callbacks; txn.c calls them. */
extern void tpc_join_at_pre_commit(void);
extern void tpc_join_at_pre_prepare(const char *gid, TpcGlobalId *id);
extern void tpc_join_at_prepare(void);
extern void tpc_join_at_commit(void);
extern void tpc_join_at_abort(void);
extern void tpc_join_at_subxact(bool committed, SubTransactionId subid,
								SubTransactionId parent);

#endif							/* TPC_JOIN_H */
