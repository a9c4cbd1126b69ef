/*-------------------------------------------------------------------------
 *
 * failpoint.c
 *	  Places where a test can make a process fail, die or stop.
 *
 * Actions: "error" raises, "fatal" ends the process in order, "kill" ends it
 * with SIGKILL (so the postmaster restarts all), "stop" has it stand still
 * until somebody sends SIGCONT, "wait" holds it until the failpoint is
 * cleared, a minute at most.  An action may be followed by ":once": it is
 * taken by the first process that comes by.  Where raising is not allowed
 * (after a commit record), tests use "kill", "stop" and "wait" only.
 *
 * While tracing is on, it is noted which processes come by which failpoints,
 * and whether they hold interrupts there, which is to say: may not raise.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef TPC_FAILPOINTS

#include <signal.h>
#include <unistd.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "failpoint.h"

#define MAX_FAILPOINTS 64
#define MAX_TRACED 256

typedef enum FailAction
{
	FAIL_NONE,
	FAIL_ERROR,
	FAIL_FATAL,
	FAIL_KILL,
	FAIL_STOP,
	FAIL_WAIT
} FailAction;

typedef struct Failpoint
{
	char		name[64];
	FailAction	action;
	bool		once;
	int			waiters;
	int			pid;			/* who came by last and took the action */
} Failpoint;

/* That a kind of process has come by. */
typedef struct Traced
{
	char		name[64];
	char		process[BGW_MAXLEN];
	bool		holds_interrupts;
} Traced;

typedef struct FailpointShared
{
	slock_t		mutex;
	int			nset;			/* read without the lock: a hint */
	bool		tracing;
	int			ntraced;
	Traced		traced[MAX_TRACED];
	Failpoint	points[MAX_FAILPOINTS];
} FailpointShared;

static FailpointShared *failpoints = NULL;

void
tpc_failpoint_shmem_request(void)
{
	RequestAddinShmemSpace(sizeof(FailpointShared));
}

void
tpc_failpoint_shmem_startup(void)
{
	bool		found;

	failpoints = ShmemInitStruct("tpc_amqp failpoints",
								 sizeof(FailpointShared), &found);
	if (!found)
	{
		memset(failpoints, 0, sizeof(FailpointShared));
		SpinLockInit(&failpoints->mutex);
	}
}

static Failpoint *
failpoint_find(const char *name)
{
	for (int i = 0; i < MAX_FAILPOINTS; i++)
	{
		if (strcmp(failpoints->points[i].name, name) == 0)
			return &failpoints->points[i];
	}
	return NULL;
}

static FailAction
failpoint_action(const char *name)
{
	FailAction	action = FAIL_NONE;
	Failpoint  *p;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
		action = p->action;
	SpinLockRelease(&failpoints->mutex);
	return action;
}

static void
failpoint_wait(const char *name, int change)
{
	Failpoint  *p;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
		p->waiters += change;
	SpinLockRelease(&failpoints->mutex);
}

/* Note that this process has come by.  The caller holds the mutex. */
static void
trace(const char *name)
{
	const char *process = MyBgworkerEntry != NULL ?
	MyBgworkerEntry->bgw_type : "backend";
	bool		holds_interrupts = InterruptHoldoffCount > 0;
	Traced	   *t;

	for (int i = 0; i < failpoints->ntraced; i++)
	{
		t = &failpoints->traced[i];
		if (strcmp(t->name, name) == 0 && strcmp(t->process, process) == 0)
		{
			t->holds_interrupts |= holds_interrupts;
			return;
		}
	}
	if (failpoints->ntraced == MAX_TRACED)
		return;
	t = &failpoints->traced[failpoints->ntraced++];
	strlcpy(t->name, name, sizeof(t->name));
	strlcpy(t->process, process, sizeof(t->process));
	t->holds_interrupts = holds_interrupts;
}

