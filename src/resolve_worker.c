/*-------------------------------------------------------------------------
 *
 * resolve_worker.c
 *	  Phase 2 and recovery: carry out decisions, answer inquiries.
 *
 * Every resolve worker takes decisions (as participant) and inquiries (as
 * coordinator) from the node's queue.  None of them runs handlers, so a
 * branch that waits for a lock never holds up the decision that frees it.
 * The first of them is the lead: it also looks after what nobody asks for
 * (housekeeper.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/twophase.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "branch.h"
#include "broker.h"
#include "compat.h"
#include "decision.h"
#include "failpoint.h"
#include "gid.h"
#include "housekeeper.h"
#include "prepared.h"
#include "publish.h"
#include "report.h"
#include "resolve_worker.h"
#include "settings.h"
#include "shmem.h"
#include "txn.h"
#include "worker.h"

#define RETRY_MIN_MS	5
#define RETRY_MAX_MS	1000
/* After that it is left to re-sending. */
#define RETRY_GIVE_UP_MS 60000
/* How long commits wait, after a start, for what is known of branches. */
#define GIDS_WAIT_MS	10000

/* An item that has to be looked at again; in retry_context. */
typedef struct Retry
{
	TpcItem    *item;
	TimestampTz first;
	TimestampTz due;
	int			delay_ms;
} Retry;

static TpcNode *node;
static bool lead;
static MemoryContext item_context = NULL;	/* reset per item */
static MemoryContext retry_context = NULL;
static List *retries = NIL;
static TimestampTz forged_logged_at = 0;
static TimestampTz forced_logged_at = 0;
static TimestampTz lost_logged_at = 0;
static TimestampTz mismatch_logged_at = 0;
static uint32 wait_event_main = 0;

/*
 * tpc_resolve_make: a message for the messenger, not handed to it yet; see
 * tpc_resolve_send.  If there is no room, it raises 53200; or, if try_only,
 * returns InvalidDsaPointer.
 */
dsa_pointer
tpc_resolve_make(TpcMessage *msg, const char *to, bool resent,
				 const TpcItem *answered, bool try_only)
{
	StringInfoData body;
	TpcItem		head;
	dsa_pointer item;

	initStringInfo(&body);
	tpc_message_encode_body(msg, &body);
	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_MESSAGE;
	head.type = msg->type;
	head.id = msg->id;
	strlcpy(head.peer, to, sizeof(head.peer));
	head.publish = true;
	head.counts_resent = resent;
	head.own_queues = msg->own_queues;
	if (answered != NULL)
	{
		head.ack_delivery = answered->ack_delivery;
		head.ack_queue = answered->ack_queue;
		head.delivery_tag = answered->delivery_tag;
		head.epoch = answered->epoch;
	}
	item = try_only ? tpc_item_try_make(&head, body.data, body.len) :
		tpc_item_make(&head, body.data, body.len);
	pfree(body.data);
	return item;
}

/*
 * tpc_resolve_send: leave a message for the messenger.  answered: the item
 * whose delivery it acknowledges too, or NULL.
 */
void
tpc_resolve_send(TpcNode *to_node, TpcMessage *msg, const char *to,
				 bool resent, const TpcItem *answered)
{
	tpc_outbox_push(to_node, tpc_resolve_make(msg, to, resent, answered, false));
}

/* Nothing to say, but the delivery is dealt with. */
static void
acknowledge_delivery(const TpcItem *item)
{
	TpcItem		head;

	if (!item->ack_delivery)
		return;
	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_MESSAGE;
	head.ack_delivery = true;
	head.ack_queue = item->ack_queue;
	head.delivery_tag = item->delivery_tag;
	head.epoch = item->epoch;
	tpc_outbox_push(node, tpc_item_make(&head, NULL, 0));
}

/*
 * make_ack: what says that a commit is durable here (or is not), for
 * send_ack().  try_only as for tpc_resolve_make.
 */
