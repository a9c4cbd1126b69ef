/*-------------------------------------------------------------------------
 *
 * failpoint.c
 *	  Places where a test can make a process fail, die or stop.
 *
 * Actions: "error" raises, "fatal" ends the process in order, "kill" ends it
 * with SIGKILL (so the postmaster restarts all), "wait" holds it until the
 * failpoint is cleared, a minute at most.  An action may be followed by
 * ":once": it is taken by the first process that comes by.  Where raising is
 * not allowed (after a commit record), tests use "kill" and "wait" only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef TPC_FAILPOINTS

#include <signal.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "failpoint.h"

#define MAX_FAILPOINTS 32

typedef enum FailAction
{
	FAIL_NONE,
	FAIL_ERROR,
	FAIL_FATAL,
	FAIL_KILL,
	FAIL_WAIT
} FailAction;

typedef struct Failpoint
{
	char		name[64];
	FailAction	action;
	bool		once;
	int			waiters;
} Failpoint;

typedef struct FailpointShared
{
	slock_t		mutex;
	int			nset;			/* read without the lock: a hint */
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

void
tpc_failpoint(const char *name)
{
	FailAction	action = FAIL_NONE;
	bool		once = false;
	Failpoint  *p;

	if (failpoints == NULL || failpoints->nset == 0)
		return;

	SpinLockAcquire(&failpoints->mutex);
	p = failpoint_find(name);
	if (p != NULL)
	{
		action = p->action;
		once = p->once;
		if (once && action != FAIL_NONE && action != FAIL_WAIT)
			p->action = FAIL_NONE;
	}
	SpinLockRelease(&failpoints->mutex);

	switch (action)
	{
		case FAIL_NONE:
			break;
		case FAIL_ERROR:
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

#endif							/* TPC_FAILPOINTS */
