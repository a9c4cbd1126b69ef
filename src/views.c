/*-------------------------------------------------------------------------
 *
 * views.c
 *	  What the views show of shared memory.
 *
 * Each function copies what it needs while holding the lock that it is under,
 * and makes rows of the copy: filling a tuplestore can write files, and must
 * not keep the messenger waiting.  Of a database that is not attached there
 * is nothing to show.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "branch.h"
#include "compat.h"
#include "gid.h"
#include "message.h"
#include "node.h"
#include "publish.h"
#include "report.h"
#include "shmem.h"

static void
put_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static Datum
int4_array(const int *numbers, int n)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elems[i] = Int32GetDatum(numbers[i]);
	return PointerGetDatum(construct_array(elems, n, INT4OID, sizeof(int32),
										   true, TYPALIGN_INT));
}

static Datum
text_array(List *strings)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(list_length(strings), 1));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, strings)
		elems[n++] = CStringGetTextDatum(lfirst(lc));
	return PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * foreign_text: text of fixed size that came from elsewhere, and may have been
 * cut within a character.
 */
static Datum
foreign_text(const char *s)
{
	int			len = pg_encoding_verifymbstr(GetDatabaseEncoding(), s,
											  strlen(s));

	return PointerGetDatum(cstring_to_text_with_len(s, len));
}

static const char *
node_state_name(const TpcNode *node)
{
	switch (node->state)
	{
		case TPC_NODE_FREE:
			break;
		case TPC_NODE_ATTACHING:
			return "attaching";
		case TPC_NODE_STOPPING:
			return "stopping";
		case TPC_NODE_ATTACHED:
			if (node->paused_by != 0)
				return "paused";
			switch (node->link)
			{
				case TPC_LINK_CONNECTING:
					return "connecting";
				case TPC_LINK_UP:
					return "connected";
				case TPC_LINK_DOWN:
					return "disconnected";
			}
			break;
	}
	return "unknown";
}

/*
 * tpc_node_state() returns setof record: this database as a node, or no row.
 */
PG_FUNCTION_INFO_V1(tpc_node_state);
Datum
tpc_node_state(PG_FUNCTION_ARGS)
{
	TpcNode    *node;
	char		name[TPC_NODE_SIZE];
	const char *state;
	char		broker[sizeof(node->broker)];
	char		last_error[sizeof(node->last_error)];
	TimestampTz connected_since;
	TimestampTz last_error_at;
	bool		blocked;
	uint64		incarnation;
	TimeLineID	timeline;
	int			messenger_pid;
	int			prepare_pids[TPC_MAX_PREPARE_WORKERS];
	int			resolve_pids[TPC_MAX_RESOLVE_WORKERS];
	int			nprepare = 0;
	int			nresolve = 0;
	Datum		values[12];
	bool		nulls[12] = {false};
	int			i = 0;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node == NULL)
	{
		LWLockRelease(&tpc_shared->control);
		return (Datum) 0;
	}
	strlcpy(name, node->name, sizeof(name));
	state = node_state_name(node);
	strlcpy(broker, node->broker, sizeof(broker));
	connected_since = node->link == TPC_LINK_UP ? node->connected_since : 0;
	blocked = node->link == TPC_LINK_UP &&
		(node->blocked || node->publish_blocked);
	strlcpy(last_error, node->last_error, sizeof(last_error));
	last_error_at = node->last_error_at;
	incarnation = pg_atomic_read_u64(&node->incarnation);
	timeline = node->timeline;
	messenger_pid = node->messenger.pid;
	for (int n = 0; n < TPC_MAX_PREPARE_WORKERS; n++)
	{
		if (node->prepare[n].pid != 0)
			prepare_pids[nprepare++] = node->prepare[n].pid;
	}
	for (int n = 0; n < TPC_MAX_RESOLVE_WORKERS; n++)
	{
		if (node->resolve[n].pid != 0)
			resolve_pids[nresolve++] = node->resolve[n].pid;
	}
	LWLockRelease(&tpc_shared->control);

	values[i++] = CStringGetTextDatum(name);
	values[i++] = CStringGetTextDatum(state);
	nulls[i] = broker[0] == '\0';
	values[i++] = foreign_text(broker);
	nulls[i] = connected_since == 0;
	values[i++] = TimestampTzGetDatum(connected_since);
	values[i++] = BoolGetDatum(blocked);
	nulls[i] = last_error[0] == '\0';
	values[i++] = foreign_text(last_error);
	nulls[i] = last_error[0] == '\0' || last_error_at == 0;
	values[i++] = TimestampTzGetDatum(last_error_at);
	nulls[i] = incarnation == 0;
	values[i++] = Int64GetDatum((int64) incarnation);
	nulls[i] = incarnation == 0;
	values[i++] = Int64GetDatum((int64) timeline);
	nulls[i] = messenger_pid == 0;
	values[i++] = Int32GetDatum(messenger_pid);
	values[i++] = int4_array(prepare_pids, nprepare);
	values[i++] = int4_array(resolve_pids, nresolve);
	put_row(fcinfo, values, nulls);

	return (Datum) 0;
}