static dsa_pointer
make_ack(const TpcItem *item, TpcAckOutcome outcome, bool forced,
		 const char *reason, bool try_only)
{
	TpcMessage	msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_ACK;
	msg.id = item->id;
	msg.outcome = outcome;
	msg.forced = forced;
	msg.error.message = unconstify(char *, reason);
	return tpc_resolve_make(&msg, item->id.coordinator, false, item, try_only);
}

/*
 * send_ack: step P7.  committed_gid: of the branch, if it is committed here,
 * else NULL; if it has called other nodes itself, its acknowledgement waits
 * for theirs.  Never raises.
 */
static void
send_ack(const TpcItem *item, const char *committed_gid, dsa_pointer ack)
{
	TPC_FAILPOINT("P7.before");
	if (committed_gid == NULL ||
		!tpc_prepared_tell(node, committed_gid, &item->id, NULL, true, ack))
		tpc_outbox_push(node, ack);
	TPC_FAILPOINT("P7.after");
}

/*
 * cancel_job: stop a prepare that is queued or running; false if there is
 * none.  One that is past its last interrupt check prepares all the same; it
 * then votes, and is answered.
 */
static bool
cancel_job(const TpcGlobalId *id)
{
	TpcJob	   *job;
	dsa_pointer body = InvalidDsaPointer;
	TpcItem		head;
	bool		found;

	memset(&head, 0, sizeof(head));
	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	job = tpc_job_find(node->dbid, id);
	found = job != NULL;
	if (job != NULL && job->state == TPC_JOB_QUEUED)
	{
		TpcJobKey	key = job->key;

		dlist_delete(&job->link);
		body = job->body;
		head.ack_delivery = true;
		head.ack_queue = TPC_QUEUE_PREPARE;
		head.delivery_tag = job->delivery_tag;
		head.epoch = job->epoch;
		hash_search(tpc_jobs, &key, HASH_REMOVE, NULL);
	}
	else if (job != NULL && !job->cancel)
	{
		job->cancel = true;
		kill(job->pid, SIGINT);
	}
	LWLockRelease(&tpc_shared->jobs);
	if (DsaPointerIsValid(body))
	{
		dsa_free(tpc_area(), body);
		acknowledge_delivery(&head);
	}
	return found;
}

/* Whether there is a job, and whether it came from who sends this decision. */
static void
look_for_job(const TpcItem *item, TpcParticipantFacts *facts)
{
	TpcJob	   *job;
	bool		same_user;

	LWLockAcquire(&tpc_shared->jobs, LW_SHARED);
	job = tpc_job_find(node->dbid, &item->id);
	same_user = job != NULL && strcmp(job->user_id, item->user_id) == 0;
	facts->job_exists = same_user;
	facts->foreign_job = job != NULL && !same_user;
	LWLockRelease(&tpc_shared->jobs);
}

/*
 * recall_branch: the row of a branch that a prepare worker has prepared, from
 * memory.  False if it is not remembered, or not prepared any more.
 *
 * As long as the transaction that wrote the row is in progress, it is
 * prepared, and its GID is its own.  Recalled once: whoever comes back for it
 * probes the table.
 */
static bool
recall_branch(const TpcItem *item, TpcBranchRow *row)
{
	TpcPrepared *prepared;
	TransactionId xid = InvalidTransactionId;

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	prepared = tpc_prepared_find(node->dbid, &item->id);
	if (prepared != NULL && strcmp(prepared->user_id, item->user_id) == 0)
	{
		xid = prepared->xid;
		prepared->dbid = InvalidOid;
	}
	LWLockRelease(&tpc_shared->jobs);
	if (!TransactionIdIsValid(xid) || !TransactionIdIsInProgress(xid))
		return false;
	memset(row, 0, sizeof(*row));
	row->state = TPC_BRANCH_IN_PROGRESS;
	tpc_branch_gid(&item->id, node->name, row->gid);
	strlcpy(row->sender, item->user_id, sizeof(row->sender));
	return true;
}

/*
 * tpc_resolve_finish: step P6.  COMMIT or ROLLBACK PREPARED; durable, also on
 * synchronous standbys, when it returns true.  False if there is no such
 * prepared transaction, or it is busy (its backend is still leaving it, or
 * another resolver has it).  The caller is in a transaction of its own
 * (tpc_worker_begin), which this ends, unless it raises.
 */
