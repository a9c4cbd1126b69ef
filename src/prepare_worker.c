/*-------------------------------------------------------------------------
 *
 * prepare_worker.c
 *	  Phase 1 at a participant: run the handlers, PREPARE, vote.
 *
 * One transaction per job.  Everything that can fail does so before PREPARE,
 * and becomes a no-vote with its reason; the yes-vote is made beforehand and
 * only handed to the messenger once PREPARE is durable.  If this process dies
 * between the two, the lead resolver finds the branch and inquires, which says
 * the same.
 *
 * A branch that wrote nothing commits at once and has no second phase.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "branch.h"
#include "broker.h"
#include "compat.h"
#include "failpoint.h"
#include "handler.h"
#include "report.h"
#include "settings.h"
#include "shmem.h"
#include "txn.h"
#include "worker.h"

/* What this process works on; the job itself stays in shared memory. */
typedef struct Work
{
	TpcJob	   *job;
	TpcGlobalId id;
	char		user_id[TPC_USER_MAXLEN + 1];
	TimestampTz deadline;
	dsa_pointer body;
	uint32		len;
	char		gid[TPC_GID_SIZE];
	char		gtid[TPC_GTID_TEXT_SIZE];
} Work;

typedef enum WorkResult
{
	WORK_PREPARED,
	WORK_READ_ONLY,
	WORK_REFUSED,
	WORK_VOTE_AGAIN,			/* repeated prepare of a prepared branch */
	WORK_DROP					/* repeated prepare of a finished branch */
} WorkResult;

static TpcNode *node;
static Work *current_work = NULL;	/* from taking a job to its vote */
static volatile bool current_prepared;	/* its PREPARE is durable */
static MemoryContext job_context = NULL;	/* reset per job */
static uint32 wait_event_main = 0;

/* Take the next job, if there is one. */
static bool
take_job(Work *work)
{
	TpcJob	   *job = NULL;

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	if (!dlist_is_empty(&node->job_queue))
	{
		job = dlist_container(TpcJob, link,
							  dlist_pop_head_node(&node->job_queue));
		job->state = TPC_JOB_RUNNING;
		job->pid = MyProcPid;
		memset(work, 0, sizeof(*work));
		work->job = job;
		work->id = job->key.id;
		strlcpy(work->user_id, job->user_id, sizeof(work->user_id));
		work->deadline = job->deadline;
		work->body = job->body;
		work->len = job->len;
	}
	LWLockRelease(&tpc_shared->jobs);
	if (job == NULL)
		return false;
	tpc_branch_gid(&work->id, node->name, work->gid);
	tpc_gtid_to_text(&work->id, work->gtid);
	return true;
}

/* A job is there to be taken: a look without the lock, as a hint. */
static bool
job_waiting(void)
{
	return !dlist_is_empty(&node->job_queue);
}

/* Whether the coordinator has rolled it back meanwhile. */
static bool
cancelled(const Work *work)
{
	bool		cancel;

	LWLockAcquire(&tpc_shared->jobs, LW_SHARED);
	cancel = work->job->cancel;
	LWLockRelease(&tpc_shared->jobs);
	return cancel;
}

/*
 * finish_job: remove it, and leave the vote (with the acknowledgement of the
 * delivery) to the messenger.  vote was made with make_vote().
 */
static void
finish_job(const Work *work, dsa_pointer vote)
{
	TpcItem    *item = dsa_get_address(tpc_area(), vote);
	TpcJobKey	key;

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	item->delivery_tag = work->job->delivery_tag;
	item->epoch = work->job->epoch;
	key = work->job->key;
	hash_search(tpc_jobs, &key, HASH_REMOVE, NULL);
	LWLockRelease(&tpc_shared->jobs);
	current_work = NULL;
	dsa_free(tpc_area(), work->body);
	TPC_FAILPOINT("P4.before");
	tpc_outbox_push(node, vote);
	TPC_FAILPOINT("P4.after");
}

/* A vote for the messenger; error for a no, publish false for none at all. */
static dsa_pointer
make_vote(const Work *work, bool publish, TpcVote vote,
		  const TpcRemoteError *error)
{
	TpcMessage	msg;
	TpcItem		head;
	StringInfoData body;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_VOTE;
	msg.id = work->id;
	msg.vote = vote;
	if (error != NULL)
		msg.error = *error;
	initStringInfo(&body);
	tpc_message_encode_body(&msg, &body);

	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_MESSAGE;
	head.type = TPC_MSG_VOTE;
	head.id = work->id;
	strlcpy(head.peer, work->id.coordinator, sizeof(head.peer));
	head.publish = publish;
	head.ack_delivery = true;
	head.ack_queue = TPC_QUEUE_PREPARE;
	return tpc_item_make(&head, body.data, body.len);
}

/* Leave nothing of one handler's session state to the next. */
static void
reset_session(void)
{
	ResetAllOptions();
	LockReleaseAll(USER_LOCKMETHOD, true);
}

/*
 * run_calls: step P2.  Run the handlers in order, in the open transaction.
 */
