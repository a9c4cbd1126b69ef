/*-------------------------------------------------------------------------
 *
 * gid.c
 *	  Prepared transactions that belong to global ones, by GID.
 *
 * COMMIT PREPARED names a GID that a driver chose.  Whether it is one of ours
 * has to be known at once, at no cost to those that are not, and while
 * nothing may be allocated: hence a table in shared memory.  What it says is
 * of no weight by itself.  The rows of branch and decision that ride in the
 * prepared transaction are the truth, and after a restart of the server it is
 * filled from them (tpc_gid_gather); until then, who needs to know reads them
 * (tpc_gid_lookup).
 *
 *	  (none) --claim--> PREPARING --set_prepared--> PREPARED
 *		 ^                  |                          |
 *		 +------drop--------+                    set_finished
 *		 |                                             v
 *		 +-----pushed out, or GID used again---- COMMITTED, ABORTED
 *
 * While it says PREPARED its GID cannot be claimed again, so that nobody who
 * has finished the transaction finds another's entry, or none.
 *
 * A finished one is kept as long as there is room, so that a driver that
 * commits what has been committed meanwhile hears that, and not that there is
 * no such transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "branch.h"
#include "decision.h"
#include "gid.h"
#include "relation.h"

static void
make_key(TpcGidKey *key, const char *gid)
{
	memset(key, 0, sizeof(*key));
	key->dbid = MyDatabaseId;
	strlcpy(key->gid, gid, sizeof(key->gid));
}

static bool
is_finished(const TpcGid *entry)
{
	return entry->state == TPC_GID_COMMITTED ||
		entry->state == TPC_GID_ABORTED;
}

/* The entry, or NULL.  The caller holds gids. */
static TpcGid *
find(const char *gid)
{
	TpcGidKey	key;

	make_key(&key, gid);
	return hash_search(tpc_gids, &key, HASH_FIND, NULL);
}

static void
remove_entry(TpcGid *entry)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->gids, LW_EXCLUSIVE));
	if (is_finished(entry))
		dlist_delete(&entry->link);
	hash_search(tpc_gids, &entry->key, HASH_REMOVE, NULL);
}

/*
 * Whether the table need not be complete for this database: its node is
 * starting, or there is none (any more), which can have left some.
 */
static bool
incomplete(void)
{
	TpcNode    *node;
	bool		complete;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	node = tpc_node_find(MyDatabaseId);
	complete = node != NULL && node->gids_known;
	LWLockRelease(&tpc_shared->control);
	return !complete;
}

/* tpc_gid_peek: what the table says of a GID in this database.  Never raises. */
bool
tpc_gid_peek(const char *gid, TpcGid *copy)
{
	TpcGid	   *entry;

	if (hash_get_num_entries(tpc_gids) == 0)
		return false;
	LWLockAcquire(&tpc_shared->gids, LW_SHARED);
	entry = find(gid);
	if (entry != NULL)
		*copy = *entry;
	LWLockRelease(&tpc_shared->gids);
	return entry != NULL;
}

/*
 * tpc_gid_lookup: what is known of a GID in this database.  Raises only where
 * it has to look into the tables.
 */
bool
tpc_gid_lookup(const char *gid, TpcGid *copy)
{
	if (tpc_gid_peek(gid, copy))
		return true;
	if (incomplete() && tpc_relation_exists("branch") &&
		OidIsValid(get_extension_oid("tpc_amqp", true)))
	{
		List	   *found;

		PushActiveSnapshot(GetTransactionSnapshot());
		found = tpc_gid_gather(gid);
		PopActiveSnapshot();
		if (found == NIL)
			return false;
		*copy = *(TpcGid *) linitial(found);
		return true;
	}
	return false;
}

/* Room for one more: the oldest finished one goes.  False if there is none. */
static bool
push_out(void)
{
	if (dlist_is_empty(&tpc_shared->finished_gids))
		return false;
	remove_entry(dlist_container(TpcGid, link,
								 dlist_head_node(&tpc_shared->finished_gids)));
	return true;
}