static const char *
txn_state_name(TpcTxnState state)
{
	switch (state)
	{
		case TPC_TXN_ACTIVE:
			return "active";
		case TPC_TXN_PREPARING:
			return "preparing";
		case TPC_TXN_PREPARED:
			return "prepared";
		case TPC_TXN_COMMITTED:
			return "committed";
		case TPC_TXN_ABORTED:
			return "aborting";
	}
	return "unknown";
}

/* Whether the transaction waits for this participant. */
static bool
is_missing(const TpcTxn *txn, const TpcParticipant *part)
{
	if (part->dropped)
		return false;
	switch (txn->state)
	{
		case TPC_TXN_PREPARING:
		case TPC_TXN_PREPARED:
			return part->vote == TPC_PART_WAITING;
		case TPC_TXN_COMMITTED:
			return part->vote != TPC_PART_READ_ONLY && !part->acked;
		case TPC_TXN_ACTIVE:
		case TPC_TXN_ABORTED:
			break;
	}
	return false;
}

/* A transaction, copied. */
typedef struct TxnRow
{
	TpcTxn		txn;
	List	   *participants;	/* of char *, as below */
	List	   *missing;
} TxnRow;

/*
 * copy_txns: the transactions of this database, as TxnRow *.
 *
 * Lists of participants are the messenger's to free once it has removed the
 * entry, so they are read under the lock, too.
 */
static List *
copy_txns(void)
{
	dsa_area   *area = tpc_area();
	List	   *result = NIL;
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		TxnRow	   *row;
		TpcParticipant *parts;

		if (txn->key.dbid != MyDatabaseId)
			continue;
		row = palloc0(sizeof(TxnRow));
		row->txn = *txn;
		result = lappend(result, row);
		if (!DsaPointerIsValid(txn->participants))
			continue;
		parts = dsa_get_address(area, txn->participants);
		for (int i = 0; i < txn->nparticipants; i++)
		{
			char	   *name = pstrdup(parts[i].node);

			row->participants = lappend(row->participants, name);
			if (is_missing(txn, &parts[i]))
				row->missing = lappend(row->missing, name);
		}
	}
	LWLockRelease(&tpc_shared->txns);
	return result;
}

/* In the order they were begun. */
static int
compare_txn_rows(const ListCell *a, const ListCell *b)
{
	return tpc_gtid_compare(&((TxnRow *) lfirst(a))->txn.key.gtid,
							&((TxnRow *) lfirst(b))->txn.key.gtid);
}

/*
 * tpc_live_transactions() returns setof record: the transactions this node
 * coordinates and has in memory.
 */
