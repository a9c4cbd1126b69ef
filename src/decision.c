/*-------------------------------------------------------------------------
 *
 * decision.c
 *	  Tables decision and incarnation: the coordinator's memory.
 *
 * A row of decision is inserted in the user's own transaction, so it is
 * visible if and only if that transaction committed: the commit record is the
 * decision.  This file is the only reader and writer of both tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "decision.h"
#include "relation.h"
#include "settings.h"

/* columns of decision */
#define DECISION_GTID			1
#define DECISION_PARTICIPANTS	2
#define DECISION_USERS			3
#define DECISION_ACKED			4
#define DECISION_DECIDED_AT		5
#define DECISION_GID			6
#define DECISION_ENLISTED		7
#define DECISION_NATTS			7

/* columns of incarnation */
#define INCARNATION_INCARNATION	1
#define INCARNATION_NODE		2
#define INCARNATION_SYSTEM		3
#define INCARNATION_DATABASE	4
#define INCARNATION_TIMELINE	5
#define INCARNATION_STARTED_AT	6
#define INCARNATION_FORGOTTEN	7

static Datum
gtid_datum(const TpcGtid *gtid, pg_uuid_t *space)
{
	tpc_gtid_to_bytes(gtid, space->data);
	return UUIDPGetDatum(space);
}

/* The cluster's, as a numeric: it is an unsigned number of 64 bits. */
static Datum
system_identifier(void)
{
	char		text[32];

	snprintf(text, sizeof(text), UINT64_FORMAT, GetSystemIdentifier());
	return DirectFunctionCall3(numeric_in, CStringGetDatum(text),
							   ObjectIdGetDatum(InvalidOid),
							   Int32GetDatum(-1));
}

static ArrayType *
text_array(char **values, int n)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elems[i] = CStringGetTextDatum(values[i]);
	return construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * tpc_decision_insert: step C3.  Write the record that the current
 * transaction's commit makes the decision.  Raises as any insert does; durable
 * when (and only if) the transaction commits.  gid: that it is to be prepared
 * under, or NULL; then a participant's user may be "", if it is not known yet.
 * enlisted: by participant, whether the application prepares it; or NULL.
 */