/* Put *entry there unless something is; NULL if there is no room. */
static TpcGid *
put(const TpcGid *entry, bool *found)
{
	TpcGid	   *new;

	Assert(LWLockHeldByMeInMode(&tpc_shared->gids, LW_EXCLUSIVE));
	new = hash_search(tpc_gids, &entry->key, HASH_ENTER_NULL, found);
	if (new == NULL && push_out())
		new = hash_search(tpc_gids, &entry->key, HASH_ENTER_NULL, found);
	if (new == NULL || *found)
		return new;
	*new = *entry;
	if (is_finished(new))
		dlist_push_tail(&tpc_shared->finished_gids, &new->link);
	return new;
}

/*
 * tpc_gid_claim: before PREPARE, while an error is harmless: *entry (without
 * database and state) is being prepared.  Raises 42710 if the GID is in use,
 * 53400 if there is no room.  Who claims it drops it if PREPARE fails.
 */
void
tpc_gid_claim(const TpcGid *entry)
{
	TpcGid		claim = *entry;
	bool		exists;
	TpcGid	   *there;
	bool		found;
	bool		in_use = false;

	make_key(&claim.key, entry->key.gid);
	claim.state = TPC_GID_PREPARING;

	exists = tpc_branch_gid_exists(claim.key.gid);

	/*
	 * One that says PREPARED stays, even if there is no such transaction any
	 * more: who has just finished it needs what it says.  Should he be gone,
	 * the lead sees to it.
	 */
	LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
	there = find(claim.key.gid);
	if (there != NULL && is_finished(there))
		remove_entry(there);
	there = put(&claim, &found);
	in_use = there != NULL && found;
	LWLockRelease(&tpc_shared->gids);

	if (in_use || exists)
	{
		if (!in_use)
			tpc_gid_drop(claim.key.gid, false);
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("transaction identifier \"%s\" is already in use",
						claim.key.gid)));
	}
	if (there == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many prepared global transactions"),
				 errhint("Increase \"max_prepared_transactions\".")));
}

/* tpc_gid_set_prepared: its PREPARE is durable.  Never raises. */
void
tpc_gid_set_prepared(const char *gid)
{
	TpcGid	   *entry;

	LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
	entry = find(gid);
	if (entry != NULL)
	{
		entry->state = TPC_GID_PREPARED;
		entry->since = GetCurrentTimestamp();
	}
	LWLockRelease(&tpc_shared->gids);
}

/*
 * tpc_gid_drop: forget it: its PREPARE failed; or, only_finished, its GID may
 * be in use again.  Never raises.
 */
void
tpc_gid_drop(const char *gid, bool only_finished)
{
	TpcGid	   *entry;

	LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
	entry = find(gid);
	if (entry != NULL && (!only_finished || is_finished(entry)))
		remove_entry(entry);
	LWLockRelease(&tpc_shared->gids);
}

/*
 * tpc_gid_set_finished: it has been committed or rolled back, durably; tell
 * who waits for that.  branch, txn: what it belongs to, as far as the caller
 * knows, or NULL; its GID may be in use again by now.  True, with a copy, if
 * it was there and was not known to be finished.  Never raises.
 */
bool
tpc_gid_set_finished(const char *gid, const TpcGlobalId *branch,
					 const TpcGtid *txn, bool committed, TpcGid *copy)
{
	TpcGid	   *entry;
	bool		was_there;

	if (hash_get_num_entries(tpc_gids) == 0)
		return false;
	LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
	entry = find(gid);
	was_there = entry != NULL && entry->state == TPC_GID_PREPARED &&
		(branch == NULL ||
		 (entry->has_branch &&
		  tpc_global_id_equal(&entry->branch, branch))) &&
		(txn == NULL ||
		 (entry->has_txn && tpc_gtid_compare(&entry->txn, txn) == 0));
	if (was_there)
	{
		entry->state = committed ? TPC_GID_COMMITTED : TPC_GID_ABORTED;
		dlist_push_tail(&tpc_shared->finished_gids, &entry->link);
		*copy = *entry;
	}
	LWLockRelease(&tpc_shared->gids);
	if (was_there)
		ConditionVariableBroadcast(&tpc_shared->gid_changed);
	return was_there;
}

