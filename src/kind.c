/*-------------------------------------------------------------------------
 *
 * kind.c
 *	  Kinds of calls that have a prepare queue and workers of their own.
 *
 * A slow kind of work must not hold up a quick one: calls of a kind come in
 * through a queue of their own ("tpc_amqp.<node>.prepare:<kind>") and are run
 * by workers that run nothing else.
 *
 * Which kinds there are follows from table handler.  The lead reads it and
 * keeps the list in shared memory; the launcher starts the workers, and the
 * messenger consumes.  A kind keeps its place in the list as long as there is
 * one, so that jobs can name it by that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "handler.h"
#include "kind.h"
#include "relation.h"
#include "worker.h"

/* tpc_kind_check_name: raises 42602. */
void
tpc_kind_check_name(const char *kind)
{
	if (!tpc_kind_name_valid(kind, strlen(kind)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a kind \"%s\"", kind),
				 errdetail("It has 1 to %d of the characters a-z, A-Z, 0-9, \"_\" and \"-\".",
						   TPC_KIND_MAXLEN)));
}

/*
 * Take a kind off the list.  What is queued is left to the general workers,
 * which find that its handlers are gone, or of no kind any more.
 */
static void
remove_kind(TpcNode *node, int index)
{
	dlist_mutable_iter iter;

	LWLockAcquire(&tpc_shared->jobs, LW_EXCLUSIVE);
	dlist_foreach_modify(iter, &node->kind_queue[index])
	{
		TpcJob	   *job = dlist_container(TpcJob, link, iter.cur);

		dlist_delete(&job->link);
		job->kind = TPC_KIND_GENERAL;
		dlist_push_tail(&node->job_queue, &job->link);
	}
	memset(&node->kinds[index], 0, sizeof(node->kinds[index]));
	LWLockRelease(&tpc_shared->jobs);
	tpc_wake_prepare_worker(node, TPC_KIND_GENERAL);
}

/* Bring the list in line with what there should be; true if it has changed. */
static bool
update_kinds(TpcNode *node, List *wanted)
{
	bool		changed = false;
	ListCell   *lc;

	LWLockAcquire(&tpc_shared->control, LW_EXCLUSIVE);
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		TpcKind    *kind = &node->kinds[i];
		TpcKind    *found = NULL;

		if (kind->name[0] == '\0')
			continue;
		foreach(lc, wanted)
		{
			if (strcmp(((TpcKind *) lfirst(lc))->name, kind->name) == 0)
				found = lfirst(lc);
		}
		if (found == NULL)
			remove_kind(node, i);
		else if (kind->workers != found->workers)
			kind->workers = found->workers;
		else
			continue;
		changed = true;
	}
	foreach(lc, wanted)
	{
		TpcKind    *kind = lfirst(lc);
		int			free_place = -1;

		for (int i = TPC_MAX_KINDS - 1; i >= 0; i--)
		{
			if (node->kinds[i].name[0] == '\0')
				free_place = i;
			else if (strcmp(node->kinds[i].name, kind->name) == 0)
			{
				free_place = -1;
				break;
			}
		}
		if (free_place < 0)
			continue;
		node->kinds[free_place].workers = kind->workers;
		strlcpy(node->kinds[free_place].name, kind->name,
				sizeof(node->kinds[free_place].name));
		changed = true;
	}
	LWLockRelease(&tpc_shared->control);
	return changed;
}

/*
 * tpc_kind_follow: have the node do as table handler says.  The lead calls it
 * once in a while, outside of a transaction.
 */
void
tpc_kind_follow(TpcNode *node)
{
	List	   *wanted = NIL;

	tpc_worker_begin();
	if (tpc_relation_exists("handler"))
		wanted = tpc_handler_kinds();
	if (update_kinds(node, wanted))
	{
		pg_atomic_fetch_add_u32(&node->kinds_changed, 1);
		tpc_wake_launcher();
		tpc_wake_messenger(node);
	}
	tpc_worker_end();
}
