/*-------------------------------------------------------------------------
 *
 * object.h
 *	  The broker's queues and exchanges, from SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_OBJECT_H
#define TPC_OBJECT_H

#include "fmgr.h"

#include "message.h"

/* For whatever takes names of the broker's objects from SQL; they raise. */
extern void tpc_object_no_nulls(FunctionCallInfo fcinfo);
extern bool tpc_object_is_reserved_queue(const char *name, size_t len);
extern bool tpc_object_is_reserved_exchange(const char *name, size_t len);
extern TpcSlice tpc_object_name(text * name, const char *what);
extern TpcSlice tpc_object_queue(text * name);
extern TpcSlice tpc_object_exchange(text * name);
extern TpcSlice tpc_object_arguments(struct varlena *arguments);

#endif							/* TPC_OBJECT_H */