/* tpc_gid_list: this database's in that state, as TpcGid *, copied. */
List *
tpc_gid_list(TpcGidState state)
{
	HASH_SEQ_STATUS seq;
	TpcGid	   *entry;
	List	   *result = NIL;

	if (hash_get_num_entries(tpc_gids) == 0)
		return NIL;
	LWLockAcquire(&tpc_shared->gids, LW_SHARED);
	hash_seq_init(&seq, tpc_gids);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		TpcGid	   *copy;

		if (entry->key.dbid != MyDatabaseId || entry->state != state)
			continue;
		copy = palloc(sizeof(TpcGid));
		*copy = *entry;
		result = lappend(result, copy);
	}
	LWLockRelease(&tpc_shared->gids);
	return result;
}

/*
 * tpc_gid_joined: the joined branches of this database that are prepared, as
 * TpcPreparedBranch *.
 */
List *
tpc_gid_joined(void)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, tpc_gid_list(TPC_GID_PREPARED))
	{
		TpcGid	   *entry = lfirst(lc);
		TpcPreparedBranch *branch;

		/* one under a GID of ours is known by that */
		if (!entry->has_branch || tpc_branch_gid_is_ours(entry->key.gid))
			continue;
		branch = palloc0(sizeof(TpcPreparedBranch));
		branch->id = entry->branch;
		strlcpy(branch->gid, entry->key.gid, sizeof(branch->gid));
		branch->prepared_at = entry->since;
		result = lappend(result, branch);
	}
	return result;
}

/* What gathering has found so far, in table found: TpcGid by key. */
typedef struct Gathering
{
	const char *only;			/* NULL: all */
	HTAB	   *found;
} Gathering;

/* The entry a row belongs to, or NULL if it is none to gather. */
static TpcGid *
entry_of_row(Gathering *g, const char *gid, TpcRowState state,
			 TimestampTz since)
{
	TpcGidKey	key;
	TpcGid	   *entry;
	bool		found;

	if (g->only != NULL && strcmp(gid, g->only) != 0)
		return NULL;
	make_key(&key, gid);
	entry = hash_search(g->found, &key, HASH_FIND, NULL);
	if (state == TPC_ROW_IN_PROGRESS)
		return entry;

	/* One whose GID is in use again tells nothing of who uses it now. */
	if (entry != NULL && entry->state == TPC_GID_PREPARED)
		return NULL;
	if (entry == NULL)
	{
		entry = hash_search(g->found, &key, HASH_ENTER, &found);
		memset((char *) entry + sizeof(TpcGidKey), 0,
			   sizeof(TpcGid) - sizeof(TpcGidKey));
	}
	entry->state = TPC_GID_COMMITTED;
	entry->since = since;
	return entry;
}

static void
gather_branch(const TpcGlobalId *id, const TpcBranchRow *row,
			  TpcRowState state, void *arg)
{
	TpcGid	   *entry;

	if (state == TPC_ROW_COMMITTED && tpc_branch_gid_is_ours(row->gid))
		return;
	entry = entry_of_row(arg, row->gid, state, row->prepared_at);
	if (entry == NULL)
		return;
	entry->has_branch = true;
	entry->branch = *id;
}

static void
gather_decision(const TpcDecisionRow *row, TpcRowState state, void *arg)
{
	TpcGid	   *entry;

	if (row->gid == NULL)
		return;
	entry = entry_of_row(arg, row->gid, state, row->decided_at);
	if (entry == NULL)
		return;
	entry->has_txn = true;
	entry->txn = row->gtid;
	/* a committed one's row of branch is left out: its GID says as much */
	if (tpc_branch_gid_parse(row->gid, NULL, &entry->branch))
		entry->has_branch = true;
	entry->votes_known = true;
	for (int i = 0; i < row->nparticipants; i++)
		entry->votes_known = entry->votes_known && row->users[i][0] != '\0';
}

