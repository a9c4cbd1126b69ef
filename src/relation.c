/*-------------------------------------------------------------------------
 *
 * relation.c
 *	  Opening and probing the extension's own tables.
 *
 * The commit path reaches its tables without SPI: the decision row is written
 * while a transaction is committing, and the branch row while it is being
 * prepared, where running the executor would be dear and out of place.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "relation.h"

#define TPC_SCHEMA "tpc_amqp"

static Oid
named_relation(const char *name)
{
	Oid			nspid = get_namespace_oid(TPC_SCHEMA, true);

	return OidIsValid(nspid) ? get_relname_relid(name, nspid) : InvalidOid;
}

/*
 * tpc_relation_open: open a table of schema tpc_amqp.  Raises 42P01 if the
 * extension is not in this database.
 */
Relation
tpc_relation_open(const char *name, LOCKMODE lockmode)
{
	Oid			relid = named_relation(name);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", TPC_SCHEMA, name),
				 errhint("Run CREATE EXTENSION tpc_amqp in this database.")));
	return table_open(relid, lockmode);
}

bool
tpc_relation_exists(const char *name)
{
	return OidIsValid(named_relation(name));
}

Oid
tpc_index_oid(const char *name)
{
	Oid			indexid = named_relation(name);

	if (!OidIsValid(indexid))
		elog(ERROR, "index \"%s.%s\" does not exist", TPC_SCHEMA, name);
	return indexid;
}

/*
 * tpc_relation_probe: the first row in index order that matches, whether its
 * transaction has committed or is still in progress (prepared ones are).
 *
 * slot (of the relation) holds the row unless TPC_ROW_NONE is returned.  A
 * dirty snapshot sees each row as it is at that moment, not all at one; what
 * callers conclude from one row allows for that.
 */
TpcRowState
tpc_relation_probe(Relation rel, const char *index_name, ScanKey keys,
				   int nkeys, TupleTableSlot *slot)
{
	SnapshotData snap;
	Relation	index;
	IndexScanDesc scan;
	TpcRowState result = TPC_ROW_NONE;

	index = index_open(tpc_index_oid(index_name), AccessShareLock);
	InitDirtySnapshot(snap);
	scan = tpc_index_beginscan(rel, index, &snap, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		ExecMaterializeSlot(slot);
		result = TransactionIdIsValid(snap.xmin) ?
			TPC_ROW_IN_PROGRESS : TPC_ROW_COMMITTED;
	}
	index_endscan(scan);
	index_close(index, AccessShareLock);
	return result;
}

/*
 * tpc_relation_begin_dirty, tpc_relation_next_dirty, tpc_relation_end_dirty:
 * all rows whose transaction has committed or is in progress, each as it is
 * when it is looked at.  next returns TPC_ROW_NONE at the end.
 */
void
tpc_relation_begin_dirty(TpcDirtyScan *dirty, Relation rel,
						 const char *index_name)
{
	dirty->index = index_open(tpc_index_oid(index_name), AccessShareLock);
	InitDirtySnapshot(dirty->snapshot);
	dirty->scan = tpc_index_beginscan(rel, dirty->index, &dirty->snapshot, 0);
	index_rescan(dirty->scan, NULL, 0, NULL, 0);
}

TpcRowState
tpc_relation_next_dirty(TpcDirtyScan *dirty, TupleTableSlot *slot)
{
	if (!index_getnext_slot(dirty->scan, ForwardScanDirection, slot))
		return TPC_ROW_NONE;
	return TransactionIdIsValid(dirty->snapshot.xmin) ?
		TPC_ROW_IN_PROGRESS : TPC_ROW_COMMITTED;
}

void
tpc_relation_end_dirty(TpcDirtyScan *dirty)
{
	index_endscan(dirty->scan);
	index_close(dirty->index, AccessShareLock);
}

/*
 * tpc_spi_execute: run one statement; the caller is connected to SPI.
 * expect: the SPI_OK_ code; anything else is an error.
 *
 * It runs as a superuser: who may execute attach() and its like needs no
 * privileges on our tables.  An error restores the user at the abort.
 */
void
tpc_spi_execute(const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls, bool read_only, int expect)
{
	Oid			userid;
	int			sec_context;
	int			rc;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   sec_context | SECURITY_LOCAL_USERID_CHANGE);
	rc = SPI_execute_with_args(sql, nargs, types, values, nulls, read_only, 0);
	SetUserIdAndSecContext(userid, sec_context);
	if (rc != expect)
		elog(ERROR, "SPI returned %s for \"%s\"",
			 SPI_result_code_string(rc), sql);
}