PG_FUNCTION_INFO_V1(tpc_live_transactions);
Datum
tpc_live_transactions(PG_FUNCTION_ARGS)
{
	TpcNode    *node;
	TpcGlobalId id;
	List	   *rows;
	ListCell   *lc;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);

	memset(&id, 0, sizeof(id));
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL)
		strlcpy(id.coordinator, node->name, sizeof(id.coordinator));
	LWLockRelease(&tpc_shared->control);
	if (node == NULL)
		return (Datum) 0;

	rows = copy_txns();
	list_sort(rows, compare_txn_rows);
	foreach(lc, rows)
	{
		TxnRow	   *row = lfirst(lc);
		TpcTxnState state = row->txn.state;
		char		gtid[TPC_GTID_TEXT_SIZE];
		Datum		values[8];
		bool		nulls[8] = {false};
		int			i = 0;

		id.gtid = row->txn.key.gtid;
		tpc_gtid_to_text(&id, gtid);
		values[i++] = CStringGetTextDatum(gtid);
		values[i++] = CStringGetTextDatum(txn_state_name(state));
		nulls[i] = state == TPC_TXN_ACTIVE;
		values[i++] = text_array(row->participants);
		nulls[i] = state == TPC_TXN_ACTIVE;
		values[i++] = Int32GetDatum(row->txn.nvotes);
		nulls[i] = state == TPC_TXN_ACTIVE || state == TPC_TXN_ABORTED;
		values[i++] = text_array(row->missing);
		values[i++] = TimestampTzGetDatum(row->txn.started);
		nulls[i] = state != TPC_TXN_COMMITTED || row->txn.decided_at == 0;
		values[i++] = TimestampTzGetDatum(row->txn.decided_at);
		nulls[i] = row->txn.pid == 0;
		values[i++] = Int32GetDatum(row->txn.pid);
		put_row(fcinfo, values, nulls);
	}

	return (Datum) 0;
}

/* A participant, copied. */
typedef struct ParticipantRow
{
	TpcGtid		gtid;
	TpcParticipant part;
	char	   *reason;			/* body of the vote, or NULL */
} ParticipantRow;

static const char *
vote_name(TpcVoteState vote)
{
	switch (vote)
	{
		case TPC_PART_WAITING:
			return "waiting";
		case TPC_PART_YES:
			return "yes";
		case TPC_PART_READ_ONLY:
			return "read-only";
		case TPC_PART_NO:
			return "no";
		case TPC_PART_RETURNED:
			return "unknown node";
	}
	return "unknown";
}

/* Those of this database's transactions, as ParticipantRow *. */
static List *
copy_participants(void)
{
	dsa_area   *area = tpc_area();
	List	   *result = NIL;
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		TpcParticipant *parts;

		if (txn->key.dbid != MyDatabaseId ||
			!DsaPointerIsValid(txn->participants))
			continue;
		parts = dsa_get_address(area, txn->participants);
		for (int i = 0; i < txn->nparticipants; i++)
		{
			ParticipantRow *row;

			if (parts[i].dropped)
				continue;
			row = palloc0(sizeof(ParticipantRow));
			row->gtid = txn->key.gtid;
			row->part = parts[i];
			if (DsaPointerIsValid(parts[i].reason))
				row->reason = pnstrdup(dsa_get_address(area, parts[i].reason),
									   parts[i].reason_len);
			result = lappend(result, row);
		}
	}
	LWLockRelease(&tpc_shared->txns);
	return result;
}

static int
compare_participants(const ListCell *a, const ListCell *b)
{
	const ParticipantRow *row_a = lfirst(a);
	const ParticipantRow *row_b = lfirst(b);
	int			result = tpc_gtid_compare(&row_a->gtid, &row_b->gtid);

	return result != 0 ? result :
		strcmp(row_a->part.node, row_b->part.node);
}

