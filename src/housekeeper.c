/*-------------------------------------------------------------------------
 *
 * housekeeper.c
 *	  What the lead resolve worker does besides.
 *
 * It sends decisions again that nobody acknowledged, has branches in doubt
 * inquire, forgets what all have acknowledged, moves this node's floor, and
 * deletes branch rows below other nodes' floors.
 *
 * What it remembers between two turns (who has acknowledged, when to inquire
 * next) is its own memory: if it is lost, messages are sent once more than
 * needed, which every receiver stands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "branch.h"
#include "compat.h"
#include "decision.h"
#include "failpoint.h"
#include "gid.h"
#include "housekeeper.h"
#include "kind.h"
#include "prepared.h"
#include "resolve_worker.h"
#include "settings.h"
#include "worker.h"

/* Messages left for the messenger before we wait for it. */
#define OUTBOX_LIMIT		4000
#define FLOOR_INTERVAL_MS	1000
#define FORGET_CHUNK		1000
#define BACKOFF_LIMIT		12	/* times resolve_interval */

/* A committed transaction that has no entry in shared memory (any more). */
typedef struct Unacked
{
	TpcGtid		gtid;			/* key */
	int			nparticipants;
	int			nacked;
	bool		changed;		/* more than table decision says */
	bool		forgettable;	/* all acknowledged; in the list of finished */
	uint32		scan;			/* number of the scan that saw it last */
	TimestampTz next;			/* when to send it again */
	int			factor;			/* backoff */
	char	  **participants;	/* in its own chunk of keeper_context */
	char	  **users;			/* that voted for them */
	bool	   *acked;
} Unacked;

/* A branch in doubt that has inquired. */
typedef struct Inquiry
{
	char		gid[TPC_GID_SIZE];	/* key */
	TimestampTz next;
	int			factor;
	uint32		scan;			/* number of the scan that saw it last */
} Inquiry;

static TpcNode *node;
static MemoryContext keeper_context = NULL;
static MemoryContext turn_context = NULL;
static HTAB *unacked = NULL;
static HTAB *inquiries = NULL;
static uint32 seen_epoch = 0;
static uint32 seen_requests = 0;
static uint32 scan_number = 0;
static TimestampTz scanned_at = 0;
static TimestampTz looked_at = 0;
static uint32 looked_requests = 0;
static TimestampTz kinds_at = 0;
static TimestampTz floor_at = 0;
static TimestampTz mismatch_logged_at = 0;
static TimestampTz attempt_logged_at = 0;
static TpcFinished *sorted_finished = NULL; /* valid during a scan */
static int	nsorted_finished = 0;
static uint32 wait_event_outbox = 0;

