/*-------------------------------------------------------------------------
 *
 * branch.c
 *	  Tables branch, floor, heuristic and incident: the participant's memory.
 *
 * A branch that writes inserts its row in its own transaction just before
 * PREPARE.  While prepared, the row is invisible but can be read dirty, which
 * ties the transaction's GID to its gtid; once committed it says that the
 * transaction took effect here, so that a repeated prepare is recognised.
 * Rows below the coordinator's floor are deleted in the transaction that
 * records the floor, below which prepares are refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "branch.h"
#include "compat.h"
#include "relation.h"

/* columns of branch */
#define BRANCH_COORDINATOR	1
#define BRANCH_GTID			2
#define BRANCH_GID			3
#define BRANCH_SENDER		4
#define BRANCH_PREPARED_AT	5
#define BRANCH_NATTS		5

/* columns of heuristic; the first two are those of branch */
#define HEURISTIC_COMMIT	3
#define HEURISTIC_ANSWERED	6

/* columns of floor */
#define FLOOR_COORDINATOR	1
#define FLOOR_SENDER		2
#define FLOOR_GTID			3

/* A floor as this process saw it last. */
typedef struct SeenFloor
{
	char		coordinator[TPC_NODE_SIZE];
	char		sender[TPC_USER_MAXLEN + 1];
	TpcGtid		floor;
	ItemPointerData tid;
} SeenFloor;

#define NSEEN_FLOORS	32		/* places; who needs one takes it */

static SeenFloor seen_floors[NSEEN_FLOORS];

/*
 * tpc_branch_gid: the GID of a message-driven branch.  GIDs are the cluster's,
 * and two databases of one cluster may take part in one transaction, so the
 * participant is part of it.
 */
void
tpc_branch_gid(const TpcGlobalId *id, const char *node, char gid[TPC_GID_SIZE])
{
	char		text[TPC_GTID_TEXT_SIZE];

	tpc_gtid_to_text(id, text);
	snprintf(gid, TPC_GID_SIZE, TPC_GID_PREFIX "%s:%s", text, node);
}

/* tpc_branch_gid_is_ours: whether a GID has the form that tpc_branch_gid makes. */
bool
tpc_branch_gid_is_ours(const char *gid)
{
	TpcGlobalId id;

	return tpc_branch_gid_parse(gid, NULL, &id);
}

/* tpc_branch_gid_parse: false unless gid is a branch of this node (or any). */
bool
tpc_branch_gid_parse(const char *gid, const char *node, TpcGlobalId *id)
{
	size_t		prefix_len = strlen(TPC_GID_PREFIX);
	const char *colon;

	if (strncmp(gid, TPC_GID_PREFIX, prefix_len) != 0)
		return false;
	gid += prefix_len;
	colon = strchr(gid, ':');
	if (colon == NULL || (node != NULL && strcmp(colon + 1, node) != 0))
		return false;
	return tpc_gtid_from_text(gid, colon - gid, id);
}

static void
branch_keys(ScanKeyData keys[2], const TpcGlobalId *id, pg_uuid_t *uuid)
{
	tpc_gtid_to_bytes(&id->gtid, uuid->data);
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(id->coordinator));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid,
						   InvalidOid, F_UUID_EQ, UUIDPGetDatum(uuid));
}

static void
row_from_slot(TupleTableSlot *slot, TpcBranchRow *row)
{
	bool		isnull;
	char	   *value;

	value = TextDatumGetCString(slot_getattr(slot, BRANCH_GID, &isnull));
	strlcpy(row->gid, value, sizeof(row->gid));
	value = TextDatumGetCString(slot_getattr(slot, BRANCH_SENDER, &isnull));
	strlcpy(row->sender, value, sizeof(row->sender));
	row->prepared_at =
		DatumGetTimestampTz(slot_getattr(slot, BRANCH_PREPARED_AT, &isnull));
	row->xid =
		DatumGetTransactionId(slot_getsysattr(slot,
											  MinTransactionIdAttributeNumber,
											  &isnull));
}

/*
 * tpc_branch_each: call visit for each row, read dirty.
 */
