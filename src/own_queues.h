/*-------------------------------------------------------------------------
 *
 * own_queues.h
 *	  Transactions with queues of their own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_OWN_QUEUES_H
#define TPC_OWN_QUEUES_H

#include "messenger.h"

/* "txn_<uuid>_rollback" */
#define TPC_OWN_QUEUE_SIZE (TPC_UUID_TEXT_SIZE + 16)

extern void tpc_own_queue_name(char out[TPC_QUEUE_NAME_SIZE],
							   const TpcGtid *gtid, TpcMessageType type);

/* The session's. */
extern void tpc_own_queues_declare(TpcNode *node, const TpcGtid *gtid);

/* The messenger's. */
extern void tpc_own_queues_end(const TpcGtid *gtid, int delay_ms);
extern const TpcMessengerPart tpc_own_queues_part;

#endif							/* TPC_OWN_QUEUES_H */