bool
tpc_resolve_finish(const char *gid, bool commit)
{
	volatile bool finished = false;
	MemoryContext caller = CurrentMemoryContext;

	PG_TRY();
	{
		TPC_FAILPOINT("P6.before");
		tpc_txn_make_synchronous();
		FinishPreparedTransaction(gid, commit);
		finished = true;
		TPC_FAILPOINT("P6.after");
		tpc_worker_end();
		if (commit)
			tpc_publish_after_prepared(node);
	}
	PG_CATCH();
	{
		int			sqlerrcode = geterrcode();

		if (finished || (sqlerrcode != ERRCODE_UNDEFINED_OBJECT &&
						 sqlerrcode != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE))
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(caller);
	}
	PG_END_TRY();
	/* a successor finds it done, and waits for them */
	if (finished && tpc_worker_gave_up_standbys())
		proc_exit(0);
	return finished;
}

/*
 * finish: steps P6 and P7: carry a decision out and tell.  False if there is
 * nothing to finish, or it is busy, as tpc_resolve_finish says; or if there is
 * no room to acknowledge it: then it is to be looked at again as well.
 *
 * The acknowledgement is made first.  Once the branch is committed, nothing
 * may keep us from telling those that it has called.
 */
static bool
finish(const TpcItem *item, const char *gid, bool commit)
{
	volatile bool finished = false;
	dsa_pointer ack = commit ?
	make_ack(item, TPC_ACK_COMMITTED, false, NULL, true) : InvalidDsaPointer;

	PG_TRY();
	{
		finished = tpc_resolve_finish(gid, commit);
	}
	PG_CATCH();
	{
		if (DsaPointerIsValid(ack))
			dsa_free(tpc_area(), ack);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!finished)
	{
		if (DsaPointerIsValid(ack))
			dsa_free(tpc_area(), ack);
		return false;
	}

	tpc_node_count(node, commit ? TPC_STAT_BRANCHES_COMMITTED :
				   TPC_STAT_BRANCHES_ROLLED_BACK, 1);
	if (DsaPointerIsValid(ack))
	{
		send_ack(item, gid, ack);
		return true;
	}
	(void) tpc_prepared_tell(node, gid, &item->id, NULL, commit,
							 InvalidDsaPointer);
	if (commit)
		return false;
	acknowledge_delivery(item);
	return true;
}

static void
report_forged(const TpcItem *item, const char *gtid)
{
	tpc_node_count(node, TPC_STAT_BAD_MESSAGES, 1);
	if (!tpc_worker_may_log(&forged_logged_at))
		return;
	ereport(LOG,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errhint("If the coordinator now uses another broker user, it has to use the former one until this branch is finished."),
			 errmsg("node \"%s\" dropped a decision about %s that does not come from who sent its prepare",
					node->name, gtid),
			 errdetail("It comes from broker user \"%s\".", item->user_id)));
}

/*
 * Whether a message about a branch comes from who sent its prepare; for a
 * joined one, from the node it joined.
 */
static bool
sender_matches(const TpcBranchRow *row, const TpcItem *item)
{
	if (row->state == TPC_BRANCH_NONE)
		return false;
	return row->sender[0] != '\0' ?
		strcmp(row->sender, item->user_id) == 0 :
		strcmp(item->peer, item->id.coordinator) == 0;
}

/* Whether a rollback says that there may have been a record. */
static bool
says_forgotten(const TpcItem *item)
{
	TpcMessage	msg;
	const char *why;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_ROLLBACK;
	return tpc_message_decode_body(item->body, item->len, &msg, &why) &&
		msg.forgotten;
}

/*
 * Whether to wait with commits.  Right after a start, nobody knows yet what
 * branches have called: one that has would be acknowledged without waiting for
 * that.  But not for longer than it would have waited.
 */
