/*-------------------------------------------------------------------------
 *
 * prepared.h
 *	  Finishing prepared transactions that belong to global ones.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_PREPARED_H
#define TPC_PREPARED_H

#include "gid.h"

/* What is to be done with a COMMIT PREPARED or ROLLBACK PREPARED. */
typedef enum TpcFinish
{
	TPC_FINISH_PASS,			/* none of ours: the server's */
	TPC_FINISH_OURS,			/* the server's; then tpc_prepared_after() */
	TPC_FINISH_DONE				/* nothing: it has been carried out */
} TpcFinish;

extern TpcFinish tpc_prepared_before(const char *gid, bool commit,
									 bool top_level);
extern void tpc_prepared_after(const char *gid, bool commit);
extern bool tpc_prepared_tell(TpcNode *node, const char *gid,
							  const TpcGlobalId *branch, const TpcGtid *txn,
							  bool commit, dsa_pointer parent_ack);
extern TpcTxn *tpc_prepared_set_decided(TpcNode *node, const TpcGtid *gtid,
										bool commit, Latch *waiter,
										dsa_pointer parent_ack);

#endif							/* TPC_PREPARED_H */