/*
 * tpc_gid_gather: what the tables say, as TpcGid *: prepared transactions of
 * this database that have rows of ours, and committed ones that had a GID; of
 * one GID only if it is given.
 */
List *
tpc_gid_gather(const char *only)
{
	Gathering	g;
	HASHCTL		info;
	HASH_SEQ_STATUS seq;
	TpcGid	   *entry;
	List	   *result = NIL;
	bool		found;

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(TpcGidKey);
	info.entrysize = sizeof(TpcGid);
	info.hcxt = CurrentMemoryContext;
	g.only = only;
	g.found = hash_create("tpc_amqp gathered", 64, &info,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	SPI_connect();
	tpc_spi_execute("SELECT gid, prepared, ownerid FROM pg_catalog.pg_prepared_xact()"
					" WHERE dbid OPERATOR(pg_catalog.=) (SELECT oid FROM pg_catalog.pg_database"
					" WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())",
					0, NULL, NULL, NULL, true, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *gid = SPI_getvalue(tuple, desc, 1);
		bool		isnull;
		TpcGidKey	key;

		if (gid == NULL || (only != NULL && strcmp(gid, only) != 0))
			continue;
		make_key(&key, gid);
		entry = hash_search(g.found, &key, HASH_ENTER, &found);
		memset((char *) entry + sizeof(TpcGidKey), 0,
			   sizeof(TpcGid) - sizeof(TpcGidKey));
		entry->state = TPC_GID_PREPARED;
		entry->since = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2,
														 &isnull));
		entry->owner = DatumGetObjectId(SPI_getbinval(tuple, desc, 3,
													  &isnull));
	}
	SPI_finish();

	tpc_branch_each(gather_branch, &g);
	tpc_decision_each(gather_decision, &g);

	hash_seq_init(&seq, g.found);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		TpcGid	   *copy;

		/* neither: not ours; a branch under a GID of ours needs no entry */
		if (!entry->has_txn &&
			(!entry->has_branch || tpc_branch_gid_is_ours(entry->key.gid)))
			continue;
		copy = palloc(sizeof(TpcGid));
		*copy = *entry;
		result = lappend(result, copy);
	}
	hash_destroy(g.found);
	return result;
}

/*
 * tpc_gid_count_prepared: how many prepared transactions of this database have
 * rows of ours that their GID does not tell: joined branches, and transactions
 * of this node as coordinator.
 */
int
tpc_gid_count_prepared(void)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, tpc_gid_gather(NULL))
	{
		TpcGid	   *entry = lfirst(lc);

		if (entry->state == TPC_GID_PREPARED &&
			!tpc_branch_gid_is_ours(entry->key.gid))
			n++;
	}
	return n;
}

/*
 * tpc_gid_load: fill the table with what was gathered.  What is there already
 * was put there by a backend of this run of the server, and is newer.
 */
void
tpc_gid_load(List *gathered)
{
	ListCell   *lc;

	foreach(lc, gathered)
	{
		bool		found;

		LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
		(void) put(lfirst(lc), &found);
		LWLockRelease(&tpc_shared->gids);
	}
}

/* tpc_gid_clear: a database's, when it ends being a node. */
void
tpc_gid_clear(Oid dbid)
{
	HASH_SEQ_STATUS seq;
	TpcGid	   *entry;

	LWLockAcquire(&tpc_shared->gids, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_gids);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (entry->key.dbid == dbid && entry->state != TPC_GID_PREPARING)
			remove_entry(entry);
	}
	LWLockRelease(&tpc_shared->gids);
	ConditionVariableBroadcast(&tpc_shared->gid_changed);
}