void
tpc_housekeeper_init(TpcNode *for_node)
{
	HASHCTL		info;

	node = for_node;
	keeper_context = AllocSetContextCreate(TopMemoryContext,
										   "tpc_amqp housekeeper",
										   ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(TopMemoryContext,
										 "tpc_amqp housekeeper turn",
										 ALLOCSET_DEFAULT_SIZES);
	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(TpcGtid);
	info.entrysize = sizeof(Unacked);
	info.hcxt = keeper_context;
	unacked = hash_create("tpc_amqp unacknowledged", 1024, &info,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	memset(&info, 0, sizeof(info));
	info.keysize = TPC_GID_SIZE;
	info.entrysize = sizeof(Inquiry);
	info.hcxt = keeper_context;
	inquiries = hash_create("tpc_amqp inquiries", 1024, &info,
							HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	seen_requests = pg_atomic_read_u32(&node->resolve_requests);
}

/*
 * A transaction whose loss by a crash does no harm: it is done again.  Saves
 * the flush.
 */
static void
begin_lazily(void)
{
	tpc_worker_begin();
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* The list of finished transactions, for this process, its only writer. */
static TpcFinished *
finished_list(void)
{
	return node->nfinished == 0 ? NULL :
		dsa_get_address(tpc_area(), node->finished);
}

/*
 * add_finished: all have acknowledged it.  In shared memory, so that view
 * transactions can tell it from one that waits, and a successor knows too.
 */
static void
add_finished(const TpcGtid *gtid)
{
	TpcFinished *list;

	if (node->nfinished == node->finished_size)
	{
		int			size = Max(1024, node->finished_size * 2);
		dsa_pointer bigger = tpc_area_alloc(sizeof(TpcFinished) * size);
		dsa_pointer old = node->finished;

		if (node->nfinished > 0)
			memcpy(dsa_get_address(tpc_area(), bigger), finished_list(),
				   sizeof(TpcFinished) * node->nfinished);
		LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
		node->finished = bigger;
		node->finished_size = size;
		LWLockRelease(&tpc_shared->txns);
		if (DsaPointerIsValid(old))
			dsa_free(tpc_area(), old);
	}
	list = dsa_get_address(tpc_area(), node->finished);
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	list[node->nfinished].gtid = *gtid;
	list[node->nfinished].since = GetCurrentTimestamp();
	node->nfinished++;
	LWLockRelease(&tpc_shared->txns);
}

static bool
is_finished(const TpcGtid *gtid)
{
	TpcFinished *list = finished_list();

	for (int i = node->nfinished - 1; i >= 0; i--)
	{
		if (tpc_gtid_compare(&list[i].gtid, gtid) == 0)
			return true;
	}
	return false;
}

static void
drop_unacked(Unacked *entry)
{
	pfree(entry->participants);
	hash_search(unacked, &entry->gtid, HASH_REMOVE, NULL);
}

/* Remember a row of decision, as one whose acknowledgements we gather. */
static Unacked *
remember(const TpcDecisionRow *row)
{
	Unacked    *entry;
	bool		found;

	entry = hash_search(unacked, &row->gtid, HASH_ENTER, &found);
	if (!found)
	{
		Size		size = 0;
		char	   *p;

		/* one chunk: the array of names, the flags, the names */
		for (int i = 0; i < row->nparticipants; i++)
			size += strlen(row->participants[i]) + strlen(row->users[i]) + 2;
		size += (2 * sizeof(char *) + sizeof(bool)) * row->nparticipants;
		p = MemoryContextAllocZero(keeper_context, Max(size, 1));
		entry->participants = (char **) p;
		p += sizeof(char *) * row->nparticipants;
		entry->users = (char **) p;
		p += sizeof(char *) * row->nparticipants;
		entry->acked = (bool *) p;
		p += sizeof(bool) * row->nparticipants;
		for (int i = 0; i < row->nparticipants; i++)
		{
			entry->participants[i] = p;
			strcpy(p, row->participants[i]);
			p += strlen(p) + 1;
			entry->users[i] = p;
			strcpy(p, row->users[i]);
			p += strlen(p) + 1;
		}
		entry->next = 0;
		entry->factor = 1;
		entry->nparticipants = row->nparticipants;
		entry->nacked = 0;
		entry->changed = false;
		for (int i = 0; i < row->nparticipants; i++)
		{
			entry->acked[i] = row->acked[i];
			entry->nacked += row->acked[i];
		}
		entry->forgettable = false;
	}
	entry->scan = scan_number;
	return entry;
}

/*
 * What an acknowledgement that is not a plain one means to a person;
 * rolled_back: of a transaction that did not commit.
 */
static void
report_ack(const TpcItem *item, const TpcMessage *msg, bool rolled_back)
{
	char		gtid[TPC_GTID_TEXT_SIZE];
	const char *kind;
	const char *detail;

	tpc_gtid_to_text(&item->id, gtid);
	if (rolled_back)
	{
		kind = "mismatch";
		detail = "It was rolled back, and the participant's branch was committed by force.";
	}
	else if (msg->outcome == TPC_ACK_LOST)
	{
		kind = "lost";
		detail = "It committed, and the participant has neither the prepared branch nor a record of it.";
	}
	else if (msg->outcome == TPC_ACK_ROLLED_BACK)
	{
		kind = "mismatch";
		detail = "It committed, and the participant's branch was rolled back by force.";
	}
	else
	{
		kind = "forced";
		detail = "The participant's branch was committed by force, as decided.";
	}
	tpc_incident_report(&item->id, kind, item->peer, detail);
	ForceSyncCommit();

	/* anybody can claim this of a transaction that was rolled back */
	if (rolled_back && !tpc_worker_may_log(&mismatch_logged_at))
		return;
	ereport(WARNING,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("transaction %s: incident \"%s\" at node \"%s\"",
					gtid, kind, item->peer),
			 errdetail("%s", detail)));
}

/* An acknowledgement of a transaction that shared memory does not have. */
static void
take_ack(const TpcItem *item)
{
	Unacked    *entry;
	TpcMessage	msg;
	const char *why;
	TpcDecisionRow row;
	bool		asked = false;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_ACK;
	if (!tpc_message_decode_body(item->body, item->len, &msg, &why))
		return;

	tpc_worker_begin();
	entry = hash_search(unacked, &item->id.gtid, HASH_FIND, NULL);
	if (entry == NULL && !is_finished(&item->id.gtid) &&
		tpc_decision_lookup(&item->id.gtid, &row))
		entry = remember(&row);
	if (entry != NULL)
	{
		for (int i = 0; i < entry->nparticipants; i++)
		{
			/* "": its vote came after the record was made */
			if (strcmp(entry->participants[i], item->peer) != 0 ||
				(entry->users[i][0] != '\0' &&
				 strcmp(entry->users[i], item->user_id) != 0))
				continue;
			asked = true;
			if (entry->acked[i])
				continue;
			entry->acked[i] = true;
			entry->nacked++;
			entry->changed = true;
			if (msg.outcome != TPC_ACK_COMMITTED || msg.forced)
				report_ack(item, &msg, false);
		}
		if (!asked)
			tpc_node_count(node, TPC_STAT_BAD_MESSAGES, 1);
		if (entry->nacked == entry->nparticipants && !entry->forgettable)
		{
			add_finished(&entry->gtid);
			entry->forgettable = true;
		}
	}
	else if (msg.forced && msg.outcome == TPC_ACK_COMMITTED &&
			 !is_finished(&item->id.gtid))
	{
		/*
		 * With a reason, the participant has been told of a rollback;
		 * without, it may as well repeat what we have forgotten.
		 */
		bool		maybe_forgotten = msg.error.message == NULL;

		if (tpc_decision_outcome(node, &item->id.gtid, maybe_forgotten) ==
			TPC_OUTCOME_ABORTED)
			report_ack(item, &msg, true);
	}
	tpc_worker_end();
}

static void
take_floor(const TpcItem *item)
{
	begin_lazily();
	(void) tpc_branch_advance_floor(item->peer, item->user_id, &item->floor);
	tpc_worker_end();
}

static void
serve_chores(void)
{
	dsa_pointer p;

	while (DsaPointerIsValid(p = tpc_queue_pop(node, &node->chores)))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), p);
		MemoryContext old = MemoryContextSwitchTo(turn_context);

		PG_TRY();
		{
			switch (item->kind)
			{
				case TPC_ITEM_FORGET:
					for (int i = 0; i < (int) (item->len / sizeof(TpcGtid)); i++)
					{
						TpcGtid		gtid;
						Unacked    *entry;

						memcpy(&gtid, item->body + i * sizeof(TpcGtid),
							   sizeof(TpcGtid));
						/* we may have seen its row, or its last ack, first */
						entry = hash_search(unacked, &gtid, HASH_FIND, NULL);
						if (entry != NULL && entry->forgettable)
							continue;
						add_finished(&gtid);
						if (entry != NULL)
							entry->forgettable = true;
					}
					break;
				case TPC_ITEM_FLOOR:
					take_floor(item);
					break;
				case TPC_ITEM_MESSAGE:
					take_ack(item);
					break;
				case TPC_ITEM_CONSUMED:
					break;
			}
		}
		PG_CATCH();
		{
			HOLD_INTERRUPTS();
			EmitErrorReport();
			FlushErrorState();
			AbortOutOfAnyTransaction();
			LWLockReleaseAll();
			RESUME_INTERRUPTS();
		}
		PG_END_TRY();
		dsa_free(tpc_area(), p);
		MemoryContextSwitchTo(old);
		MemoryContextReset(turn_context);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
	}
}

