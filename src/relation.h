/*-------------------------------------------------------------------------
 *
 * relation.h
 *	  Opening and probing the extension's own tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_RELATION_H
#define TPC_RELATION_H

#include "access/genam.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* What a dirty read saw of a row. */
typedef enum TpcRowState
{
	TPC_ROW_NONE,
	TPC_ROW_IN_PROGRESS,		/* its transaction is not finished */
	TPC_ROW_COMMITTED
} TpcRowState;

/* All rows of a table, read dirty, in index order. */
typedef struct TpcDirtyScan
{
	Relation	index;
	IndexScanDesc scan;
	SnapshotData snapshot;
} TpcDirtyScan;

extern Relation tpc_relation_open(const char *name, LOCKMODE lockmode);
extern bool tpc_relation_exists(const char *name);
extern Oid	tpc_index_oid(const char *name);
extern TpcRowState tpc_relation_probe(Relation rel, const char *index_name,
									  ScanKey keys, int nkeys,
									  TupleTableSlot *slot);
extern bool tpc_relation_lookup(Relation rel, const char *index_name,
								ScanKey keys, int nkeys, ItemPointer hint,
								TupleTableSlot *slot);
extern void tpc_extension_require(void);
extern void tpc_relation_begin_dirty(TpcDirtyScan *dirty, Relation rel,
									 const char *index_name);
extern TpcRowState tpc_relation_next_dirty(TpcDirtyScan *dirty,
										   TupleTableSlot *slot);
extern void tpc_relation_end_dirty(TpcDirtyScan *dirty);
extern void tpc_spi_execute(const char *sql, int nargs, Oid *types,
							Datum *values, const char *nulls, bool read_only,
							int expect);
extern uint64 tpc_spi_run(const char *sql, int nargs, Oid *types,
						  Datum *values, const char *nulls, bool read_only,
						  int expect);
extern void tpc_relation_delete_foreign(const char *name);

#endif							/* TPC_RELATION_H */