void
tpc_decision_insert(const TpcGtid *gtid, char **participants, char **users,
					int nparticipants, const char *gid,
					const bool *enlisted)
{
	Relation	rel = tpc_relation_open("decision", RowExclusiveLock);
	Datum		values[DECISION_NATTS];
	bool		nulls[DECISION_NATTS] = {false};
	pg_uuid_t	uuid;
	HeapTuple	tuple;

	values[DECISION_GTID - 1] = gtid_datum(gtid, &uuid);
	values[DECISION_PARTICIPANTS - 1] =
		PointerGetDatum(text_array(participants, nparticipants));
	values[DECISION_USERS - 1] =
		PointerGetDatum(text_array(users, nparticipants));
	values[DECISION_ACKED - 1] =
		PointerGetDatum(construct_empty_array(TEXTOID));
	values[DECISION_DECIDED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	nulls[DECISION_GID - 1] = gid == NULL;
	values[DECISION_GID - 1] = gid != NULL ? CStringGetTextDatum(gid) :
		(Datum) 0;
	nulls[DECISION_ENLISTED - 1] = true;
	values[DECISION_ENLISTED - 1] = (Datum) 0;
	if (gid != NULL && enlisted != NULL)
	{
		char	  **names = palloc(sizeof(char *) * Max(nparticipants, 1));
		int			nnames = 0;

		for (int i = 0; i < nparticipants; i++)
		{
			if (enlisted[i])
				names[nnames++] = participants[i];
		}
		if (nnames > 0)
		{
			nulls[DECISION_ENLISTED - 1] = false;
			values[DECISION_ENLISTED - 1] =
				PointerGetDatum(text_array(names, nnames));
		}
	}
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/* Set the flags of the participants that the array names. */
static void
mark_names(const TpcDecisionRow *row, ArrayType *names, bool *flags)
{
	Datum	   *elems;
	int			n;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &elems, NULL,
					  &n);
	for (int i = 0; i < row->nparticipants; i++)
	{
		for (int j = 0; j < n; j++)
			flags[i] = flags[i] ||
				strcmp(row->participants[i], TextDatumGetCString(elems[j])) == 0;
	}
}

static void
row_from_slot(TupleTableSlot *slot, TpcDecisionRow *row)
{
	bool		isnull;
	Datum		datum;
	Datum	   *elems;
	int			nusers;

	datum = slot_getattr(slot, DECISION_GTID, &isnull);
	if (!tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &row->gtid))
		memset(&row->gtid, 0, sizeof(row->gtid));
	datum = slot_getattr(slot, DECISION_PARTICIPANTS, &isnull);
	deconstruct_array(DatumGetArrayTypeP(datum), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, NULL, &row->nparticipants);
	row->participants = palloc(sizeof(char *) * Max(row->nparticipants, 1));
	for (int i = 0; i < row->nparticipants; i++)
		row->participants[i] = TextDatumGetCString(elems[i]);
	datum = slot_getattr(slot, DECISION_USERS, &isnull);
	deconstruct_array(DatumGetArrayTypeP(datum), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, NULL, &nusers);
	row->users = palloc(sizeof(char *) * Max(row->nparticipants, 1));
	for (int i = 0; i < row->nparticipants; i++)
		row->users[i] = i < nusers ? TextDatumGetCString(elems[i]) : "";
	row->acked = palloc0(sizeof(bool) * Max(row->nparticipants, 1));
	mark_names(row, DatumGetArrayTypeP(slot_getattr(slot, DECISION_ACKED,
													&isnull)), row->acked);
	row->decided_at =
		DatumGetTimestampTz(slot_getattr(slot, DECISION_DECIDED_AT, &isnull));
	datum = slot_getattr(slot, DECISION_GID, &isnull);
	row->gid = isnull ? NULL : TextDatumGetCString(datum);
	row->enlisted = palloc0(sizeof(bool) * Max(row->nparticipants, 1));
	datum = slot_getattr(slot, DECISION_ENLISTED, &isnull);
	if (!isnull)
		mark_names(row, DatumGetArrayTypeP(datum), row->enlisted);
}

/*
 * tpc_decision_probe: the row of a transaction, read dirty: IN_PROGRESS while
 * its transaction is prepared (or a backend commits it).  row may be NULL.
 */