/* C7: delete the rows that have been forgettable for long enough. */
static void
forget_due(TimestampTz now)
{
	int			n = 0;
	TpcGtid    *gtids;
	TpcFinished *list = finished_list();

	while (n < node->nfinished && n < FORGET_CHUNK &&
		   TimestampDifferenceExceeds(list[n].since, now, tpc_forget_after))
		n++;
	if (n == 0)
		return;

	TPC_FAILPOINT("C7.before");
	begin_lazily();
	gtids = palloc(sizeof(TpcGtid) * n);
	for (int i = 0; i < n; i++)
		gtids[i] = list[i].gtid;
	tpc_node_count(node, TPC_STAT_FORGOTTEN, tpc_decision_delete(gtids, n));
	for (int i = 0; i < n; i++)
	{
		Unacked    *entry = hash_search(unacked, &gtids[i], HASH_FIND, NULL);

		if (entry != NULL)
			drop_unacked(entry);
	}
	tpc_worker_end();
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	node->nfinished -= n;
	memmove(list, list + n, sizeof(TpcFinished) * node->nfinished);
	LWLockRelease(&tpc_shared->txns);
	TPC_FAILPOINT("C7.after");
}

/*
 * room_in_outbox: wait, within a bound, until the messenger has taken what we
 * left; false if it does not.  Not in a transaction: it can take seconds.
 */