static bool
awaits_gids(void)
{
	static TimestampTz since = 0;
	TimestampTz now;

	if (node->gids_known)
		return false;
	now = GetCurrentTimestamp();
	if (since == 0)
		since = now;
	return !TimestampDifferenceExceeds(since, now, GIDS_WAIT_MS);
}

/*
 * decide: step P5.  Carry a decision out.  False if it has to be looked at
 * again soon.  Runs its own transactions.
 */
static bool
decide(const TpcItem *item)
{
	TpcParticipantFacts facts;
	TpcBranchRow row;
	TpcAction	action;
	bool		commit = item->type == TPC_MSG_COMMIT;
	bool		forced_commit = false;
	bool		forced;
	char		gtid[TPC_GTID_TEXT_SIZE];

	if (commit && awaits_gids())
		return false;

	TPC_FAILPOINT("P5.before");
	tpc_gtid_to_text(&item->id, gtid);
	memset(&facts, 0, sizeof(facts));
	facts.decision = commit ? TPC_DECISION_COMMIT : TPC_DECISION_ROLLBACK;

	tpc_worker_begin();
	if (!recall_branch(item, &row))
	{
		/* in this order: a job that ends in between leaves a row */
		look_for_job(item, &facts);
		tpc_branch_probe(&item->id, &row);
	}
	facts.branch = row.state;
	facts.sender_matches = sender_matches(&row, item);
	/* one that we never acknowledged cannot have been forgotten */
	if (row.state == TPC_BRANCH_COMMITTED && !commit)
		facts.forgotten = says_forgotten(item) &&
			!(facts.sender_matches &&
			  tpc_heuristic_lookup(&item->id, &forced_commit) &&
			  forced_commit && tpc_heuristic_answered(&item->id));
	if (row.state == TPC_BRANCH_NONE && commit)
	{
		facts.below_floor = tpc_branch_below_floor(&item->id, item->user_id);
		facts.forced = tpc_heuristic_lookup(&item->id, &forced_commit) &&
			!forced_commit;
	}

	/*
	 * What finishing it would tell: try, then ask again without it.  But not
	 * for a GID that the application chose: it may be another's.
	 */
	facts.gid_exists = row.state == TPC_BRANCH_IN_PROGRESS &&
		(row.sender[0] != '\0' || tpc_branch_is_prepared(&row));
	action = tpc_protocol_decide(&facts);
	if (action == TPC_ACTION_FINISH)
	{
		if (finish(item, row.gid, commit))
			return true;
		facts.gid_exists = false;
		action = tpc_protocol_decide(&facts);
		tpc_worker_begin();
	}

	switch (action)
	{
		case TPC_ACTION_FINISH:
		case TPC_ACTION_RETRY:
			tpc_worker_end();
			return false;

		case TPC_ACTION_CANCEL:
			tpc_worker_end();
			(void) cancel_job(&item->id);
			if (row.state == TPC_BRANCH_IN_PROGRESS)
				return false;
			acknowledge_delivery(item);
			break;

		case TPC_ACTION_ACK:
			forced = tpc_heuristic_lookup(&item->id, &forced_commit);
			if (forced && facts.sender_matches)
				(void) tpc_heuristic_answered(&item->id);
			if (!tpc_worker_await_standbys())
				proc_exit(0);
			tpc_worker_end();
			tpc_node_count(node, TPC_STAT_DUPLICATES, 1);
			send_ack(item,
					 row.state == TPC_BRANCH_COMMITTED ? row.gid : NULL,
					 make_ack(item, TPC_ACK_COMMITTED,
							  forced && forced_commit, NULL, false));
			break;

		case TPC_ACTION_FORCED_ROLLBACK:
			tpc_incident_report(&item->id, "mismatch", node->name,
								"It was rolled back here by force, and its coordinator committed it.");
			ForceSyncCommit();
			tpc_worker_end();
			if (tpc_worker_may_log(&forced_logged_at))
				ereport(WARNING,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("transaction %s was rolled back here by force, and its coordinator committed it",
								gtid),
						 errhint("It is listed in view tpc_amqp.incidents on both nodes.")));
			send_ack(item, NULL,
					 make_ack(item, TPC_ACK_ROLLED_BACK, true,
							  "rolled back by force", false));
			break;

		case TPC_ACTION_LOST:
			tpc_incident_report(&item->id, "lost", node->name,
								"The coordinator committed it, and this node has neither the prepared branch nor a record of it.");
			ForceSyncCommit();
			tpc_worker_end();
			if (tpc_worker_may_log(&lost_logged_at))
				ereport(WARNING,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("branch of committed transaction %s is lost", gtid),
						 errdetail("The coordinator committed it, and this node has neither the prepared branch nor a record of it."),
						 errhint("It is listed in view tpc_amqp.incidents on both nodes.")));
			send_ack(item, NULL,
					 make_ack(item, TPC_ACK_LOST, false,
							  "no branch and no record of it", false));
			break;

		case TPC_ACTION_MISMATCH:
			forced = tpc_heuristic_lookup(&item->id, &forced_commit);
			if (forced)
				(void) tpc_heuristic_answered(&item->id);
			tpc_incident_report(&item->id, "mismatch", node->name,
								"It is committed here, and its coordinator rolled it back.");
			ForceSyncCommit();
			tpc_worker_end();
			if (tpc_worker_may_log(&mismatch_logged_at))
				ereport(WARNING,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("transaction %s is committed here, and its coordinator rolled it back",
								gtid),
						 errhint("It is listed in view tpc_amqp.incidents.")));
			/* nobody waits for it, but there it is to be listed, too */
			if (forced && forced_commit)
				send_ack(item, NULL,
						 make_ack(item, TPC_ACK_COMMITTED, true,
								  "committed by force", false));
			else
				acknowledge_delivery(item);
			break;

		case TPC_ACTION_FORGED:
			tpc_worker_end();
			report_forged(item, gtid);
			acknowledge_delivery(item);
			break;

		case TPC_ACTION_NONE:
			tpc_worker_end();
			acknowledge_delivery(item);
			break;
	}
	return true;
}

