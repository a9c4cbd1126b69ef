/*-------------------------------------------------------------------------
 *
 * publisher.h
 *	  The messenger's other connection: what publish() sends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_PUBLISHER_H
#define TPC_PUBLISHER_H

#include "broker.h"
#include "shmem.h"

extern bool tpc_publisher_is_due(TpcNode *node);
extern void tpc_publisher_connect(TpcNode *node,
								  const TpcBrokerParams *params);
extern void tpc_publisher_serve(TpcNode *node, bool readable);
extern void tpc_publisher_close(TpcNode *node);
extern int	tpc_publisher_socket(uint32 *events);
extern long tpc_publisher_wait_ms(void);
extern void tpc_publisher_count(TpcNode *node);

#endif							/* TPC_PUBLISHER_H */