void
tpc_failpoint(const char *name)
{
	FailAction	action = FAIL_NONE;
	bool		once = false;
	Failpoint  *p;

	if (failpoints == NULL || failpoints->nset == 0)
		return;

	SpinLockAcquire(&failpoints->mutex);
	if (failpoints->tracing)
		trace(name);
	p = failpoint_find(name);
	if (p != NULL && p->action != FAIL_NONE)
	{
		p->pid = MyProcPid;
		action = p->action;
		once = p->once;
		if (once && action != FAIL_WAIT)
			p->action = FAIL_NONE;
	}
	SpinLockRelease(&failpoints->mutex);

	switch (action)
	{
		case FAIL_NONE:
			break;
		case FAIL_ERROR:
			/* who catches it may keep it to himself */
			ereport(LOG,
					(errmsg("failpoint \"%s\" raises an error", name),
					 errhidestmt(true)));
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("failpoint \"%s\"", name)));
			break;
		case FAIL_FATAL:
			ereport(FATAL,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("failpoint \"%s\"", name)));
			break;
		case FAIL_KILL:
			kill(getpid(), SIGKILL);
			break;
		case FAIL_STOP:
			kill(getpid(), SIGSTOP);
			break;
		case FAIL_WAIT:
			{
				TimestampTz end = GetCurrentTimestamp() + 60 * USECS_PER_SEC;

				failpoint_wait(name, 1);
				while (failpoint_action(name) == FAIL_WAIT &&
					   GetCurrentTimestamp() < end)
				{
					/*
					 * Not our latch: it may carry a wake-up meant for the
					 * code around the failpoint.
					 */
					if (WaitLatch(NULL, WL_TIMEOUT |
								  (InterruptHoldoffCount == 0 ?
								   WL_EXIT_ON_PM_DEATH : WL_POSTMASTER_DEATH),
								  10, PG_WAIT_EXTENSION) & WL_POSTMASTER_DEATH)
						break;	/* no place to exit from */
					if (InterruptHoldoffCount == 0)
						CHECK_FOR_INTERRUPTS();
				}
				failpoint_wait(name, -1);
			}
			break;
	}
}

/* tpc_failpoint_set(name text, action text) */
PG_FUNCTION_INFO_V1(tpc_failpoint_set);
Datum
tpc_failpoint_set(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *action_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool		once = false;
	FailAction	action;
	char	   *colon = strchr(action_name, ':');
	Failpoint  *p;

	if (colon != NULL)
	{
		*colon = '\0';
		once = true;
	}
	if (strcmp(action_name, "error") == 0)
		action = FAIL_ERROR;
	else if (strcmp(action_name, "fatal") == 0)
		action = FAIL_FATAL;
	else if (strcmp(action_name, "kill") == 0)
		action = FAIL_KILL;
	else if (strcmp(action_name, "stop") == 0)
		action = FAIL_STOP;
	else if (strcmp(action_name, "wait") == 0)
		action = FAIL_WAIT;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown failpoint action \"%s\"", action_name)));
	if (failpoints == NULL)
		elog(ERROR, "tpc_amqp is not preloaded");

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p == NULL)
		p = failpoint_find("");
	if (p != NULL)
	{
		strlcpy(p->name, name, sizeof(p->name));
		p->action = action;
		p->once = once;
		p->pid = 0;
		failpoints->nset = 1;
	}
	SpinLockRelease(&failpoints->mutex);
	if (p == NULL)
		elog(ERROR, "too many failpoints");
	PG_RETURN_VOID();
}

/* tpc_failpoint_clear(name text) */
PG_FUNCTION_INFO_V1(tpc_failpoint_clear);
Datum
tpc_failpoint_clear(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Failpoint  *p;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
		p->action = FAIL_NONE;
	SpinLockRelease(&failpoints->mutex);
	PG_RETURN_VOID();
}

/* tpc_failpoint_waiters(name text) returns int */
PG_FUNCTION_INFO_V1(tpc_failpoint_waiters);
Datum
tpc_failpoint_waiters(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			waiters = 0;
	Failpoint  *p;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
		waiters = p->waiters;
	SpinLockRelease(&failpoints->mutex);
	PG_RETURN_INT32(waiters);
}

/* tpc_failpoint_pid(name text) returns int: NULL if nobody has come by */
PG_FUNCTION_INFO_V1(tpc_failpoint_pid);
Datum
tpc_failpoint_pid(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			pid = 0;
	Failpoint  *p;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
		pid = p->pid;
	SpinLockRelease(&failpoints->mutex);
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* tpc_failpoint_trace(): begin, with nothing noted */
PG_FUNCTION_INFO_V1(tpc_failpoint_trace);
Datum
tpc_failpoint_trace(PG_FUNCTION_ARGS)
{
	SpinLockAcquire(&failpoints->mutex);
	failpoints->tracing = true;
	failpoints->ntraced = 0;
	failpoints->nset = 1;
	SpinLockRelease(&failpoints->mutex);
	PG_RETURN_VOID();
}

/* tpc_failpoint_traced() returns text: end it; name,process,raise a line */
PG_FUNCTION_INFO_V1(tpc_failpoint_traced);
Datum
tpc_failpoint_traced(PG_FUNCTION_ARGS)
{
	StringInfoData buf;

	SpinLockAcquire(&failpoints->mutex);
	failpoints->tracing = false;
	SpinLockRelease(&failpoints->mutex);

	initStringInfo(&buf);
	for (int i = 0; i < failpoints->ntraced; i++)
	{
		Traced	   *t = &failpoints->traced[i];

		appendStringInfo(&buf, "%s,%s,%s\n", t->name, t->process,
						 t->holds_interrupts ? "no" : "yes");
	}
	PG_RETURN_TEXT_P(cstring_to_text_with_len(buf.data, buf.len));
}

#endif							/* TPC_FAILPOINTS */