/* The coordinator cannot tell: list the branch with its reason. */
static void
note_unknown(const TpcItem *item)
{
	TpcBranchRow row;
	TpcMessage	msg;
	const char *why;
	const char *reason = "the coordinator cannot tell";
	bool		forged = false;

	/* in a transaction, for converting to the database's encoding */
	tpc_worker_begin();
	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_UNKNOWN;
	if (tpc_message_decode_body(item->body, item->len, &msg, &why) &&
		msg.error.message != NULL)
		reason = tpc_report_to_server(msg.error.message);
	tpc_branch_probe(&item->id, &row);
	if (row.state == TPC_BRANCH_IN_PROGRESS)
		forged = !sender_matches(&row, item);
	if (row.state == TPC_BRANCH_IN_PROGRESS && !forged)
		tpc_incident_report(&item->id, "unknown", item->id.coordinator,
							reason);
	tpc_worker_end();
	if (forged)
	{
		char		gtid[TPC_GTID_TEXT_SIZE];

		tpc_gtid_to_text(&item->id, gtid);
		report_forged(item, gtid);
	}
	acknowledge_delivery(item);
}

/*
 * Whether the decision's record names who asks.  It may have been forgotten
 * since we saw it: then all that it named have acknowledged, so that who still
 * has a branch is not one of them; but who asks need not have one any more,
 * its question may be late.
 */
static bool
takes_part(const TpcItem *item, bool *forgotten)
{
	TpcDecisionRow row;

	*forgotten = !tpc_decision_lookup(&item->id.gtid, &row);
	if (*forgotten)
		return false;
	for (int i = 0; i < row.nparticipants; i++)
	{
		if (strcmp(row.participants[i], item->peer) == 0)
			return true;
	}
	return false;
}