void
tpc_branch_each(void (*visit) (const TpcGlobalId *id, const TpcBranchRow *row,
							   TpcRowState state, void *arg),
				void *arg)
{
	Relation	rel = tpc_relation_open("branch", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TpcDirtyScan scan;
	TpcRowState state;

	tpc_relation_begin_dirty(&scan, rel, "branch_pkey");
	while ((state = tpc_relation_next_dirty(&scan, slot)) != TPC_ROW_NONE)
	{
		TpcGlobalId id;
		TpcBranchRow row;
		bool		isnull;
		Datum		datum;
		char	   *coordinator;

		memset(&id, 0, sizeof(id));
		memset(&row, 0, sizeof(row));
		coordinator = TextDatumGetCString(slot_getattr(slot, BRANCH_COORDINATOR,
													   &isnull));
		strlcpy(id.coordinator, coordinator, sizeof(id.coordinator));
		datum = slot_getattr(slot, BRANCH_GTID, &isnull);
		if (!tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &id.gtid))
			continue;
		row_from_slot(slot, &row);
		row.state = state == TPC_ROW_COMMITTED ? TPC_BRANCH_COMMITTED :
			TPC_BRANCH_IN_PROGRESS;
		visit(&id, &row, state, arg);
		CHECK_FOR_INTERRUPTS();
	}
	tpc_relation_end_dirty(&scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * tpc_branch_probe: what is known here of a branch, read dirty: a row of a
 * prepared transaction, or of one about to be, is IN_PROGRESS.
 */
void
tpc_branch_probe(const TpcGlobalId *id, TpcBranchRow *row)
{
	Relation	rel = tpc_relation_open("branch", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData keys[2];
	pg_uuid_t	uuid;
	TpcRowState state;

	memset(row, 0, sizeof(*row));
	branch_keys(keys, id, &uuid);
	state = tpc_relation_probe(rel, "branch_pkey", keys, 2, slot);
	row->state = state == TPC_ROW_NONE ? TPC_BRANCH_NONE :
		state == TPC_ROW_COMMITTED ? TPC_BRANCH_COMMITTED :
		TPC_BRANCH_IN_PROGRESS;
	if (state != TPC_ROW_NONE)
		row_from_slot(slot, row);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * tpc_branch_insert: write the row in the current transaction, which is about
 * to be prepared.  Raises 23505 if the branch took effect before.  The caller
 * checks the floor after this, not before: see tpc_branch_below_floor.
 */
void
tpc_branch_insert(const TpcGlobalId *id, const char *gid, const char *sender)
{
	Relation	rel = tpc_relation_open("branch", RowExclusiveLock);
	Datum		values[BRANCH_NATTS];
	bool		nulls[BRANCH_NATTS] = {false};
	pg_uuid_t	uuid;
	HeapTuple	tuple;

	tpc_gtid_to_bytes(&id->gtid, uuid.data);
	values[BRANCH_COORDINATOR - 1] = CStringGetTextDatum(id->coordinator);
	values[BRANCH_GTID - 1] = UUIDPGetDatum(&uuid);
	values[BRANCH_GID - 1] = CStringGetTextDatum(gid);
	values[BRANCH_SENDER - 1] = CStringGetTextDatum(sender);
	values[BRANCH_PREPARED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/* The place of a floor; whether it holds that one, or another or none. */
static SeenFloor *
seen_floor(const char *coordinator, const char *sender, bool *found)
{
	uint32		hash = string_hash(coordinator, TPC_NODE_SIZE);
	SeenFloor  *seen = &seen_floors[hash % NSEEN_FLOORS];

	*found = strcmp(seen->coordinator, coordinator) == 0 &&
		strcmp(seen->sender, sender) == 0;
	return seen;
}

/* Whether anybody has told a floor of the coordinator that closes G. */
static bool
closed_by_anybody(const TpcGlobalId *id)
{
	Relation	rel = tpc_relation_open("floor", AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		closed = false;

	ScanKeyEntryInitialize(&key, 0, FLOOR_COORDINATOR,
						   BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(id->coordinator));
	scan = systable_beginscan(rel, tpc_index_oid("floor_pkey"), true, NULL,
							  1, &key);
	while (!closed && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, FLOOR_GTID,
										 RelationGetDescr(rel), &isnull);
		TpcGtid		floor;

		closed = tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &floor) &&
			tpc_gtid_compare(&id->gtid, &floor) < 0;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return closed;
}

/*
 * tpc_branch_below_floor: whether a snapshot taken now shows the transaction
 * as closed, by the word of the broker user that the message comes from; a
 * joined branch has none (""), and anybody's word closes it.
 *
 * Asked after tpc_branch_insert it is decisive.  If the floor's transaction
 * committed before our look, we see it.  If it commits later, it did not see
 * our row, so it deletes none of ours; and a row of an earlier run of the
 * same branch was still there when we inserted, so that we failed on it.
 */
bool
tpc_branch_below_floor(const TpcGlobalId *id, const char *sender)
{
	Relation	rel;
	TupleTableSlot *slot;
	bool		below = false;
	bool		found;
	SeenFloor  *seen;
	ItemPointerData tid;
	ScanKeyData keys[2];

	if (sender[0] == '\0')
		return closed_by_anybody(id);
	rel = tpc_relation_open("floor", AccessShareLock);
	slot = table_slot_create(rel, NULL);
	seen = seen_floor(id->coordinator, sender, &found);
	if (found)
		tid = seen->tid;
	else
		ItemPointerSetInvalid(&tid);
	ScanKeyEntryInitialize(&keys[0], 0, FLOOR_COORDINATOR,
						   BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(id->coordinator));
	ScanKeyEntryInitialize(&keys[1], 0, FLOOR_SENDER,
						   BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(sender));
	if (tpc_relation_lookup(rel, "floor_pkey", keys, 2, &tid, slot))
	{
		bool		isnull;
		Datum		datum = slot_getattr(slot, FLOOR_GTID, &isnull);
		TpcGtid		floor;

		if (tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &floor))
		{
			below = tpc_gtid_compare(&id->gtid, &floor) < 0;
			strlcpy(seen->coordinator, id->coordinator,
					sizeof(seen->coordinator));
			strlcpy(seen->sender, sender, sizeof(seen->sender));
			seen->floor = floor;
			seen->tid = tid;
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return below;
}

/*
 * tpc_branch_seems_closed: whether a floor that this process has seen closes
 * the transaction, from memory: a hint to look.
 */
bool
tpc_branch_seems_closed(const TpcGlobalId *id, const char *sender)
{
	bool		found;
	SeenFloor  *seen = seen_floor(id->coordinator, sender, &found);

	return found && tpc_gtid_compare(&id->gtid, &seen->floor) < 0;
}

/*
 * tpc_branch_advance_floor: record a coordinator's floor, as told by a broker
 * user, and delete the rows below it that came from the same, in the current
 * transaction.  False if it was there already.  What was committed by force
 * stays until the decision has been heard: that it is closed can also mean
 * that it was rolled back.
 */
bool
tpc_branch_advance_floor(const char *coordinator, const char *sender,
						 const TpcGtid *floor)
{
	Oid			types[3] = {TEXTOID, TEXTOID, UUIDOID};
	Datum		values[3];
	pg_uuid_t	uuid;
	bool		advanced;

	tpc_gtid_to_bytes(floor, uuid.data);
	values[0] = CStringGetTextDatum(coordinator);
	values[1] = CStringGetTextDatum(sender);
	values[2] = UUIDPGetDatum(&uuid);

	SPI_connect();
	tpc_spi_execute("INSERT INTO tpc_amqp.floor AS f VALUES ($1, $2, $3)"
					" ON CONFLICT (coordinator, sender)"
					" DO UPDATE SET gtid = excluded.gtid"
					" WHERE f.gtid OPERATOR(pg_catalog.<) excluded.gtid",
					3, types, values, NULL, false, SPI_OK_INSERT);
	advanced = SPI_processed > 0;
	if (advanced)
		tpc_spi_execute("DELETE FROM tpc_amqp.branch"
						" WHERE coordinator OPERATOR(pg_catalog.=) $1"
						" AND gtid OPERATOR(pg_catalog.<) $3"
						" AND sender OPERATOR(pg_catalog.=) ANY (ARRAY[$2, ''])"
						" AND NOT EXISTS (SELECT 1 FROM tpc_amqp.heuristic h"
						" WHERE h.coordinator OPERATOR(pg_catalog.=) branch.coordinator"
						" AND h.gtid OPERATOR(pg_catalog.=) branch.gtid"
						" AND h.commit AND NOT h.answered)",
						3, types, values, NULL, false, SPI_OK_DELETE);
	if (advanced)
		tpc_spi_execute("DELETE FROM tpc_amqp.heuristic"
						" WHERE coordinator OPERATOR(pg_catalog.=) $1"
						" AND gtid OPERATOR(pg_catalog.<) $3"
						" AND (answered OR NOT commit)",
						3, types, values, NULL, false, SPI_OK_DELETE);
	SPI_finish();
	return advanced;
}

/* tpc_branch_gid_exists: whether this database has it prepared, now. */
bool
tpc_branch_gid_exists(const char *gid)
{
	Oid			types[2] = {TEXTOID, OIDOID};
	Datum		values[2];
	bool		found;

	values[0] = CStringGetTextDatum(gid);
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	PushActiveSnapshot(GetTransactionSnapshot());
	found = tpc_spi_run("SELECT 1 FROM pg_catalog.pg_prepared_xact()"
						" WHERE gid OPERATOR(pg_catalog.=) $1"
						" AND dbid OPERATOR(pg_catalog.=) $2",
						2, types, values, NULL, true, SPI_OK_SELECT) > 0;
	PopActiveSnapshot();
	return found;
}

/*
 * tpc_branch_is_prepared: whether the prepared transaction of the row's GID is
 * the one that inserted the row.  A session can join and name a GID that
 * somebody else has: until its PREPARE fails for that, there is a row in
 * progress that names another's transaction.
 */
bool
tpc_branch_is_prepared(const TpcBranchRow *row)
{
	Oid			types[2] = {TEXTOID, XIDOID};
	Datum		values[2];

	if (row->state != TPC_BRANCH_IN_PROGRESS)
		return false;
	values[0] = CStringGetTextDatum(row->gid);
	values[1] = TransactionIdGetDatum(row->xid);
	return tpc_spi_run("SELECT 1 FROM pg_catalog.pg_prepared_xact()"
					   " WHERE gid OPERATOR(pg_catalog.=) $1"
					   " AND transaction OPERATOR(pg_catalog.=) $2",
					   2, types, values, NULL, true, SPI_OK_SELECT) > 0;
}

/*
 * tpc_branch_other_name: the name of another node than the given one whose
 * branch is prepared in this database; NULL if there is none.
 */
char *
tpc_branch_other_name(const char *node)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *other = NULL;

	SPI_connect();
	tpc_spi_execute("SELECT gid FROM pg_catalog.pg_prepared_xacts"
					" WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed && other == NULL; i++)
	{
		char	   *gid = SPI_getvalue(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, 1);
		char	   *last = gid != NULL ? strrchr(gid, ':') : NULL;
		TpcGlobalId id;

		if (last != NULL && strcmp(last + 1, node) != 0 &&
			tpc_branch_gid_parse(gid, last + 1, &id))
			other = MemoryContextStrdup(caller, last + 1);
	}
	SPI_finish();
	return other;
}

/*
 * tpc_branch_prepared: the branches of this node that are prepared, as
 * TpcPreparedBranch * in the caller's context; of any node this database has
 * been if node is NULL.
 */
List *
tpc_branch_prepared(const char *node)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;

	SPI_connect();
	tpc_spi_execute("SELECT gid, prepared FROM pg_catalog.pg_prepared_xacts"
					" WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *gid = SPI_getvalue(tuple, desc, 1);
		TpcGlobalId id;
		bool		isnull;

		if (gid != NULL && tpc_branch_gid_parse(gid, node, &id))
		{
			MemoryContext old = MemoryContextSwitchTo(caller);
			TpcPreparedBranch *branch = palloc0(sizeof(*branch));

			branch->id = id;
			strlcpy(branch->gid, gid, sizeof(branch->gid));
			branch->prepared_at =
				DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
			result = lappend(result, branch);
			MemoryContextSwitchTo(old);
		}
	}
	SPI_finish();
	return result;
}

/*
 * tpc_heuristic_record: a person decides about a branch in doubt, in force
 * when the current transaction commits.
 */
void
tpc_heuristic_record(const TpcGlobalId *id, bool commit)
{
	Oid			types[3] = {TEXTOID, UUIDOID, BOOLOID};
	Datum		values[3];
	pg_uuid_t	uuid;

	tpc_gtid_to_bytes(&id->gtid, uuid.data);
	values[0] = CStringGetTextDatum(id->coordinator);
	values[1] = UUIDPGetDatum(&uuid);
	values[2] = BoolGetDatum(commit);
	(void) tpc_spi_run("INSERT INTO tpc_amqp.heuristic"
					   " VALUES ($1, $2, $3, pg_catalog.now(), session_user)"
					   " ON CONFLICT (coordinator, gtid) DO UPDATE"
					   " SET commit = excluded.commit, forced_at = excluded.forced_at,"
					   " forced_by = excluded.forced_by, answered = false",
					   3, types, values, NULL, false, SPI_OK_INSERT);
}

/* tpc_heuristic_lookup: whether a person has decided about a branch, and how. */
bool
tpc_heuristic_lookup(const TpcGlobalId *id, bool *commit)
{
	Relation	rel = tpc_relation_open("heuristic", AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	pg_uuid_t	uuid;
	bool		found;

	branch_keys(keys, id, &uuid);
	scan = systable_beginscan(rel, tpc_index_oid("heuristic_pkey"), true,
							  NULL, 2, keys);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		bool		isnull;

		*commit = DatumGetBool(heap_getattr(tuple, HEURISTIC_COMMIT,
											RelationGetDescr(rel), &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * tpc_heuristic_answered: the coordinator's decision about a branch that was
 * finished by force has been heard, or nobody wants to hear it any more.
 * Whether that is news.  In the current transaction.
 */
bool
tpc_heuristic_answered(const TpcGlobalId *id)
{
	Oid			types[2] = {TEXTOID, UUIDOID};
	Datum		values[2];
	pg_uuid_t	uuid;

	tpc_gtid_to_bytes(&id->gtid, uuid.data);
	values[0] = CStringGetTextDatum(id->coordinator);
	values[1] = UUIDPGetDatum(&uuid);
	return tpc_spi_run("UPDATE tpc_amqp.heuristic SET answered = true"
					   " WHERE coordinator OPERATOR(pg_catalog.=) $1"
					   " AND gtid OPERATOR(pg_catalog.=) $2 AND NOT answered",
					   2, types, values, NULL, false, SPI_OK_UPDATE) > 0;
}

/* tpc_heuristic_pending: all there are, as TpcHeuristic * in the caller's context. */
List *
tpc_heuristic_pending(void)
{
	Relation	rel = tpc_relation_open("heuristic", AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *result = NIL;

	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		TpcHeuristic *heuristic = palloc0(sizeof(TpcHeuristic));
		bool		isnull;
		Datum		datum;

		datum = heap_getattr(tuple, BRANCH_COORDINATOR, desc, &isnull);
		strlcpy(heuristic->id.coordinator, TextDatumGetCString(datum),
				sizeof(heuristic->id.coordinator));
		datum = heap_getattr(tuple, BRANCH_GTID, desc, &isnull);
		if (!tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data,
								 &heuristic->id.gtid))
			continue;
		heuristic->commit =
			DatumGetBool(heap_getattr(tuple, HEURISTIC_COMMIT, desc, &isnull));
		heuristic->answered =
			DatumGetBool(heap_getattr(tuple, HEURISTIC_ANSWERED, desc,
									  &isnull));
		result = lappend(result, heuristic);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * tpc_incident_report: list something a person has to look at; again for the
 * same thing only moves its last_at.  In the current transaction.  What can
 * be made up by whoever may publish is not listed without end.
 */
void
tpc_incident_report(const TpcGlobalId *id, const char *kind, const char *node,
					const char *detail)
{
	Oid			types[4] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];
	char		gtid[TPC_GTID_TEXT_SIZE];

	tpc_gtid_to_text(id, gtid);
	values[0] = CStringGetTextDatum(gtid);
	values[1] = CStringGetTextDatum(kind);
	values[2] = CStringGetTextDatum(node);
	values[3] = CStringGetTextDatum(detail);
	(void) tpc_spi_run("INSERT INTO tpc_amqp.incident"
					   " SELECT $1, $2, $3, pg_catalog.now(), pg_catalog.now(), $4"
					   " WHERE (SELECT pg_catalog.count(*) FROM tpc_amqp.incident)"
					   " OPERATOR(pg_catalog.<) 10000"
					   " ON CONFLICT (gtid, kind, node)"
					   " DO UPDATE SET last_at = excluded.last_at,"
					   " detail = excluded.detail",
					   4, types, values, NULL, false, SPI_OK_INSERT);
}

/* tpc_incident_clear: kind NULL for all kinds; whether there was one. */
bool
tpc_incident_clear(const TpcGlobalId *id, const char *kind)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];
	char		nulls[2] = {' ', ' '};
	char		gtid[TPC_GTID_TEXT_SIZE];

	tpc_gtid_to_text(id, gtid);
	values[0] = CStringGetTextDatum(gtid);
	if (kind != NULL)
		values[1] = CStringGetTextDatum(kind);
	else
		nulls[1] = 'n';
	return tpc_spi_run("DELETE FROM tpc_amqp.incident"
					   " WHERE gtid OPERATOR(pg_catalog.=) $1"
					   " AND ($2 IS NULL OR kind OPERATOR(pg_catalog.=) $2)",
					   2, types, values, nulls, false, SPI_OK_DELETE) > 0;
}
