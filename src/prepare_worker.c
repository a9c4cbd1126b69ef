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
#include "access/xlog.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "branch.h"
#include "broker.h"
#include "compat.h"
#include "failpoint.h"
#include "handler.h"
#include "join.h"
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
	TransactionId xid;			/* of what was prepared */
} Work;

typedef enum WorkResult
{
	WORK_PREPARED,
	WORK_READ_ONLY,
	WORK_REFUSED,
	WORK_VOTE_AGAIN,			/* repeated prepare of a prepared branch */
	WORK_DROP					/* repeated prepare of a finished branch */
} WorkResult;

/* The vote for which the memory is set aside. */
static const char no_memory_vote[] =
"{\"vote\":\"no\",\"error\":{\"sqlstate\":\"53200\","
"\"message\":\"out of shared memory for messages\"}}";

static TpcNode *node;
static int	number;				/* of this worker */
static int	my_kind;			/* index, or TPC_KIND_GENERAL: whose jobs it
								 * takes */
static char kind_name[TPC_KIND_SIZE];	/* "" for that */
static dlist_head *queue;		/* of those; under jobs */
static dsa_pointer reserve = InvalidDsaPointer;
static bool statement_may_write = false;	/* since the job began */
static bool malformed = false;	/* this job's prepare is */
static TimestampTz malformed_logged_at = 0;
static ExecutorStart_hook_type prev_executor_start = NULL;
static Work *current_work = NULL;	/* from taking a job to its vote */
static volatile bool current_prepared;	/* its PREPARE is durable */
static MemoryContext job_context = NULL;	/* reset per job */
static int	ncall_results = 0;	/* of this job, if a handler returned any */
static char **call_results = NULL;	/* in job_context */
static uint32 wait_event_main = 0;

/* Take the next job, if there is one. */
static bool
take_job(Work *work)
{
	TpcJob	   *job = NULL;

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	if (!dlist_is_empty(queue))
	{
		job = dlist_container(TpcJob, link, dlist_pop_head_node(queue));
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
	return DsaPointerIsValid(reserve) && !dlist_is_empty(queue);
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
	if (current_prepared)
		tpc_prepared_note(node->dbid, &work->id, work->xid, work->user_id);
	LWLockRelease(&tpc_shared->jobs);
	current_work = NULL;
	dsa_free(tpc_area(), work->body);
	TPC_FAILPOINT("P4.before");
	tpc_outbox_push(node, vote);
	TPC_FAILPOINT("P4.after");
}

/*
 * make_vote: a vote for the messenger; error for a no, publish false for none
 * at all.  InvalidDsaPointer if there is no shared memory for it.
 */
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
	if (vote != TPC_VOTE_NO)
	{
		msg.nresults = ncall_results;
		msg.results = call_results;
	}
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
	return tpc_item_try_make(&head, body.data, body.len);
}

/*
 * make_last_vote: the vote of a job that is over.  If there is no memory for
 * it, the place that was set aside takes a short one (a no, or none at all).
 */
static dsa_pointer
make_last_vote(const Work *work, bool publish, TpcVote vote,
			   const TpcRemoteError *error)
{
	dsa_pointer p = make_vote(work, publish, vote, error);
	TpcItem    *item;

	if (DsaPointerIsValid(p))
		return p;
	p = reserve;
	reserve = InvalidDsaPointer;
	item = dsa_get_address(tpc_area(), p);
	memset(item, 0, offsetof(TpcItem, body));
	item->kind = TPC_ITEM_MESSAGE;
	item->type = TPC_MSG_VOTE;
	item->id = work->id;
	strlcpy(item->peer, work->id.coordinator, sizeof(item->peer));
	item->ack_delivery = true;
	item->ack_queue = TPC_QUEUE_PREPARE;
	item->publish = vote == TPC_VOTE_NO;
	strcpy(item->body, no_memory_vote);
	item->len = strlen(no_memory_vote);
	return p;
}

/* Have the place for a last vote.  False if there is none at present. */
static bool
have_reserve(void)
{
	if (!DsaPointerIsValid(reserve))
		reserve = tpc_area_try_alloc(offsetof(TpcItem, body) +
									 sizeof(no_memory_vote));
	return DsaPointerIsValid(reserve);
}