static bool
room_in_outbox(void)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 2000);

	while (node->outbox_count > OUTBOX_LIMIT)
	{
		if (GetCurrentTimestamp() >= end || node->link != TPC_LINK_UP ||
			tpc_worker_should_exit(node))
			return false;
		(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5,
						 tpc_wait_event(&wait_event_outbox, "TpcAmqpOutbox"));
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

static int
compare_gtids(const void *a, const void *b)
{
	return tpc_gtid_compare(&((const TpcFinished *) a)->gtid,
							&((const TpcFinished *) b)->gtid);
}

/*
 * Whether a recorded transaction is not, or not now, for us to look after.
 * sorted_finished is the list of finished ones, sorted for this scan.
 */
static bool
looked_after(const TpcGtid *gtid)
{
	TpcFinished probe;
	TpcTxn	   *txn;

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	txn = tpc_txn_find(node->dbid, gtid);
	LWLockRelease(&tpc_shared->txns);
	probe.gtid = *gtid;
	return txn != NULL ||
		bsearch(&probe, sorted_finished, nsorted_finished,
				sizeof(TpcFinished), compare_gtids) != NULL;
}

/* Send one decision to those that have not acknowledged it. */
static void
resend(Unacked *entry, TimestampTz now)
{
	for (int i = 0; i < entry->nparticipants; i++)
	{
		TpcMessage	msg;

		if (entry->acked[i])
			continue;
		memset(&msg, 0, sizeof(msg));
		msg.type = TPC_MSG_COMMIT;
		strlcpy(msg.id.coordinator, node->name, sizeof(msg.id.coordinator));
		msg.id.gtid = entry->gtid;
		tpc_resolve_send(node, &msg, entry->participants[i], true, NULL);
	}
	entry->next = TimestampTzPlusMilliseconds(now,
											  (int64) tpc_resolve_interval *
											  entry->factor);
	entry->factor = Min(entry->factor * 2, BACKOFF_LIMIT);
}

/* It has been waiting: let the table say for whom. */
static void
note_acks(Unacked *entry)
{
	begin_lazily();
	tpc_decision_note_acks(&entry->gtid, entry->participants, entry->acked,
						   entry->nparticipants);
	tpc_worker_end();
	entry->changed = false;
}

/*
 * Send decisions again that somebody has not acknowledged; all: without
 * backoff.  False if the messenger does not take them.
 */
static bool
resend_decisions(TimestampTz now, bool all)
{
	TimestampTz before = all ? now :
	TimestampTzPlusMilliseconds(now, -tpc_resolve_interval);
	List	   *rows;
	ListCell   *lc;
	HASH_SEQ_STATUS seq;
	Unacked    *unseen;

	MemoryContextSwitchTo(turn_context);
	nsorted_finished = node->nfinished;
	sorted_finished = palloc_extended(sizeof(TpcFinished) *
									  Max(nsorted_finished, 1),
									  MCXT_ALLOC_HUGE);
	if (nsorted_finished > 0)
		memcpy(sorted_finished, finished_list(),
			   sizeof(TpcFinished) * nsorted_finished);
	qsort(sorted_finished, nsorted_finished, sizeof(TpcFinished),
		  compare_gtids);

	scan_number++;
	tpc_worker_begin();
	MemoryContextSwitchTo(turn_context);
	rows = tpc_decision_list(before, looked_after);
	if (rows != NIL && !tpc_worker_await_standbys())
		proc_exit(0);
	tpc_worker_end();
	MemoryContextSwitchTo(turn_context);

	foreach(lc, rows)
	{
		TpcDecisionRow *row = lfirst(lc);
		Unacked    *entry;

		entry = remember(row);
		if (entry->nacked == entry->nparticipants)
		{
			if (!entry->forgettable)
				add_finished(&entry->gtid);
			entry->forgettable = true;
			continue;
		}
		if (all || now >= entry->next)
		{
			if (!room_in_outbox())
				return false;
			resend(entry, now);
		}
		if (entry->changed)
			note_acks(entry);
	}

	/* What a person has had forgotten, or was newer than this look. */
	hash_seq_init(&seq, unacked);
	while ((unseen = hash_seq_search(&seq)) != NULL)
	{
		if (unseen->scan != scan_number && !unseen->forgettable)
			drop_unacked(unseen);
	}
	return true;
}

/*
 * Branches that were committed by force, as TpcPreparedBranch *, while their
 * coordinator's decision has not been heard: it may have aborted, and tells
 * nobody that does not ask.  (Of one that committed, it goes on telling.)
 */
static List *
forced_commits(void)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, tpc_heuristic_pending())
	{
		TpcHeuristic *heuristic = lfirst(lc);
		TpcPreparedBranch *branch;
		TpcBranchRow row;

		if (!heuristic->commit || heuristic->answered)
			continue;
		tpc_branch_probe(&heuristic->id, &row);
		if (row.state != TPC_BRANCH_COMMITTED)
			continue;
		branch = palloc0(sizeof(TpcPreparedBranch));
		branch->id = heuristic->id;
		strlcpy(branch->gid, row.gid, sizeof(branch->gid));
		branch->prepared_at = row.prepared_at;
		result = lappend(result, branch);
	}
	return result;
}

