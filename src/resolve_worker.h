/*-------------------------------------------------------------------------
 *
 * resolve_worker.h
 *	  Messages for the messenger, and finishing what is prepared.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_RESOLVE_WORKER_H
#define TPC_RESOLVE_WORKER_H

#include "shmem.h"

extern dsa_pointer tpc_resolve_make(TpcMessage *msg, const char *to,
									bool resent, const TpcItem *answered,
									bool try_only);
extern void tpc_resolve_send(TpcNode *to_node, TpcMessage *msg,
							 const char *to, bool resent,
							 const TpcItem *answered);
extern bool tpc_resolve_finish(const char *gid, bool commit);

#endif							/* TPC_RESOLVE_WORKER_H */
