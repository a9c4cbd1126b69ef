/*-------------------------------------------------------------------------
 *
 * handler.h
 *	  Functions other nodes may call by a name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_HANDLER_H
#define TPC_HANDLER_H

#include "nodes/pg_list.h"

#include "shmem.h"

extern List *tpc_handler_kinds(void);
extern void tpc_handler_run(const char *name, const char *caller,
							const char *kind, Oid only_as, const char *arg,
							size_t arg_len, Oid *running_as, char **result);
extern void tpc_handler_end(Oid running_as);
extern Oid	tpc_handler_check_owner(const char *name, const char *action);

#endif							/* TPC_HANDLER_H */