/* What a handler has returned, in UTF-8 and in job_context; no more than goes. */
static char *
result_to_wire(char *result)
{
	int			len = strlen(result);
	char	   *utf8;

	if (len > TPC_RESULT_MAXLEN)
		result[pg_mbcliplen(result, len, TPC_RESULT_MAXLEN)] = '\0';
	/* bytes of a SQL_ASCII database go as they are: the codec sees to them */
	utf8 = GetDatabaseEncoding() == PG_SQL_ASCII ? result :
		pg_server_to_any(result, strlen(result), PG_UTF8);
	return MemoryContextStrdup(job_context, utf8);
}

/*
 * run_calls: step P2.  Run the handlers in order, in the open transaction.
 * Returns the role of the last one, which stays in force.  Their results go
 * into call_results.
 */
static Oid
run_calls(const Work *work, bool *must_prepare)
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
		malformed = true;
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("malformed prepare: %s", why)));
	}

	*must_prepare = msg.must_prepare;
	for (int i = 0; i < msg.ncalls; i++)
	{
		TpcCallItem *call = &msg.calls[i];
		char	   *handler;
		char	   *arg;
		char	   *result;
		char		activity[200];

		handler = pg_any_to_server(call->handler, strlen(call->handler),
								   PG_UTF8);
		arg = pg_any_to_server(call->arg, call->arg_len, PG_UTF8);
		snprintf(activity, sizeof(activity), "handler %s for %s",
				 handler, work->gtid);
		pgstat_report_activity(STATE_RUNNING, activity);
		tpc_handler_run(handler, work->id.coordinator, kind_name,
						InvalidOid, arg,
						strlen(arg), &running_as, &result);
		if (result == NULL)
			continue;
		if (ncall_results == 0)
			call_results = MemoryContextAllocZero(job_context,
												  sizeof(char *) * msg.ncalls);
		ncall_results = msg.ncalls;
		call_results[i] = result_to_wire(result);
	}
	return running_as;
}

/*
 * run_branch: steps P2 and P3.  Raises for whatever makes it a no; must not
 * be taken for a no once current_prepared is set.  The yes-vote in *yes is made
 * anew if there are results to tell; if there is no room for them, it goes
 * without.
 */
static WorkResult
run_branch(Work *work, volatile dsa_pointer *yes)
{
	TpcBranchRow row;
	Oid			save_userid;
	int			save_sec_context;
	int			left_ms;
	bool		closed;
	bool		writes;
	bool		must_prepare = false;
	Oid			running_as;

	GetUserIdAndSecContext(&save_userid, &save_sec_context);

	tpc_worker_set_lock_timeout();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	BeginTransactionBlock();
	CommitTransactionCommand();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * Did it take effect before?  The look at the floor that counts comes
	 * after the insert; this one saves running what is known to be closed.
	 */
	tpc_branch_probe(&work->id, &row);
	closed = tpc_branch_seems_closed(&work->id, work->user_id) &&
		tpc_branch_below_floor(&work->id, work->user_id);
	switch (tpc_protocol_prepare(row.state, closed))
	{
		case TPC_PREPARE_RUN:
			break;
		case TPC_PREPARE_VOTE_AGAIN:

			/*
			 * Only for one that is really prepared (a row in progress may be
			 * that of a transaction that is failing), and to who sent it.
			 */
			if (strcmp(row.sender, work->user_id) == 0 &&
				tpc_branch_gid_exists(row.gid) &&
				tpc_worker_await_standbys())
				return WORK_VOTE_AGAIN;
			return WORK_DROP;
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

	/* A yes is to hold after a failover as well. */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		(void) set_config_option("synchronous_commit", "on", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
								 false);

	/* Leave time for the no to arrive before the coordinator gives up. */
	enable_timeout_after(STATEMENT_TIMEOUT, Max(1, left_ms - left_ms / 10));

	statement_may_write = false;
	TPC_FAILPOINT("P2.before");
	running_as = run_calls(work, &must_prepare);
	TPC_FAILPOINT("P2.after");

	/*
	 * Deferred triggers fire now, under the role of the last handler and
	 * within the deadline.  What follows runs no user code, so it runs as
	 * ourselves: the prepared transaction is not to belong to that role,
	 * which could finish it against the decision.
	 */
	AfterTriggerFireDeferred();
	CommandCounterIncrement();
	tpc_handler_end(running_as);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	disable_timeout(STATEMENT_TIMEOUT, false);
	CHECK_FOR_INTERRUPTS();
	if (tpc_join_pending())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a handler cannot join a global transaction"),
				 errdetail("Its transaction is a branch of %s already.",
						   work->gtid)));

	/*
	 * With calls of its own it has participants of its own to wait for.  A
	 * statement that is more than a query may have written elsewhere (a
	 * foreign table), which PREPARE knows to refuse.
	 */
	writes = TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		tpc_txn_has_calls() || statement_may_write || must_prepare;
	if (!writes)
	{
		/* these raise for WITH HOLD, LISTEN and NOTIFY, as PREPARE would */
		(void) PreCommit_Portals(true);
		AtPrepare_Notify();
		PopActiveSnapshot();
		if (!EndTransactionBlock(false))
			elog(ERROR, "could not end the transaction");
		CommitTransactionCommand();
		return WORK_READ_ONLY;
	}

	/* Insert first, then look at the floor: see tpc_branch_below_floor. */
	tpc_branch_insert(&work->id, work->gid, work->user_id);
	if (tpc_branch_below_floor(&work->id, work->user_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction %s is closed", work->gtid)));
	PopActiveSnapshot();
	work->xid = GetTopTransactionId();

	if (ncall_results > 0)
	{
		dsa_pointer with_results = make_vote(work, true, TPC_VOTE_YES, NULL);

		if (DsaPointerIsValid(with_results))
		{
			dsa_free(tpc_area(), *yes);
			*yes = with_results;
		}
	}

	/* Its own participants have to vote first, and in time. */
	if (tpc_txn_has_calls())
	{
		left_ms = (int) TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														work->deadline);
		tpc_txn_set_deadline(TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														 left_ms - left_ms / 10));
		tpc_txn_set_gid(work->gid);
	}

	TPC_FAILPOINT("P3.before");
	if (!PrepareTransactionBlock(work->gid))
		elog(ERROR, "could not prepare the transaction");
	CommitTransactionCommand();
	current_prepared = true;
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
	else if (GetCurrentTimestamp() >= get_timeout_finish_time(STATEMENT_TIMEOUT))
	{
		error->detail = error->message;
		error->message = "the handlers did not finish before the transaction's deadline";
		error->hint = "Increase \"tpc_amqp.prepare_timeout\" at the coordinator if they need longer.";
	}
}