/* Somebody has a prepared branch and asks what became of G. */
static void
answer(const TpcItem *item)
{
	TpcMessage	msg;
	TpcOutcome	outcome;

	TPC_FAILPOINT("I2.before");
	tpc_worker_begin();
	outcome = tpc_decision_outcome(node, &item->id.gtid, false);
	if (outcome != TPC_OUTCOME_PENDING && !tpc_worker_await_standbys())
		proc_exit(0);
	memset(&msg, 0, sizeof(msg));
	msg.id = item->id;
	msg.own_queues = item->own_queues;
	switch (outcome)
	{
		case TPC_OUTCOME_PENDING:
			break;
		case TPC_OUTCOME_COMMITTED:

			/*
			 * One that is not in the record voted read-only, and was done;
			 * what it has now comes from a repeated prepare.
			 *
			 * But in the queues of the transaction that rollback would be
			 * read by whom they belong to, who is perhaps to commit.  It asks
			 * again, and is told once all that the record names have
			 * committed.
			 */
			msg.type = takes_part(item, &msg.forgotten) ?
				TPC_MSG_COMMIT : TPC_MSG_ROLLBACK;
			if (msg.type == TPC_MSG_ROLLBACK && !msg.forgotten &&
				msg.own_queues)
				break;
			tpc_resolve_send(node, &msg, item->peer, true, NULL);
			break;
		case TPC_OUTCOME_ABORTED:
			msg.type = TPC_MSG_ROLLBACK;
			msg.forgotten = tpc_decision_outcome(node, &item->id.gtid, true) ==
				TPC_OUTCOME_UNKNOWN;
			tpc_resolve_send(node, &msg, item->peer, true, NULL);
			break;
		case TPC_OUTCOME_UNKNOWN:
			msg.type = TPC_MSG_UNKNOWN;

			/*
			 * The participant lists it, if it has a branch; here it could be
			 * anything somebody made up.
			 */
			msg.error.message = "the coordinator has been restored, copied or failed over since the transaction ran";
			tpc_resolve_send(node, &msg, item->peer, true, NULL);
			break;
	}
	tpc_worker_end();
}

/* Whether all participants of a prepared transaction of ours have voted yes. */
static bool
votes_are_in(const TpcGid *entry)
{
	TpcTxn	   *txn;
	bool		complete = entry->votes_known;

	LWLockAcquire(&tpc_shared->txns, LW_SHARED);
	txn = tpc_txn_find(node->dbid, &entry->txn);
	if (txn != NULL)
		complete = txn->state == TPC_TXN_PREPARED && txn->nrefused == 0 &&
			txn->nvotes == txn->nexpected;
	LWLockRelease(&tpc_shared->txns);
	return complete;
}

/*
 * serve_request: step Q3 on behalf of an application that has told a
 * participant first.  Nothing but the prepared transaction itself arbitrates
 * between this and a session that finishes it.  What cannot be done now is
 * asked for again.
 */
static void
serve_request(const TpcItem *item)
{
	TpcMessage	msg;
	const char *why;
	TpcDecisionRow row;
	TpcGid		entry;
	char		gid[TPC_GID_SIZE];

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_REQUEST;
	if (!tpc_message_decode_body(item->body, item->len, &msg, &why))
		return;
	tpc_worker_begin();
	if (tpc_decision_probe(&item->id.gtid, &row) != TPC_ROW_IN_PROGRESS ||
		row.gid == NULL || !tpc_gid_lookup(row.gid, &entry) ||
		entry.state != TPC_GID_PREPARED || !entry.has_txn ||
		tpc_gtid_compare(&entry.txn, &item->id.gtid) != 0 ||
		(msg.wants_commit && !votes_are_in(&entry)))
	{
		tpc_worker_end();
		return;
	}
	strlcpy(gid, row.gid, sizeof(gid));
	if (entry.has_branch)
	{
		/* it is a branch itself: pass the question on */
		tpc_worker_end();
		msg.id = entry.branch;
		tpc_resolve_send(node, &msg, entry.branch.coordinator, false, NULL);
		return;
	}
	TPC_FAILPOINT("Q3.request");
	if (tpc_resolve_finish(gid, msg.wants_commit))
		(void) tpc_prepared_tell(node, gid, NULL, &item->id.gtid,
								 msg.wants_commit, InvalidDsaPointer);
}