static void
run_calls(const Work *work)
{
	TpcMessage	msg;
	const char *why;
	Oid			running_as = InvalidOid;
	char	   *body;

	/* A copy of our own: no pointers into shared memory while user code runs. */
	body = palloc(work->len + 1);
	memcpy(body, dsa_get_address(tpc_area(), work->body), work->len);
	body[work->len] = '\0';
	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_PREPARE;
	if (!tpc_message_decode_body(body, work->len, &msg, &why))
	{
		tpc_node_count(node, TPC_STAT_BAD_MESSAGES, 1);
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("malformed prepare: %s", why)));
	}

	for (int i = 0; i < msg.ncalls; i++)
	{
		TpcCallItem *call = &msg.calls[i];
		char	   *handler;
		char	   *arg;
		char		activity[200];

		handler = pg_any_to_server(call->handler, strlen(call->handler),
								   PG_UTF8);
		arg = pg_any_to_server(call->arg, call->arg_len, PG_UTF8);
		snprintf(activity, sizeof(activity), "handler %s for %s",
				 handler, work->gtid);
		pgstat_report_activity(STATE_RUNNING, activity);
		tpc_handler_run(handler, work->id.coordinator, arg, strlen(arg),
						&running_as);
	}
}

/*
 * run_branch: steps P2 and P3.  Raises for whatever makes it a no; must not
 * be taken for a no once current_prepared is set.
 */
static WorkResult
run_branch(const Work *work)
{
	TpcBranchRow row;
	Oid			save_userid;
	int			save_sec_context;
	int			left_ms;
	bool		writes;

	GetUserIdAndSecContext(&save_userid, &save_sec_context);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	BeginTransactionBlock();
	CommitTransactionCommand();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	/* Did it take effect before? */
	tpc_branch_probe(&work->id, &row);
	switch (tpc_protocol_prepare(row.state,
								 tpc_branch_below_floor(&work->id,
														work->user_id)))
	{
		case TPC_PREPARE_RUN:
			break;
		case TPC_PREPARE_VOTE_AGAIN:
			return WORK_VOTE_AGAIN;
		case TPC_PREPARE_DROP:
			return WORK_DROP;
		case TPC_PREPARE_REFUSE:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("transaction %s is closed", work->gtid)));
	}

	if (cancelled(work))
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("transaction %s was rolled back by its coordinator",
						work->gtid)));
	left_ms = (int) TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													work->deadline);
	if (left_ms <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("transaction %s reached its deadline before it was begun",
						work->gtid)));

	if (tpc_lock_timeout > 0)
	{
		char		value[32];

		snprintf(value, sizeof(value), "%d", tpc_lock_timeout);
		(void) set_config_option("lock_timeout", value, PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
								 false);
	}
	/* Leave time for the no to arrive before the coordinator gives up. */
	enable_timeout_after(STATEMENT_TIMEOUT, Max(1, left_ms - left_ms / 10));

	TPC_FAILPOINT("P2.before");
	run_calls(work);
	TPC_FAILPOINT("P2.after");

	/* With calls of its own it has participants of its own to wait for. */
	writes = TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		tpc_txn_has_calls();
	if (!writes)
	{
		/* raises if there is a LISTEN or NOTIFY, as PREPARE would */
		AtPrepare_Notify();
		PopActiveSnapshot();
		if (!EndTransactionBlock(false))
			elog(ERROR, "could not end the transaction");
		disable_timeout(STATEMENT_TIMEOUT, false);
		CommitTransactionCommand();
		SetUserIdAndSecContext(save_userid, save_sec_context);
		return WORK_READ_ONLY;
	}

	/* Insert first, then look at the floor: see tpc_branch_below_floor. */
	tpc_branch_insert(&work->id, work->gid, work->user_id);
	if (tpc_branch_below_floor(&work->id, work->user_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction %s is closed", work->gtid)));
	PopActiveSnapshot();

	TPC_FAILPOINT("P3.before");
	if (!PrepareTransactionBlock(work->gid))
		elog(ERROR, "could not prepare the transaction");

	/*
	 * Deferred triggers fire in here, under the role of the last handler and
	 * within the deadline.  A cancel that comes too late for them is held off
	 * by the server until after PREPARE; see below.
	 */
	CommitTransactionCommand();
	current_prepared = true;
	disable_timeout(STATEMENT_TIMEOUT, false);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	TPC_FAILPOINT("P3.after");
	return WORK_PREPARED;
}

/* Say why it was cancelled, where the server's message does not know. */
static void
explain_cancel(const Work *work, int sqlerrcode, TpcRemoteError *error)
{
	if (sqlerrcode != ERRCODE_QUERY_CANCELED)
		return;
	if (cancelled(work))
		error->message = "the coordinator has rolled the transaction back";
	else if (get_timeout_indicator(STATEMENT_TIMEOUT, false) ||
			 TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
											 work->deadline) <= 0)
	{
		error->detail = error->message;
		error->message = "the handlers did not finish before the transaction's deadline";
		error->hint = "Increase \"tpc_amqp.prepare_timeout\" at the coordinator if they need longer.";
	}
}