/*
 * Have branches in doubt ask their coordinators; all: without backoff.  False
 * if the messenger does not take it.
 */
static bool
inquire(TimestampTz now, bool all)
{
	List	   *branches;
	ListCell   *lc;
	HASH_SEQ_STATUS seq;
	Inquiry    *inquiry;

	scan_number++;
	tpc_worker_begin();
	MemoryContextSwitchTo(turn_context);
	branches = list_concat(tpc_branch_prepared(node->name), forced_commits());
	branches = list_concat(branches, tpc_gid_joined());
	/* to ask is to promise */
	if (branches != NIL && !tpc_worker_await_standbys())
		proc_exit(0);
	tpc_worker_end();
	MemoryContextSwitchTo(turn_context);

	foreach(lc, branches)
	{
		TpcPreparedBranch *branch = lfirst(lc);
		TpcMessage	msg;
		bool		found;

		inquiry = hash_search(inquiries, branch->gid, HASH_ENTER, &found);
		inquiry->scan = scan_number;
		if (!found)
		{
			/* its vote is on its way; ask if that gets no answer */
			inquiry->factor = 1;
			inquiry->next = TimestampTzPlusMilliseconds(branch->prepared_at,
														tpc_resolve_interval);
		}
		if (!all && now < inquiry->next)
			continue;
		if (!room_in_outbox())
			return false;
		memset(&msg, 0, sizeof(msg));
		msg.type = TPC_MSG_INQUIRY;
		msg.id = branch->id;
		TPC_FAILPOINT("I1.before");
		tpc_resolve_send(node, &msg, branch->id.coordinator, false, NULL);
		inquiry->next =
			TimestampTzPlusMilliseconds(now, (int64) tpc_resolve_interval *
										inquiry->factor);
		inquiry->factor = Min(inquiry->factor * 2, BACKOFF_LIMIT);
	}

	hash_seq_init(&seq, inquiries);
	while ((inquiry = hash_seq_search(&seq)) != NULL)
	{
		if (inquiry->scan != scan_number)
			hash_search(inquiries, inquiry->gid, HASH_REMOVE, NULL);
	}
	return true;
}

/*
 * attempt: do something about one of many.  If that raises, say so: it must
 * not keep us from the rest.  Begins and ends in turn_context and in no
 * transaction.
 */
static void
attempt(void (*act) (const void *arg), const void *arg, const char *what)
{
	PG_TRY();
	{
		act(arg);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(turn_context);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		MemoryContextSwitchTo(turn_context);
		if (tpc_worker_may_log(&attempt_logged_at))
			ereport(WARNING,
					(errcode(edata->sqlerrcode),
					 errmsg("node \"%s\" could not look after \"%s\": %s",
							node->name, what, edata->message),
					 edata->detail ?
					 errdetail_internal("%s", edata->detail) : 0,
					 errhint("It keeps trying; this is logged once a minute at most.")));
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn_context);
}

/* Whether the entry of a committed transaction can be made of its row. */
static bool
row_says_all(const TpcDecisionRow *row)
{
	int			nacked = 0;

	for (int i = 0; i < row->nparticipants; i++)
	{
		if (row->users[i][0] == '\0')
			return false;
		nacked += row->acked[i];
	}
	return nacked < row->nparticipants;
}

