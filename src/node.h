/*-------------------------------------------------------------------------
 *
 * node.h
 *	  Being a node: attaching, detaching, and who this database is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_NODE_H
#define TPC_NODE_H

#include "access/xact.h"

#include "shmem.h"

#define TPC_LABEL_PROVIDER "tpc_amqp"

/* The row of table local_node. */
typedef struct TpcLocalNode
{
	char		name[TPC_NODE_SIZE];
	char		server[NAMEDATALEN];	/* by name: pg_upgrade keeps that */
	Oid			attached_by;
} TpcLocalNode;

extern void tpc_node_install(void);
extern void tpc_node_check_name(const char *name);
extern bool tpc_local_node_read(TpcLocalNode *local);
extern TpcNode *tpc_node_ready(void);
extern void tpc_node_label_remove(void);
extern void tpc_node_stop_workers(Oid dbid, const char *action);
extern void tpc_node_paused_is_dropped(void);
extern void tpc_node_at_eoxact(bool committed);
extern void tpc_node_at_subxact(bool committed, SubTransactionId subid,
								SubTransactionId parent);
extern bool tpc_node_xact_pending(void);
extern void tpc_node_detach_on_commit(void);

#endif							/* TPC_NODE_H */