TpcRowState
tpc_decision_probe(const TpcGtid *gtid, TpcDecisionRow *row)
{
	Relation	rel = tpc_relation_open("decision", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;
	pg_uuid_t	uuid;
	TpcRowState state;

	ScanKeyInit(&key, DECISION_GTID, BTEqualStrategyNumber, F_UUID_EQ,
				gtid_datum(gtid, &uuid));
	state = tpc_relation_probe(rel, "decision_pkey", &key, 1, slot);
	if (state != TPC_ROW_NONE && row != NULL)
		row_from_slot(slot, row);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return state;
}

/* tpc_decision_each: call visit for each row, read dirty. */
void
tpc_decision_each(void (*visit) (const TpcDecisionRow *row, TpcRowState state,
								 void *arg),
				  void *arg)
{
	Relation	rel = tpc_relation_open("decision", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TpcDirtyScan scan;
	TpcRowState state;

	tpc_relation_begin_dirty(&scan, rel, "decision_pkey");
	while ((state = tpc_relation_next_dirty(&scan, slot)) != TPC_ROW_NONE)
	{
		TpcDecisionRow row;

		row_from_slot(slot, &row);
		visit(&row, state, arg);
		CHECK_FOR_INTERRUPTS();
	}
	tpc_relation_end_dirty(&scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * scan_decisions: the rows a snapshot taken now sees, as TpcDecisionRow *; key
 * NULL for all rows, before 0 for all times, skip NULL for none to leave out.
 */
static List *
scan_decisions(ScanKey key, TimestampTz before,
			   bool (*skip) (const TpcGtid *gtid))
{
	Relation	rel = tpc_relation_open("decision", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *result = NIL;
	SysScanDesc scan;

	scan = systable_beginscan(rel,
							  key ? tpc_index_oid("decision_pkey") : InvalidOid,
							  key != NULL, snapshot, key ? 1 : 0, key);
	for (;;)
	{
		HeapTuple	tuple = systable_getnext(scan);
		TpcDecisionRow *row;

		if (!HeapTupleIsValid(tuple))
			break;
		CHECK_FOR_INTERRUPTS();
		ExecForceStoreHeapTuple(tuple, slot, false);
		if (skip != NULL)
		{
			bool		isnull;
			Datum		datum = slot_getattr(slot, DECISION_GTID, &isnull);
			TpcGtid		gtid;

			if (tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &gtid) &&
				skip(&gtid))
				continue;
		}
		row = palloc(sizeof(TpcDecisionRow));
		row_from_slot(slot, row);
		if (before == 0 || row->decided_at <= before)
			result = lappend(result, row);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * tpc_decision_lookup: whether a snapshot taken now sees the row; if row is
 * given, what it says.
 */
bool
tpc_decision_lookup(const TpcGtid *gtid, TpcDecisionRow *row)
{
	ScanKeyData key;
	pg_uuid_t	uuid;
	List	   *rows;

	ScanKeyInit(&key, DECISION_GTID, BTEqualStrategyNumber, F_UUID_EQ,
				gtid_datum(gtid, &uuid));
	rows = scan_decisions(&key, 0, NULL);
	if (rows == NIL)
		return false;
	if (row != NULL)
		*row = *(TpcDecisionRow *) linitial(rows);
	return true;
}

/*
 * tpc_decision_list: rows decided no later than before (0: any time) that skip
 * (if given) does not leave out, as TpcDecisionRow *.
 */
List *
tpc_decision_list(TimestampTz before, bool (*skip) (const TpcGtid *gtid))
{
	return scan_decisions(NULL, before, skip);
}

/*
 * tpc_decision_note_acks: who has acknowledged, in the row, for one that has
 * been waiting for others; in the current transaction.
 */
void
tpc_decision_note_acks(const TpcGtid *gtid, char **participants,
					   const bool *acked, int n)
{
	Oid			types[2] = {UUIDOID, TEXTARRAYOID};
	Datum		values[2];
	pg_uuid_t	uuid;
	char	  **names = palloc(sizeof(char *) * Max(n, 1));
	int			nnames = 0;

	for (int i = 0; i < n; i++)
	{
		if (acked[i])
			names[nnames++] = participants[i];
	}
	values[0] = gtid_datum(gtid, &uuid);
	values[1] = PointerGetDatum(text_array(names, nnames));
	(void) tpc_spi_run("UPDATE tpc_amqp.decision SET acked = $2"
					   " WHERE gtid OPERATOR(pg_catalog.=) $1",
					   2, types, values, NULL, false, SPI_OK_UPDATE);
}

/*
 * tpc_decision_delete: forget, and remember up to where has been forgotten.
 *
 * Step C7.  The caller knows that all participants have acknowledged.  The
 * note (incarnation.forgotten) is what keeps outcome() from calling a
 * forgotten commit an abort; it is of the same statement as the deletes, and
 * only of what was there to delete.  Returns the number of rows deleted.
 */
uint64
tpc_decision_delete(const TpcGtid *gtids, int n)
{
	pg_uuid_t  *uuids = palloc(sizeof(pg_uuid_t) * n);
	Datum	   *elems = palloc(sizeof(Datum) * n);
	Oid			types[1] = {UUIDARRAYOID};
	Datum		values[1];
	uint64		deleted;
	TpcGtid    *high;
	int			nhigh = 0;

	for (int i = 0; i < n; i++)
		elems[i] = gtid_datum(&gtids[i], &uuids[i]);
	values[0] = PointerGetDatum(construct_array(elems, n, UUIDOID,
												UUID_LEN, false,
												TYPALIGN_CHAR));
	SPI_connect();
	tpc_spi_execute("DELETE FROM tpc_amqp.decision"
					" WHERE gtid OPERATOR(pg_catalog.=) ANY ($1)"
					" RETURNING gtid",
					1, types, values, NULL, false, SPI_OK_DELETE_RETURNING);
	deleted = SPI_processed;

	/* The highest of each incarnation; there are seldom two. */
	high = palloc(sizeof(TpcGtid) * Max(deleted, 1));
	for (uint64 i = 0; i < deleted; i++)
	{
		bool		isnull;
		Datum		datum = SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull);
		TpcGtid		gtid;
		int			k;

		if (!tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &gtid))
			continue;
		for (k = 0; k < nhigh; k++)
		{
			if (high[k].incarnation == gtid.incarnation)
				break;
		}
		if (k == nhigh)
			high[nhigh++] = gtid;
		else if (tpc_gtid_compare(&high[k], &gtid) < 0)
			high[k] = gtid;
	}
	for (int k = 0; k < nhigh; k++)
	{
		Oid			note_types[2] = {INT8OID, UUIDOID};
		Datum		note[2];
		pg_uuid_t	uuid;

		note[0] = Int64GetDatum((int64) high[k].incarnation);
		note[1] = gtid_datum(&high[k], &uuid);
		tpc_spi_execute("UPDATE tpc_amqp.incarnation SET forgotten = $2"
						" WHERE incarnation OPERATOR(pg_catalog.=) $1"
						" AND (forgotten IS NULL"
						" OR forgotten OPERATOR(pg_catalog.<) $2)",
						2, note_types, note, NULL, false, SPI_OK_UPDATE);
	}
	SPI_finish();
	return deleted;
}

/*
 * tpc_decision_delete_finished: forget, in the current transaction, what all
 * have acknowledged but is still kept for outcome().
 */
void
tpc_decision_delete_finished(void)
{
	TpcNode    *node;
	TpcGtid    *gtids = NULL;
	int			n = 0;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL && node->nfinished > 0)
	{
		TpcFinished *list = dsa_get_address(tpc_area(), node->finished);

		gtids = palloc_extended(sizeof(TpcGtid) * node->nfinished,
								MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
		for (int i = 0; gtids != NULL && i < node->nfinished; i++)
			gtids[n++] = list[i].gtid;
	}
	LWLockRelease(&tpc_shared->txns);
	LWLockRelease(&tpc_shared->control);
	if (n > 0)
		(void) tpc_decision_delete(gtids, n);
}

/*
 * tpc_decision_count_open: committed transactions that somebody has yet to
 * acknowledge.
 */
int
tpc_decision_count_open(void)
{
	return (int) tpc_spi_run("SELECT 1 FROM tpc_amqp.transactions"
							 " WHERE state OPERATOR(pg_catalog.=) 'committed'"
							 " AND missing OPERATOR(pg_catalog.<>) '{}'",
							 0, NULL, NULL, NULL, true, SPI_OK_SELECT);
}

/*
 * tpc_decision_check_name: raise if this database has decisions that went out
 * under another node name than the given one: participants know their
 * transaction by that name.
 */
void
tpc_decision_check_name(const char *name)
{
	Oid			types[2] = {NUMERICOID, OIDOID};
	Datum		values[2];
	char	   *other = NULL;

	SPI_connect();
	values[0] = system_identifier();
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	tpc_spi_execute("SELECT node FROM tpc_amqp.incarnation"
					" WHERE system_identifier OPERATOR(pg_catalog.=) $1"
					" AND database OPERATOR(pg_catalog.=) $2"
					" AND EXISTS (SELECT 1 FROM tpc_amqp.decision"
					" WHERE participants OPERATOR(pg_catalog.<>) '{}')"
					" ORDER BY incarnation DESC LIMIT 1",
					2, types, values, NULL, true, SPI_OK_SELECT);
	if (SPI_processed == 1)
		other = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (other != NULL && strcmp(other, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("node \"%s\" has committed transactions that are not acknowledged by all",
						other),
				 errhint("Attach as \"%s\" until view tpc_amqp.transactions is empty.  If this is a physical copy of that node, which runs elsewhere, empty table tpc_amqp.decision instead.",
						 other)));
	SPI_finish();
}

/*
 * Whether this history has the incarnation, as one of this very database (not
 * of one it was copied from); its timeline and forgotten.
 */
static bool
incarnation_lookup(uint64 incarnation, TimeLineID *timeline,
				   TpcGtid *forgotten)
{
	Relation	rel = tpc_relation_open("incarnation", AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	memset(forgotten, 0, sizeof(*forgotten));
	ScanKeyInit(&key, INCARNATION_INCARNATION, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum((int64) incarnation));
	scan = systable_beginscan(rel, tpc_index_oid("incarnation_pkey"), true,
							  NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum;

		datum = heap_getattr(tuple, INCARNATION_SYSTEM,
							 RelationGetDescr(rel), &isnull);
		found = DatumGetBool(DirectFunctionCall2(numeric_eq, datum,
												 system_identifier()));
		datum = heap_getattr(tuple, INCARNATION_DATABASE,
							 RelationGetDescr(rel), &isnull);
		found = found && DatumGetObjectId(datum) == MyDatabaseId;
		datum = heap_getattr(tuple, INCARNATION_TIMELINE,
							 RelationGetDescr(rel), &isnull);
		*timeline = (TimeLineID) DatumGetInt64(datum);
		datum = heap_getattr(tuple, INCARNATION_FORGOTTEN,
							 RelationGetDescr(rel), &isnull);
		if (!isnull)
			(void) tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, forgotten);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * tpc_decision_delete_foreign: drop, in the current transaction, rows that came
 * with a copy of another database.  The original has them, and answers for
 * them.
 */
void
tpc_decision_delete_foreign(void)
{
	List	   *rows = tpc_decision_list(0, NULL);
	ListCell   *lc;
	Oid			types[1] = {UUIDOID};

	SPI_connect();
	foreach(lc, rows)
	{
		TpcDecisionRow *row = lfirst(lc);
		TimeLineID	timeline;
		TpcGtid		forgotten;
		pg_uuid_t	uuid;
		Datum		values[1];

		if (incarnation_lookup(row->gtid.incarnation, &timeline, &forgotten))
			continue;
		values[0] = gtid_datum(&row->gtid, &uuid);
		tpc_spi_execute("DELETE FROM tpc_amqp.decision"
						" WHERE gtid OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, false, SPI_OK_DELETE);
	}
	SPI_finish();
}

/*
 * tpc_decision_outcome: what became of a transaction of this node.
 *
 * The order of the look-ups is the protocol's (see TpcCoordinatorFacts and
 * the proof in src/README).  for_user: the asker may come after the
 * transaction was forgotten.
 */
TpcOutcome
tpc_decision_outcome(TpcNode *node, const TpcGtid *gtid, bool for_user)
{
	TpcCoordinatorFacts facts;
	TpcTxn	   *txn;
	TimeLineID	timeline = 0;
	TpcGtid		forgotten;
	TpcOutcome	outcome;

	memset(&facts, 0, sizeof(facts));

	/*
	 * 1: a live backend.  Nobody can rightly ask for a number that has not
	 * been given out; whoever does is not to get an answer to keep for later.
	 */
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	txn = tpc_txn_find(node->dbid, gtid);
	facts.live = txn != NULL &&
		(txn->state == TPC_TXN_ACTIVE || txn->state == TPC_TXN_PREPARING);
	if (gtid->incarnation == pg_atomic_read_u64(&node->incarnation) &&
		gtid->sequence > pg_atomic_read_u64(&node->sequence))
		facts.live = true;
	LWLockRelease(&tpc_shared->txns);
	if (facts.live)
		return tpc_protocol_outcome(&facts);

	/* 2: prepared here */
	facts.prepared = tpc_decision_probe(gtid, NULL) == TPC_ROW_IN_PROGRESS;
	if (facts.prepared)
		return tpc_protocol_outcome(&facts);

	/* 3: the record; 4: none, so what the history says */
	facts.recorded = tpc_decision_lookup(gtid, NULL);
	facts.incarnation_known =
		incarnation_lookup(gtid->incarnation, &timeline, &forgotten);
	facts.same_timeline = timeline == node->timeline;
	facts.presume_anyway = tpc_failover_presumes_abort;
	outcome = tpc_protocol_outcome(&facts);

	if (for_user)
		outcome = tpc_protocol_outcome_for_user(outcome,
												!facts.incarnation_known ||
												tpc_gtid_compare(gtid, &forgotten) <= 0);
	return outcome;
}

/*
 * tpc_decision_floor: below which all transactions of this node are closed.
 *
 * Order matters as it does for outcomes: the next number first, then the live
 * ones, then the table (whose rows in progress are prepared transactions or
 * live ones seen before).
 */
void
tpc_decision_floor(TpcNode *node, TpcGtid *floor)
{
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;
	Relation	rel;
	TupleTableSlot *slot;

	/*
	 * Numbers are drawn under txns together with the entry being made, so
	 * whoever has a lower one than this has an entry or is finished.
	 */
	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	floor->incarnation = pg_atomic_read_u64(&node->incarnation);
	floor->sequence = pg_atomic_read_u64(&node->sequence) + 1;
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		if (txn->key.dbid == node->dbid && !txn->done &&
			tpc_gtid_compare(&txn->key.gtid, floor) < 0)
			*floor = txn->key.gtid;
	}
	LWLockRelease(&tpc_shared->txns);

	rel = tpc_relation_open("decision", AccessShareLock);
	slot = table_slot_create(rel, NULL);
	if (tpc_relation_probe(rel, "decision_pkey", NULL, 0, slot) !=
		TPC_ROW_NONE)
	{
		bool		isnull;
		Datum		datum = slot_getattr(slot, DECISION_GTID, &isnull);
		TpcGtid		gtid;

		if (tpc_gtid_from_bytes(DatumGetUUIDP(datum)->data, &gtid) &&
			tpc_gtid_compare(&gtid, floor) < 0)
			*floor = gtid;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * tpc_incarnation_last_node: the name of the node this database has been last;
 * NULL if it has been none.
 */
char *
tpc_incarnation_last_node(void)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *name = NULL;

	SPI_connect();
	tpc_spi_execute("SELECT node FROM tpc_amqp.incarnation"
					" ORDER BY incarnation DESC LIMIT 1",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	if (SPI_processed == 1)
		name = MemoryContextStrdup(caller,
								   SPI_getvalue(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return name;
}

/*
 * tpc_incarnation_start: begin a new incarnation in the current transaction.
 *
 * It is higher than any before in this history, and (by its random part) not
 * one that a lost history may have used.  The clock only makes it likely to
 * be higher than those of lost histories, which nothing rests on.  The caller
 * commits, flushed, before a number of this incarnation is given out.
 */
uint64
tpc_incarnation_start(const char *name, TimeLineID *timeline)
{
	Oid			types[6] = {INT8OID, TEXTOID, NUMERICOID, OIDOID, INT8OID,
	TIMESTAMPTZOID};
	Datum		values[6];
	uint64		incarnation;
	uint64		last = 0;
	uint16		noise;
	TimestampTz now = GetCurrentTimestamp();

	*timeline = GetWALInsertionTimeLine();

	SPI_connect();
	tpc_spi_execute("SELECT pg_catalog.max(incarnation) FROM tpc_amqp.incarnation",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	if (SPI_processed == 1)
	{
		bool		isnull;
		Datum		datum = SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			last = (uint64) DatumGetInt64(datum);
	}

	if (!pg_strong_random(&noise, sizeof(noise)))
		elog(ERROR, "could not get random bytes");
	/* 48 bits of milliseconds since 1970, 12 bits of noise */
	incarnation = ((uint64) (now / 1000 +
							 ((int64) POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
							 SECS_PER_DAY * 1000) << 12) | (noise & 0xFFF);
	incarnation &= (UINT64CONST(1) << TPC_INCARNATION_BITS) - 1;
	if (incarnation <= last)
		incarnation = last + 1 + (noise & 0xFFF);

	values[0] = Int64GetDatum((int64) incarnation);
	values[1] = CStringGetTextDatum(name);
	values[2] = system_identifier();
	values[3] = ObjectIdGetDatum(MyDatabaseId);
	values[4] = Int64GetDatum((int64) *timeline);
	values[5] = TimestampTzGetDatum(now);
	tpc_spi_execute("INSERT INTO tpc_amqp.incarnation"
					" VALUES ($1, $2, $3, $4, $5, $6)",
					6, types, values, NULL, false, SPI_OK_INSERT);
	SPI_finish();
	return incarnation;
}