/*
 * revive: make the entry of a transaction of ours that was prepared when the
 * server went down.  What is not in its row, votes that came after PREPARE,
 * comes again with the inquiries of those branches.
 *
 * Or, if it is the other side of a branch, of one that has committed: the
 * branch's acknowledgement waits for that.  Those need not all find room; and
 * are not to take it from what is to come.
 */
static void
revive(const TpcGtid *gtid, bool is_branch)
{
	TpcDecisionRow row;
	TpcRowState state = tpc_decision_probe(gtid, &row);
	TpcTxnKey	key;
	TpcTxn	   *txn;
	TpcParticipant *parts;
	dsa_pointer array;
	Size		size;
	bool		found = false;

	if (state == TPC_ROW_NONE || row.nparticipants == 0)
		return;
	if (state == TPC_ROW_COMMITTED &&
		(!is_branch || !row_says_all(&row) ||
		 hash_get_num_entries(tpc_txns) >= tpc_max_transactions / 2))
		return;
	size = sizeof(TpcParticipant) * row.nparticipants;
	array = tpc_area_try_alloc(size);
	if (!DsaPointerIsValid(array))
		return;					/* as if there were no room in the table */
	parts = dsa_get_address(tpc_area(), array);
	memset(parts, 0, size);

	memset(&key, 0, sizeof(key));
	key.dbid = MyDatabaseId;
	key.gtid = *gtid;
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	txn = hash_search(tpc_txns, &key, HASH_ENTER_NULL, &found);
	if (txn != NULL && !found)
	{
		memset((char *) txn + sizeof(TpcTxnKey), 0,
			   sizeof(TpcTxn) - sizeof(TpcTxnKey));
		txn->state = state == TPC_ROW_COMMITTED ?
			TPC_TXN_COMMITTED : TPC_TXN_PREPARED;
		txn->prepares_sent = true;
		txn->started = txn->prepare_at = row.decided_at;
		txn->decided_at = GetCurrentTimestamp();
		txn->participants = array;
		txn->nparticipants = txn->nexpected = row.nparticipants;
		for (int i = 0; i < row.nparticipants; i++)
		{
			strlcpy(parts[i].node, row.participants[i], sizeof(parts[i].node));
			strlcpy(parts[i].user_id, row.users[i], sizeof(parts[i].user_id));
			parts[i].sent = true;
			parts[i].enlisted = row.enlisted[i];
			parts[i].acked = row.acked[i];
			if (row.users[i][0] != '\0')
			{
				parts[i].vote = TPC_PART_YES;
				txn->nvotes++;
			}
		}
		if (state == TPC_ROW_COMMITTED)
			tpc_txn_queue(node, txn);
	}
	LWLockRelease(&tpc_shared->txns);
	/* no room: the gid's entry says whether it needs its votes */
	if (txn == NULL || found)
		dsa_free(tpc_area(), array);
}

/* The same of one that was gathered (arg, a TpcGid). */
static void
revive_gathered(const void *arg)
{
	const TpcGid *entry = arg;

	tpc_worker_begin();
	revive(&entry->txn, entry->has_branch);
	tpc_worker_end();
}

/* Once after the server's start: find what was prepared before. */
static void
load_prepared(const void *arg)
{
	List	   *gathered;
	ListCell   *lc;

	tpc_worker_begin();
	MemoryContextSwitchTo(turn_context);
	gathered = tpc_gid_gather(NULL);
	tpc_gid_load(gathered);
	tpc_worker_end();
	MemoryContextSwitchTo(turn_context);
	foreach(lc, gathered)
	{
		TpcGid	   *entry = lfirst(lc);

		/* one that cannot be made is as one that finds no room */
		if (entry->has_txn &&
			(entry->state == TPC_GID_PREPARED || entry->has_branch))
			attempt(revive_gathered, entry, entry->key.gid);
	}
	tpc_wake_messenger(node);

	/*
	 * One that was finished after we saw it prepared may have an entry that
	 * says otherwise now.  Look (look_after_entries) before anything is
	 * forgotten: without its row it would pass for rolled back.
	 */
	looked_at = 0;
	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	node->gids_known = true;
	LWLockRelease(&tpc_shared->control);
}

/*
 * Whether it still is prepared; else how it ended.  In a transaction.  By the
 * rows that ride in it: its GID may be in use again, by somebody else.
 */