/* One item; false if it has to be looked at again.  Never raises. */
static bool
handle_item(const TpcItem *item)
{
	volatile bool done = true;
	MemoryContext old = MemoryContextSwitchTo(item_context);

	PG_TRY();
	{
		switch (item->type)
		{
			case TPC_MSG_COMMIT:
			case TPC_MSG_ROLLBACK:
				done = decide(item);
				break;
			case TPC_MSG_UNKNOWN:
				note_unknown(item);
				break;
			case TPC_MSG_INQUIRY:
				answer(item);
				break;
			case TPC_MSG_REQUEST:
				serve_request(item);
				break;
			default:
				break;
		}
	}
	PG_CATCH();
	{
		/* One bad transaction must not stop the rest. */
		HOLD_INTERRUPTS();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		RESUME_INTERRUPTS();
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextReset(item_context);
	return done;
}

static void
retry_later(const TpcItem *item)
{
	MemoryContext old = MemoryContextSwitchTo(retry_context);
	Retry	   *retry = palloc(sizeof(Retry));
	Size		size = offsetof(TpcItem, body) + item->len;

	retry->item = palloc(size);
	memcpy(retry->item, item, size);
	retry->first = GetCurrentTimestamp();
	retry->delay_ms = RETRY_MIN_MS;
	retry->due = TimestampTzPlusMilliseconds(retry->first, retry->delay_ms);
	retries = lappend(retries, retry);
	MemoryContextSwitchTo(old);
}

/* Look again at what was not ready; returns ms until the next is due, or -1. */
static long
serve_retries(void)
{
	ListCell   *lc;
	long		next = -1;

	foreach(lc, retries)
	{
		Retry	   *retry = lfirst(lc);
		TimestampTz now = GetCurrentTimestamp();
		long		left;

		if (now >= retry->due)
		{
			bool		give_up;

			give_up = TimestampDifferenceExceeds(retry->first, now,
												 RETRY_GIVE_UP_MS);
			if (handle_item(retry->item) || give_up)
			{
				if (give_up)
					acknowledge_delivery(retry->item);
				pfree(retry->item);
				pfree(retry);
				retries = foreach_delete_current(retries, lc);
				continue;
			}
			retry->delay_ms = Min(retry->delay_ms * 2, RETRY_MAX_MS);
			retry->due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													 retry->delay_ms);
		}
		left = Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													  retry->due));
		next = next < 0 ? left : Min(next, left);
	}
	return next;
}

/* Everything in the queue of decisions and inquiries. */
static void
serve_decisions(void)
{
	dsa_pointer p;

	while (DsaPointerIsValid(p = tpc_queue_pop(node, &node->decisions)))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), p);

		/* Ours now: nobody else knows of it. */
		if (!handle_item(item))
			retry_later(item);
		dsa_free(tpc_area(), p);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
	}
}

/* Something is there to be taken: a look without the lock, as a hint. */
static bool
work_waiting(void)
{
	return node->decisions.count > 0 || (lead && node->chores.count > 0);
}

void
tpc_resolve_worker_main(Datum arg)
{
	int			number;
	TpcWorker  *self;

	node = tpc_worker_attach(arg, &number, &self);
	lead = number == 0;
	tpc_worker_connect(node, false);
	item_context = AllocSetContextCreate(TopMemoryContext, "tpc_amqp item",
										 ALLOCSET_DEFAULT_SIZES);
	retry_context = AllocSetContextCreate(TopMemoryContext, "tpc_amqp retries",
										  ALLOCSET_DEFAULT_SIZES);
	if (lead)
		tpc_housekeeper_init(node);
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		long		timeout = 10000;
		long		next;

		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();

		serve_decisions();
		next = serve_retries();
		if (next >= 0)
			timeout = Min(timeout, next);
		if (lead)
			timeout = Min(timeout, tpc_housekeeper_turn());
		pgstat_report_stat(false);

		tpc_worker_wait(self, work_waiting, timeout,
						tpc_wait_event(&wait_event_main,
									   "TpcAmqpResolveWorker"));
	}
}