/*
 * describe_error: the reason of a no-vote, in UTF-8.  Converting may need the
 * catalogs, so a transaction; if it fails, the SQLSTATE has to do.
 */
static void
describe_error(const Work *work, ErrorData *edata, TpcRemoteError *error)
{
	PG_TRY();
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(job_context);
		tpc_report_from_error_data(edata, error);
		CommitTransactionCommand();
		MemoryContextSwitchTo(job_context);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(job_context);
		memset(error, 0, sizeof(*error));
		strlcpy(error->sqlstate, unpack_sql_state(edata->sqlerrcode),
				sizeof(error->sqlstate));
		error->message = "the error cannot be represented in UTF-8";
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	explain_cancel(work, edata->sqlerrcode, error);
}

/* One job from its transaction's start to its vote. */
static void
run_job(Work *work)
{
	volatile WorkResult result = WORK_REFUSED;
	volatile dsa_pointer yes;
	ErrorData  *volatile edata = NULL;
	TpcRemoteError error;
	MemoryContext old = MemoryContextSwitchTo(job_context);
	Oid			save_userid;
	int			save_sec_context;

	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	memset(&error, 0, sizeof(error));
	current_prepared = false;
	malformed = false;
	ncall_results = 0;
	call_results = NULL;
	current_work = work;
	QueryCancelPending = false;
	yes = make_vote(work, true, TPC_VOTE_YES, NULL);

	PG_TRY();
	{
		if (!DsaPointerIsValid(yes))
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of shared memory for messages")));
		result = run_branch(work, &yes);
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
		HOLD_INTERRUPTS();
		disable_timeout(STATEMENT_TIMEOUT, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(job_context);
		edata = CopyErrorData();
		/* one anybody can send, as other messages that are dropped */
		if (!malformed || tpc_worker_may_log(&malformed_logged_at))
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		SetUserIdAndSecContext(save_userid, save_sec_context);
		result = current_prepared ? WORK_PREPARED : WORK_REFUSED;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(job_context);

	switch (result)
	{
		case WORK_PREPARED:
			tpc_node_count(node, TPC_STAT_BRANCHES_PREPARED, 1);
			/* FALLTHROUGH */
		case WORK_VOTE_AGAIN:
			if (tpc_worker_gave_up_standbys())
			{
				/* the lead inquires once they have it */
				finish_job(work, make_last_vote(work, false, TPC_VOTE_YES,
												NULL));
				break;
			}
			finish_job(work, yes);
			yes = InvalidDsaPointer;
			break;
		case WORK_READ_ONLY:
			tpc_node_count(node, TPC_STAT_BRANCHES_READ_ONLY, 1);
			finish_job(work, make_last_vote(work, true, TPC_VOTE_READ_ONLY,
											NULL));
			break;
		case WORK_DROP:
			finish_job(work, make_last_vote(work, false, TPC_VOTE_YES, NULL));
			break;
		case WORK_REFUSED:
			describe_error(work, edata, &error);
			tpc_node_count(node, TPC_STAT_BRANCHES_REFUSED, 1);
			finish_job(work, make_last_vote(work, true, TPC_VOTE_NO, &error));
			break;
	}
	if (DsaPointerIsValid(yes))
		dsa_free(tpc_area(), yes);
	tpc_txn_set_deadline(0);
	/* Advisory locks of the session are not to be left to other handlers. */
	LockReleaseAll(USER_LOCKMETHOD, true);
	MemoryContextSwitchTo(old);
	MemoryContextReset(job_context);

	/* A cancel that came when there was nothing left to cancel. */
	QueryCancelPending = false;
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Terminated in the middle of a job: say so, rather than stay silent.  The
 * transaction is over by now (this is called after the server's own exit
 * callback): a no must not be out while its locks and row are still there.
 */
static void
vote_at_exit(int code, Datum arg)
{
	Work	   *work = current_work;
	TpcRemoteError error;

	if (work == NULL || !DsaPointerIsValid(reserve))
		return;
	current_work = NULL;
	memset(&error, 0, sizeof(error));
	strlcpy(error.sqlstate, unpack_sql_state(ERRCODE_ADMIN_SHUTDOWN),
			sizeof(error.sqlstate));
	error.message = "the process that ran the branch was terminated";
	/* if there are standbys, they may not have what is prepared: as above */
	finish_job(work, make_last_vote(work,
									!current_prepared ||
									!tpc_worker_has_standbys(),
									current_prepared ?
									TPC_VOTE_YES : TPC_VOTE_NO,
									current_prepared ? NULL : &error));
}

/*
 * Notice statements that do more than read.  Local writes are known by their
 * transaction id; those of foreign tables leave no other trace.
 */
static void
executor_start(QueryDesc *queryDesc, int eflags)
{
	PlannedStmt *stmt = queryDesc->plannedstmt;

	if (current_work != NULL &&
		(queryDesc->operation != CMD_SELECT || stmt->hasModifyingCTE ||
		 stmt->rowMarks != NIL))
		statement_may_write = true;
	if (prev_executor_start)
		prev_executor_start(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
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

/* Take jobs of the kind that the launcher has this worker for. */
static void
take_kind(void)
{
	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	my_kind = node->prepare_kind[number];
	if (my_kind < 0)
		queue = &node->job_queue;
	else
	{
		queue = &node->kind_queue[my_kind];
		strlcpy(kind_name, node->kinds[my_kind].name, sizeof(kind_name));
	}
	LWLockRelease(&tpc_shared->control);
}

/* Whether it is to take other jobs from now on; a hint, without the lock. */
static bool
reassigned(void)
{
	return node->prepare_kind[number] != my_kind ||
		my_kind == TPC_KIND_NONE ||
		(my_kind >= 0 &&
		 strcmp(node->kinds[my_kind].name, kind_name) != 0);
}

void
tpc_prepare_worker_main(Datum arg)
{
	TpcWorker  *self;

	node = tpc_worker_attach(arg, &number, &self);
	take_kind();
	/* before connecting, so that it runs after the transaction's end */
	before_shmem_exit(vote_at_exit, (Datum) 0);
	tpc_worker_connect(node, true);
	tpc_txn_runs_branches();
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	job_context = AllocSetContextCreate(TopMemoryContext,
										"tpc_amqp job",
										ALLOCSET_DEFAULT_SIZES);
	drop_orphaned_jobs();
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		/* Not on the stack: an exit callback looks at it. */
		static Work work;

		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node) || reassigned())
			proc_exit(0);
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		while (have_reserve() && take_job(&work))
		{
			run_job(&work);
			if (tpc_worker_should_exit(node) || reassigned())
				proc_exit(0);
		}
		tpc_worker_wait(self, job_waiting, have_reserve() ? 10000 : 100,
						tpc_wait_event(&wait_event_main,
									   "TpcAmqpPrepareWorker"));
	}
}