static bool
still_prepared(const TpcGid *entry, bool *committed)
{
	TpcBranchRow row;
	bool		prepared;

	if (entry->has_txn)
	{
		TpcRowState state = tpc_decision_probe(&entry->txn, NULL);

		*committed = state == TPC_ROW_COMMITTED;
		prepared = state == TPC_ROW_IN_PROGRESS;
	}
	else
	{
		tpc_branch_probe(&entry->branch, &row);
		*committed = row.state == TPC_BRANCH_COMMITTED;
		prepared = row.state == TPC_BRANCH_IN_PROGRESS;
	}
	if (!prepared && !tpc_worker_await_standbys())
		proc_exit(0);
	return prepared;
}

/* One that an entry (arg, a TpcGid) says is prepared. */
static void
look_after_gid(const void *arg)
{
	const TpcGid *entry = arg;
	bool		committed = false;

	tpc_worker_begin();
	if (!still_prepared(entry, &committed))
	{
		tpc_worker_end();
		(void) tpc_prepared_tell(node, entry->key.gid,
								 entry->has_branch ? &entry->branch : NULL,
								 entry->has_txn ? &entry->txn : NULL,
								 committed, InvalidDsaPointer);
		return;
	}
	if (!entry->has_txn || entry->has_branch || tpc_prepared_timeout <= 0 ||
		!TimestampDifferenceExceeds(entry->since, GetCurrentTimestamp(),
									tpc_prepared_timeout))
	{
		tpc_worker_end();
		return;
	}
	TPC_FAILPOINT("Q6.before");
	if (!tpc_resolve_finish(entry->key.gid, false))
		return;
	(void) tpc_prepared_tell(node, entry->key.gid, NULL, &entry->txn, false,
							 InvalidDsaPointer);
	ereport(LOG,
			(errmsg("rolled back prepared transaction \"%s\", which nobody has finished within %d ms",
					entry->key.gid, tpc_prepared_timeout),
			 errhint("Setting \"tpc_amqp.prepared_timeout\" says how long to wait.")));
}

/*
 * look_after_prepared: tell of prepared transactions that were finished by
 * somebody who could not (he died, or went past us), and roll those back that
 * nobody has finished for prepared_timeout.
 */
static void
look_after_prepared(void)
{
	ListCell   *lc;

	foreach(lc, tpc_gid_list(TPC_GID_PREPARED))
	{
		TpcGid	   *entry = lfirst(lc);

		attempt(look_after_gid, entry, entry->key.gid);
	}
}

/* Our transactions whose entries say that they are prepared, as TpcGtid *. */
static List *
prepared_entries(void)
{
	HASH_SEQ_STATUS seq;
	TpcTxn	   *txn;
	List	   *result = NIL;

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	hash_seq_init(&seq, tpc_txns);
	while ((txn = hash_seq_search(&seq)) != NULL)
	{
		TpcGtid    *gtid;

		if (txn->key.dbid != node->dbid || txn->state != TPC_TXN_PREPARED)
			continue;
		gtid = palloc(sizeof(TpcGtid));
		*gtid = txn->key.gtid;
		result = lappend(result, gtid);
	}
	LWLockRelease(&tpc_shared->txns);
	return result;
}

/* One whose entry says that it is prepared (arg, a TpcGtid). */
static void
look_after_entry(const void *arg)
{
	const TpcGtid *gtid = arg;
	TpcRowState state;

	tpc_worker_begin();
	state = tpc_decision_probe(gtid, NULL);
	tpc_worker_end();
	if (state != TPC_ROW_IN_PROGRESS)
		(void) tpc_prepared_set_decided(node, gtid,
										state == TPC_ROW_COMMITTED, NULL,
										InvalidDsaPointer);
}

/*
 * look_after_entries: what an entry says about being prepared must not
 * outlive it: while it does, nobody tells the participants.  The row decides,
 * whatever has become of the GID.
 */
static void
look_after_entries(void)
{
	ListCell   *lc;

	foreach(lc, prepared_entries())
	{
		char		uuid[TPC_UUID_TEXT_SIZE];

		tpc_uuid_to_text(lfirst(lc), uuid);
		attempt(look_after_entry, lfirst(lc), uuid);
	}
}

