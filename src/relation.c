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
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "relation.h"

#define TPC_SCHEMA "tpc_amqp"

/*
 * What names were found to mean, in this process.  An entry goes when the
 * server says that its relation, or any schema, has changed.
 */
typedef struct KnownRelation
{
	const char *name;			/* a literal of our callers */
	Oid			relid;			/* InvalidOid: not looked up yet, or gone */
} KnownRelation;

#define MAX_KNOWN	32			/* more names than there are */

static KnownRelation known[MAX_KNOWN];
static int	nknown = 0;
static bool extension_seen = false; /* it is in this database */
static uint64 changes = 0;		/* invalidations so far */

static void
relation_changed(Datum arg, Oid relid)
{
	changes++;
	for (int i = 0; i < nknown; i++)
	{
		if (relid == InvalidOid || known[i].relid == relid)
			known[i].relid = InvalidOid;
	}
}

static void
schema_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	relation_changed((Datum) 0, InvalidOid);
}

/*
 * pg_extension itself sends no word of a change; but the extension cannot be
 * dropped without its functions.
 */
static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
	extension_seen = false;
}

static void
watch_changes(void)
{
	static bool watching = false;

	if (watching)
		return;
	watching = true;
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}

static Oid
look_up_relation(const char *name)
{
	Oid			nspid = get_namespace_oid(TPC_SCHEMA, true);

	return OidIsValid(nspid) ? get_relname_relid(name, nspid) : InvalidOid;
}

/* name: a string literal. */
static Oid
named_relation(const char *name)
{
	int			i;
	uint64		before;
	Oid			relid;

	for (i = 0; i < nknown; i++)
	{
		if (strcmp(known[i].name, name) == 0)
			break;
	}
	if (i < nknown && OidIsValid(known[i].relid))
		return known[i].relid;

	/* Keep it only if nothing has changed while we looked. */
	watch_changes();
	before = changes;
	relid = look_up_relation(name);
	if (changes == before && OidIsValid(relid) && i < MAX_KNOWN)
	{
		known[i].name = name;
		known[i].relid = relid;
		nknown = Max(nknown, i + 1);
	}
	return relid;
}

/*
 * tpc_extension_require: raise 42704 unless the extension is in this database,
 * as of the last time that invalidations were taken.
 */
void
tpc_extension_require(void)
{
	uint64		before;

	if (extension_seen)
		return;
	watch_changes();
	before = changes;
	(void) get_extension_oid("tpc_amqp", false);
	extension_seen = changes == before;
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

/* Whether the row in slot is one the keys ask for. */
static bool
keys_match(TupleTableSlot *slot, ScanKey keys, int nkeys)
{
	for (int i = 0; i < nkeys; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, keys[i].sk_attno, &isnull);

		if (isnull ||
			!DatumGetBool(FunctionCall2Coll(&keys[i].sk_func,
											keys[i].sk_collation, value,
											keys[i].sk_argument)))
			return false;
	}
	return true;
}

/*
 * tpc_relation_lookup: the row that matches in a snapshot taken now; false if
 * there is none.  slot (of the relation) holds it.  The index is unique, and
 * its columns are the first ones of the table.
 *
 * hint: where the row was last time, or invalid; updated.  A version of the
 * row that the snapshot shows is the one that the index would lead to, so
 * reading that place first only saves the way.
 */
bool
tpc_relation_lookup(Relation rel, const char *index_name, ScanKey keys,
					int nkeys, ItemPointer hint, TupleTableSlot *slot)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		found = false;

	/* The table may have been truncated since. */
	if (ItemPointerIsValid(hint) &&
		ItemPointerGetBlockNumber(hint) < RelationGetNumberOfBlocks(rel))
		found = table_tuple_fetch_row_version(rel, hint, snapshot, slot) &&
			keys_match(slot, keys, nkeys);
	if (!found)
	{
		Relation	index = index_open(tpc_index_oid(index_name),
									   AccessShareLock);
		IndexScanDesc scan = tpc_index_beginscan(rel, index, snapshot, nkeys);

		index_rescan(scan, keys, nkeys, NULL, 0);
		found = index_getnext_slot(scan, ForwardScanDirection, slot);
		if (found)
			ExecMaterializeSlot(slot);
		index_endscan(scan);
		index_close(index, AccessShareLock);
		if (found)
			*hint = slot->tts_tid;
		else
			ItemPointerSetInvalid(hint);
	}
	UnregisterSnapshot(snapshot);
	return found;
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

/*
 * tpc_spi_run: the same where the number of rows, which it returns, is all
 * that is asked for: it connects to SPI itself.
 */
uint64
tpc_spi_run(const char *sql, int nargs, Oid *types, Datum *values,
			const char *nulls, bool read_only, int expect)
{
	uint64		processed;

	SPI_connect();
	tpc_spi_execute(sql, nargs, types, values, nulls, read_only, expect);
	processed = SPI_processed;
	SPI_finish();
	return processed;
}

/*
 * tpc_relation_delete_foreign: rows that a copy of a database has from its
 * original, which deals with them.
 */
void
tpc_relation_delete_foreign(const char *name)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};

	if (!tpc_relation_exists(name))
		return;
	(void) tpc_spi_run(psprintf("DELETE FROM %s.%s"
								" WHERE database OPERATOR(pg_catalog.<>) $1",
								TPC_SCHEMA, quote_identifier(name)),
					   1, types, values, NULL, false, SPI_OK_DELETE);
}
