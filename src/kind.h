/*-------------------------------------------------------------------------
 *
 * kind.h
 *	  Kinds of calls that have a prepare queue and workers of their own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_KIND_H
#define TPC_KIND_H

#include "shmem.h"

extern void tpc_kind_check_name(const char *kind);
extern void tpc_kind_follow(TpcNode *node);

#endif							/* TPC_KIND_H */