/* One job from its transaction's start to its vote. */
static void
run_job(Work *work)
{
	volatile WorkResult result = WORK_REFUSED;
	dsa_pointer yes;
	dsa_pointer vote;
	TpcRemoteError error;
	MemoryContext old = MemoryContextSwitchTo(job_context);
	Oid			save_userid;
	int			save_sec_context;

	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	memset(&error, 0, sizeof(error));
	current_prepared = false;
	current_work = work;
	QueryCancelPending = false;
	yes = make_vote(work, true, TPC_VOTE_YES, NULL);

	PG_TRY();
	{
		result = run_branch(work);
		if (result == WORK_VOTE_AGAIN || result == WORK_DROP)
		{
			PopActiveSnapshot();
			UserAbortTransactionBlock(false);
			CommitTransactionCommand();
			tpc_node_count(node, TPC_STAT_DUPLICATES, 1);
		}
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		disable_timeout(STATEMENT_TIMEOUT, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(job_context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		SetUserIdAndSecContext(save_userid, save_sec_context);
		MemoryContextSwitchTo(job_context);
		if (current_prepared)
			result = WORK_PREPARED;
		else
		{
			tpc_report_from_error_data(edata, &error);
			explain_cancel(work, edata->sqlerrcode, &error);
		}
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();

	/* A cancel or deadline that came after the branch was finished. */
	QueryCancelPending = false;
	MemoryContextSwitchTo(job_context);

	switch (result)
	{
		case WORK_PREPARED:
			tpc_node_count(node, TPC_STAT_BRANCHES_PREPARED, 1);
			/* FALLTHROUGH */
		case WORK_VOTE_AGAIN:
			finish_job(work, yes);
			break;
		case WORK_READ_ONLY:
			tpc_node_count(node, TPC_STAT_BRANCHES_READ_ONLY, 1);
			vote = make_vote(work, true, TPC_VOTE_READ_ONLY, NULL);
			dsa_free(tpc_area(), yes);
			finish_job(work, vote);
			break;
		case WORK_DROP:
			vote = make_vote(work, false, TPC_VOTE_YES, NULL);
			dsa_free(tpc_area(), yes);
			finish_job(work, vote);
			break;
		case WORK_REFUSED:
			tpc_node_count(node, TPC_STAT_BRANCHES_REFUSED, 1);
			vote = make_vote(work, true, TPC_VOTE_NO, &error);
			dsa_free(tpc_area(), yes);
			finish_job(work, vote);
			break;
	}
	reset_session();
	MemoryContextSwitchTo(old);
	MemoryContextReset(job_context);
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* Terminated in the middle of a job: say so, rather than stay silent. */
static void
vote_at_exit(int code, Datum arg)
{
	Work	   *work = current_work;
	TpcRemoteError error;

	if (work == NULL)
		return;
	current_work = NULL;
	LWLockReleaseAll();
	memset(&error, 0, sizeof(error));
	strlcpy(error.sqlstate, unpack_sql_state(ERRCODE_ADMIN_SHUTDOWN),
			sizeof(error.sqlstate));
	error.message = "the process that ran the branch was terminated";
	finish_job(work, make_vote(work, true, current_prepared ?
							   TPC_VOTE_YES : TPC_VOTE_NO,
							   current_prepared ? NULL : &error));
}

/*
 * A worker that died in a job leaves it marked as running by a process that
 * is no more: the job goes, the coordinator's time-out or the resolver's
 * inquiry does the rest.
 */
static void
drop_orphaned_jobs(void)
{
	HASH_SEQ_STATUS seq;
	TpcJob	   *job;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	hash_seq_init(&seq, tpc_jobs);
	while ((job = hash_seq_search(&seq)) != NULL)
	{
		bool		alive = false;

		if (job->key.dbid != node->dbid || job->state != TPC_JOB_RUNNING)
			continue;
		for (int i = 0; i < TPC_MAX_PREPARE_WORKERS; i++)
			alive = alive || node->prepare[i].pid == job->pid;
		if (alive)
			continue;
		dsa_free(tpc_area(), job->body);
		hash_search(tpc_jobs, &job->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(&tpc_shared->jobs);
	LWLockRelease(&tpc_shared->control);
}

void
tpc_prepare_worker_main(Datum arg)
{
	TpcWorker  *self;

	node = tpc_worker_attach(arg, NULL, &self);
	tpc_worker_connect(node, true);
	job_context = AllocSetContextCreate(TopMemoryContext,
										"tpc_amqp job",
										ALLOCSET_DEFAULT_SIZES);
	before_shmem_exit(vote_at_exit, (Datum) 0);
	drop_orphaned_jobs();
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		Work		work;

		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		while (take_job(&work))
		{
			run_job(&work);
			if (tpc_worker_should_exit(node))
				proc_exit(0);
		}
		tpc_worker_wait(self, job_waiting, 10000,
						tpc_wait_event(&wait_event_main,
									   "TpcAmqpPrepareWorker"));
	}
}
