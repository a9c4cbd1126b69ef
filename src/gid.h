/*-------------------------------------------------------------------------
 *
 * gid.h
 *	  Prepared transactions that belong to global ones, by GID.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_GID_H
#define TPC_GID_H

#include "nodes/pg_list.h"

#include "shmem.h"

extern bool tpc_gid_peek(const char *gid, TpcGid *copy);
extern bool tpc_gid_lookup(const char *gid, TpcGid *copy);
extern void tpc_gid_claim(const TpcGid *entry);
extern void tpc_gid_set_prepared(const char *gid);
extern void tpc_gid_drop(const char *gid, bool only_finished);
extern bool tpc_gid_set_finished(const char *gid, const TpcGlobalId *branch,
								 const TpcGtid *txn, bool committed,
								 TpcGid *copy);
extern List *tpc_gid_list(TpcGidState state);
extern List *tpc_gid_joined(void);
extern List *tpc_gid_gather(const char *only);
extern int	tpc_gid_count_prepared(void);
extern void tpc_gid_load(List *gathered);
extern void tpc_gid_clear(Oid dbid);

#endif							/* TPC_GID_H */