/* Carry out what a person has decided about a branch (arg, a TpcHeuristic). */
static void
carry_out_one(const void *arg)
{
	const TpcHeuristic *heuristic = arg;
	TpcBranchRow row;
	char		gtid[TPC_GTID_TEXT_SIZE];

	tpc_worker_begin();
	tpc_branch_probe(&heuristic->id, &row);
	if (!tpc_branch_is_prepared(&row))
	{
		tpc_worker_end();
		return;
	}
	TPC_FAILPOINT("H2.before");
	if (!tpc_resolve_finish(row.gid, heuristic->commit))
		return;
	(void) tpc_prepared_tell(node, row.gid, &heuristic->id, NULL,
							 heuristic->commit, InvalidDsaPointer);
	tpc_node_count(node, heuristic->commit ? TPC_STAT_BRANCHES_COMMITTED :
				   TPC_STAT_BRANCHES_ROLLED_BACK, 1);
	tpc_gtid_to_text(&heuristic->id, gtid);
	ereport(WARNING,
			(errmsg("branch of transaction %s was %s by force", gtid,
					heuristic->commit ? "committed" : "rolled back")));
}

/* Carry out what a person has decided about branches in doubt. */
static void
carry_out_forced(void)
{
	List	   *pending;
	ListCell   *lc;

	tpc_worker_begin();
	MemoryContextSwitchTo(turn_context);
	pending = tpc_heuristic_pending();
	tpc_worker_end();
	MemoryContextSwitchTo(turn_context);
	foreach(lc, pending)
	{
		TpcHeuristic *heuristic = lfirst(lc);
		char		gtid[TPC_GTID_TEXT_SIZE];

		tpc_gtid_to_text(&heuristic->id, gtid);
		attempt(carry_out_one, heuristic, gtid);
	}
}

/* Move this node's floor, which its messages carry. */
static void
move_floor(void)
{
	TpcGtid		floor;

	tpc_worker_begin();
	tpc_decision_floor(node, &floor);
	tpc_worker_end();
	LWLockAcquire(&tpc_shared->txns, LW_EXCLUSIVE);
	if (tpc_gtid_compare(&node->floor, &floor) < 0)
		node->floor = floor;
	LWLockRelease(&tpc_shared->txns);
}

/*
 * tpc_housekeeper_turn: do what is due; returns the time until the next is,
 * in ms.  Errors are reported and survived.
 */
long
tpc_housekeeper_turn(void)
{
	TimestampTz now = GetCurrentTimestamp();
	uint32		epoch = pg_atomic_read_u32(&node->epoch);
	uint32		requests = pg_atomic_read_u32(&node->resolve_requests);
	bool		urgent = epoch != seen_epoch || requests != seen_requests;
	MemoryContext old;

	serve_chores();

	old = MemoryContextSwitchTo(turn_context);
	PG_TRY();
	{
		if (!node->gids_known)
			attempt(load_prepared, NULL, "prepared transactions");
		/* one that cannot be finished must not keep us from the rest */
		if (requests != looked_requests ||
			TimestampDifferenceExceeds(looked_at, now, tpc_resolve_interval))
		{
			looked_at = now;
			looked_requests = requests;
			look_after_prepared();
			look_after_entries();
			carry_out_forced();
		}
		if (node->link == TPC_LINK_UP && !node->blocked &&
			(urgent || TimestampDifferenceExceeds(scanned_at, now,
												  tpc_resolve_interval)))
		{
			scanned_at = now;
			if (resend_decisions(now, urgent))
			{
				MemoryContextReset(turn_context);
				if (inquire(now, urgent))
				{
					seen_epoch = epoch;
					seen_requests = requests;
				}
			}
		}
		/* an entry may still say that one of them is prepared */
		if (node->gids_known)
			forget_due(now);
		if (TimestampDifferenceExceeds(kinds_at, now, FLOOR_INTERVAL_MS))
		{
			kinds_at = now;
			tpc_kind_follow(node);
			MemoryContextSwitchTo(turn_context);
		}
		if (pg_atomic_read_u64(&node->incarnation) != 0 &&
			TimestampDifferenceExceeds(floor_at, now, FLOOR_INTERVAL_MS))
		{
			floor_at = now;
			move_floor();
		}
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextReset(turn_context);

	if (node->nfinished >= FORGET_CHUNK &&
		TimestampDifferenceExceeds(finished_list()[0].since,
								   GetCurrentTimestamp(), tpc_forget_after))
		return 1;
	return Min(FLOOR_INTERVAL_MS, tpc_resolve_interval);
}