/* What handlers have returned, NULL for one that returned nothing. */
static Datum
results_array(char **results, int n)
{
	Datum	   *elems = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	int			dims[1] = {n};
	int			lbs[1] = {1};

	for (int i = 0; i < n; i++)
	{
		nulls[i] = results[i] == NULL;
		elems[i] = nulls[i] ? (Datum) 0 :
			CStringGetTextDatum(tpc_report_to_server(results[i]));
	}
	return PointerGetDatum(construct_md_array(elems, nulls, 1, dims, lbs,
											  TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/* The GID of a coordinator's own prepared transaction, or NULL. */
static const char *
gid_of(List *gids, const TpcGtid *gtid)
{
	ListCell   *lc;

	foreach(lc, gids)
	{
		TpcGid	   *entry = lfirst(lc);

		if (entry->has_txn && tpc_gtid_compare(&entry->txn, gtid) == 0)
			return entry->key.gid;
	}
	return NULL;
}

/*
 * tpc_live_participants() returns setof record: the participants of the
 * transactions this node coordinates and has in memory, and their votes.
 */
PG_FUNCTION_INFO_V1(tpc_live_participants);
Datum
tpc_live_participants(PG_FUNCTION_ARGS)
{
	TpcLocalNode local;
	TpcGlobalId id;
	List	   *rows;
	List	   *gids;
	ListCell   *lc;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	if (!tpc_local_node_read(&local))
		return (Datum) 0;
	memset(&id, 0, sizeof(id));
	strlcpy(id.coordinator, local.name, sizeof(id.coordinator));

	rows = copy_participants();
	gids = tpc_gid_list(TPC_GID_PREPARED);
	list_sort(rows, compare_participants);
	foreach(lc, rows)
	{
		ParticipantRow *row = lfirst(lc);
		char		gtid[TPC_GTID_TEXT_SIZE];
		const char *gid = gid_of(gids, &row->gtid);
		TpcMessage	msg;
		const char *why;
		bool		says_why;
		Datum		values[9];
		bool		nulls[9] = {false};
		int			i = 0;

		memset(&msg, 0, sizeof(msg));
		msg.type = TPC_MSG_VOTE;
		if (row->reason == NULL ||
			!tpc_message_decode_body(row->reason, strlen(row->reason), &msg,
									 &why))
			memset(&msg, 0, sizeof(msg));
		says_why = msg.error.message != NULL;

		id.gtid = row->gtid;
		tpc_gtid_to_text(&id, gtid);
		values[i++] = CStringGetTextDatum(gtid);
		nulls[i] = gid == NULL;
		values[i++] = gid != NULL ? CStringGetTextDatum(gid) : (Datum) 0;
		values[i++] = CStringGetTextDatum(row->part.node);
		values[i++] = CStringGetTextDatum(row->part.enlisted ? "enlisted" :
										  "called");
		values[i++] = CStringGetTextDatum(vote_name(row->part.vote));
		nulls[i] = !says_why;
		values[i++] = says_why ? CStringGetTextDatum(msg.error.sqlstate) :
			(Datum) 0;
		nulls[i] = !says_why;
		values[i++] = says_why ?
			CStringGetTextDatum(tpc_report_to_server(msg.error.message)) :
			(Datum) 0;
		nulls[i] = msg.nresults == 0;
		values[i++] = msg.nresults > 0 ?
			results_array(msg.results, msg.nresults) : (Datum) 0;
		values[i++] = BoolGetDatum(row->part.acked);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

/*
 * tpc_finished_transactions(OUT gtid uuid) returns setof uuid
 *
 * The committed transactions that all have acknowledged.
 */
PG_FUNCTION_INFO_V1(tpc_finished_transactions);
Datum
tpc_finished_transactions(PG_FUNCTION_ARGS)
{
	TpcNode    *node;
	TpcFinished *list = NULL;
	int			n = 0;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	/* Outside of the lock for the room, inside again for the list. */
	for (;;)
	{
		int			room = n;

		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		LWLockAcquire(&tpc_shared->txns, LW_SHARED);
		node = tpc_node_find(MyDatabaseId);
		n = node != NULL ? node->nfinished : 0;
		if (n > 0 && n <= room)
			memcpy(list, dsa_get_address(tpc_area(), node->finished),
				   sizeof(TpcFinished) * n);
		LWLockRelease(&tpc_shared->txns);
		LWLockRelease(&tpc_shared->control);
		if (n <= room)
			break;
		n += 100;
		list = palloc_extended(sizeof(TpcFinished) * n, MCXT_ALLOC_HUGE);
	}

	for (int i = 0; i < n; i++)
	{
		pg_uuid_t	uuid;
		Datum		values[1];
		bool		nulls[1] = {false};

		tpc_gtid_to_bytes(&list[i].gtid, uuid.data);
		values[0] = UUIDPGetDatum(&uuid);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

/*
 * tpc_gtid_text(gtid uuid) returns text
 *
 * A transaction of this node, as gtid() shows it; NULL if this database is
 * no node, or the uuid is none of a transaction.
 */
PG_FUNCTION_INFO_V1(tpc_gtid_text);
Datum
tpc_gtid_text(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *uuid = PG_GETARG_UUID_P(0);
	TpcLocalNode local;
	TpcGlobalId id;
	char		text[TPC_GTID_TEXT_SIZE];

	memset(&id, 0, sizeof(id));
	if (!tpc_gtid_from_bytes(uuid->data, &id.gtid) ||
		!tpc_local_node_read(&local))
		PG_RETURN_NULL();
	strlcpy(id.coordinator, local.name, sizeof(id.coordinator));
	tpc_gtid_to_text(&id, text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

/* A branch, copied. */
typedef struct BranchRow
{
	TpcGlobalId id;
	const char *state;
	const char *gid;			/* NULL: has none yet */
	TimestampTz since;
	int			pid;			/* 0: nobody's */
} BranchRow;

/* Of this database, as BranchRow *. */
static List *
copy_jobs(void)
{
	List	   *result = NIL;
	HASH_SEQ_STATUS seq;
	TpcJob	   *job;

	LWLockAcquire(&tpc_shared->jobs, LW_SHARED);
	hash_seq_init(&seq, tpc_jobs);
	while ((job = hash_seq_search(&seq)) != NULL)
	{
		BranchRow  *row;

		if (job->key.dbid != MyDatabaseId)
			continue;
		row = palloc0(sizeof(BranchRow));
		row->id = job->key.id;
		row->state = job->state == TPC_JOB_QUEUED ? "queued" : "running";
		row->since = job->received;
		row->pid = job->state == TPC_JOB_RUNNING ? job->pid : 0;
		result = lappend(result, row);
	}
	LWLockRelease(&tpc_shared->jobs);
	return result;
}

static int
compare_ids(const TpcGlobalId *a, const TpcGlobalId *b)
{
	int			result = strcmp(a->coordinator, b->coordinator);

	return result != 0 ? result : tpc_gtid_compare(&a->gtid, &b->gtid);
}

/* By id; of those with the same, the prepared one first. */
static int
compare_branch_rows(const ListCell *a, const ListCell *b)
{
	const BranchRow *row_a = lfirst(a);
	const BranchRow *row_b = lfirst(b);
	int			result = compare_ids(&row_a->id, &row_b->id);

	return result != 0 ? result :
		(row_a->gid == NULL) - (row_b->gid == NULL);
}

/*
 * tpc_live_branches() returns setof record: the branches of this node that
 * are queued, running or prepared.
 */
PG_FUNCTION_INFO_V1(tpc_live_branches);
Datum
tpc_live_branches(PG_FUNCTION_ARGS)
{
	TpcLocalNode local;
	List	   *rows;
	ListCell   *lc;
	const BranchRow *previous = NULL;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);

	if (!tpc_local_node_read(&local))
		return (Datum) 0;

	/*
	 * In this order, a branch that is being prepared meanwhile is found twice
	 * rather than not at all.
	 */
	rows = copy_jobs();
	foreach(lc, list_concat(tpc_branch_prepared(local.name),
							tpc_gid_joined()))
	{
		TpcPreparedBranch *branch = lfirst(lc);
		BranchRow  *row = palloc0(sizeof(BranchRow));

		row->id = branch->id;
		row->state = "prepared";
		row->gid = branch->gid;
		row->since = branch->prepared_at;
		rows = lappend(rows, row);
	}

	list_sort(rows, compare_branch_rows);
	foreach(lc, rows)
	{
		BranchRow  *row = lfirst(lc);
		char		gtid[TPC_GTID_TEXT_SIZE];
		Datum		values[6];
		bool		nulls[6] = {false};
		int			i = 0;

		if (previous != NULL && compare_ids(&previous->id, &row->id) == 0)
			continue;
		previous = row;

		tpc_gtid_to_text(&row->id, gtid);
		values[i++] = CStringGetTextDatum(gtid);
		values[i++] = CStringGetTextDatum(row->id.coordinator);
		values[i++] = CStringGetTextDatum(row->state);
		nulls[i] = row->gid == NULL;
		values[i++] = row->gid != NULL ? CStringGetTextDatum(row->gid) :
			(Datum) 0;
		values[i++] = TimestampTzGetDatum(row->since);
		nulls[i] = row->pid == 0;
		values[i++] = Int32GetDatum(row->pid);
		put_row(fcinfo, values, nulls);
	}

	return (Datum) 0;
}

/*
 * tpc_live_publications() returns setof record: messages of publish() that the
 * messenger has.  What has just been told of is a moment old.
 */
PG_FUNCTION_INFO_V1(tpc_live_publications);
Datum
tpc_live_publications(PG_FUNCTION_ARGS)
{
	int64	   *ids = palloc(sizeof(int64) * TPC_PUBLICATIONS);
	bool	   *sent = palloc(sizeof(bool) * TPC_PUBLICATIONS);
	int			n = 0;
	TpcNode    *node;
	dsa_pointer p = InvalidDsaPointer;

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	(void) tpc_area();

	/* Under the lock it stays. */
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL)
		p = pg_atomic_read_u64(&node->publications);
	if (DsaPointerIsValid(p))
	{
		TpcPublications *window = dsa_get_address(tpc_area(), p);

		for (int i = 0; i < TPC_PUBLICATIONS; i++)
		{
			TpcPublication *place = &window->places[i];
			uint32		state = pg_atomic_read_u32(&place->state);

			if (state == TPC_PUBLICATION_FREE)
				continue;
			ids[n] = place->id;
			sent[n++] = state != TPC_PUBLICATION_WAITING &&
				state != TPC_PUBLICATION_REJECTED &&
				state != TPC_PUBLICATION_OVERDUE;
		}
	}
	LWLockRelease(&tpc_shared->control);

	for (int i = 0; i < n; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {false};

		values[0] = Int64GetDatum(ids[i]);
		values[1] = CStringGetTextDatum(sent[i] ? "sent" : "waiting");
		put_row(fcinfo, values, nulls);
	}

	return (Datum) 0;
}

/*
 * tpc_node_stat() returns setof record: the counters, in the order of
 * TpcCounter, which is that of the columns; the last are sums of times.
 */
PG_FUNCTION_INFO_V1(tpc_node_stat);
Datum
tpc_node_stat(PG_FUNCTION_ARGS)
{
	TpcNode    *node;
	uint64		stat[TPC_STAT_NCOUNTERS];
	TimestampTz stat_reset;
	Datum		values[TPC_STAT_NCOUNTERS + 1];
	bool		nulls[TPC_STAT_NCOUNTERS + 1] = {false};

	tpc_shmem_require();
	InitMaterializedSRF(fcinfo, 0);

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	if (node == NULL)
	{
		LWLockRelease(&tpc_shared->control);
		return (Datum) 0;
	}
	for (int i = 0; i < TPC_STAT_NCOUNTERS; i++)
		stat[i] = pg_atomic_read_u64(&node->stat[i]);
	stat_reset = node->stat_reset;
	LWLockRelease(&tpc_shared->control);

	for (int i = 0; i < TPC_STAT_NCOUNTERS; i++)
	{
		if (i >= TPC_STAT_PREPARE_WAIT_US)
			values[i] = Float8GetDatum(stat[i] / 1000.0);
		else
			values[i] = Int64GetDatum((int64) stat[i]);
	}
	nulls[TPC_STAT_NCOUNTERS] = stat_reset == 0;
	values[TPC_STAT_NCOUNTERS] = TimestampTzGetDatum(stat_reset);
	put_row(fcinfo, values, nulls);

	return (Datum) 0;
}

/*
 * tpc_stat_reset() returns void
 *
 * What is counted at the same moment may be lost, or survive.
 */
PG_FUNCTION_INFO_V1(tpc_stat_reset);
Datum
tpc_stat_reset(PG_FUNCTION_ARGS)
{
	TpcNode    *node;

	tpc_shmem_require();

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node = tpc_node_find(MyDatabaseId);
	if (node != NULL)
	{
		for (int i = 0; i < TPC_STAT_NCOUNTERS; i++)
			pg_atomic_write_u64(&node->stat[i], 0);
		node->stat_reset = GetCurrentTimestamp();
	}
	LWLockRelease(&tpc_shared->control);

	PG_RETURN_VOID();
}
