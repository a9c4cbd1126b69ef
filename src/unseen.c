/*-------------------------------------------------------------------------
 *
 * unseen.c
 *	  From which id on rows may have turned up since the last look.
 *
 * A table is looked at again and again for rows that have become visible, in
 * order of their ids, which come from a sequence.  Transactions become visible
 * in any order, so a lower id may turn up after higher ones; but to begin each
 * time at the lowest would be to pass over all that is there already, and over
 * what is gone but kept by somebody's old snapshot.
 *
 * Two things tell where to begin.  A row is new if the last look's snapshot did
 * not show its transaction, and this one's does.  And a transaction has its xid
 * before it draws an id: so when some look had met id M, and the next xid was X
 * after that, transactions from X on have ids above M.  Such pairs are the
 * points kept here.  Among those that the last look did not show and that have
 * ended since, each has the bound of the last point whose X is not above its
 * xid; the lowest of these is where to begin, if it is below what the last
 * look has not come to.
 *
 * So one transaction that runs for hours is of no effect before it ends, and
 * short ones cost what has been drawn since they began.
 *
 * A point is kept as long as there is somebody unfinished between it and the
 * next.  So there are about as many as transactions run at a time.
 *
 * No I/O, no shared memory: what it has to know comes as arguments.  Arrays are
 * allocated in the current memory context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "unseen.h"

/* As TransactionIdPrecedes(), of normal ones. */
static inline bool
precedes(TransactionId a, TransactionId b)
{
	return (int32) (a - b) < 0;
}

/* All that run at a time are within half the circle. */
static int
compare_xids(const void *a, const void *b)
{
	TransactionId x = *(const TransactionId *) a;
	TransactionId y = *(const TransactionId *) b;

	return x == y ? 0 : precedes(x, y) ? -1 : 1;
}

/* All ids of transactions from this xid on are above the result. */
static int64
bound_of(const TpcUnseen *unseen, TransactionId xid)
{
	for (int i = unseen->npoints - 1; i >= 0; i--)
	{
		if (!precedes(xid, unseen->points[i].next))
			return unseen->points[i].id;
	}
	return 0;
}

/*
 * tpc_unseen_begin: a look begins, with a snapshot of this xmax and of these
 * transactions that run.  Returns the id to begin with.
 */
int64
tpc_unseen_begin(TpcUnseen *unseen, TransactionId xmax,
				 const TransactionId *running, int nrunning)
{
	TpcUnfinished *now = &unseen->now;
	TpcUnfinished *before = &unseen->before;
	int64		first = unseen->done + 1;

	if (now->size < nrunning)
	{
		if (now->running != NULL)
			pfree(now->running);
		now->running = NULL;
		now->size = 0;
		now->running = palloc(sizeof(TransactionId) * 2 * nrunning);
		now->size = 2 * nrunning;
	}
	now->xmax = xmax;
	now->nrunning = nrunning;
	if (nrunning > 0)
	{
		memcpy(now->running, running, sizeof(TransactionId) * nrunning);
		qsort(now->running, nrunning, sizeof(TransactionId), compare_xids);
	}

	if (!unseen->known)
		return 0;
	for (int i = 0; i < before->nrunning; i++)
	{
		TransactionId xid = before->running[i];

		if (nrunning == 0 ||
			bsearch(&xid, now->running, nrunning, sizeof(TransactionId),
					compare_xids) == NULL)
			first = Min(first, bound_of(unseen, xid) + 1);
	}
	if (precedes(before->xmax, xmax))
		first = Min(first, bound_of(unseen, before->xmax) + 1);
	return first;
}

/* Drop points between which and the next one nobody is unfinished. */
static void
prune(TpcUnseen *unseen)
{
	const TpcUnfinished *before = &unseen->before;
	int			kept = 0;
	int			r = 0;

	for (int i = 0; i < unseen->npoints; i++)
	{
		bool		last = i == unseen->npoints - 1;
		TransactionId end = last ? 0 : unseen->points[i + 1].next;

		while (r < before->nrunning &&
			   precedes(before->running[r], unseen->points[i].next))
			r++;
		if (last || precedes(before->xmax, end) ||
			(r < before->nrunning && precedes(before->running[r], end)))
			unseen->points[kept++] = unseen->points[i];
	}
	unseen->npoints = kept;
}

/*
 * tpc_unseen_end: the look that has begun is over.  What its snapshot shows up
 * to id done is dealt with.  highest is the highest id that it met (0: none),
 * and next the next xid, as of after that.
 */
void
tpc_unseen_end(TpcUnseen *unseen, int64 done, int64 highest,
			   TransactionId next)
{
	TpcUnfinished now = unseen->now;
	TpcUnseenPoint *last = NULL;

	if (unseen->npoints > 0)
	{
		last = &unseen->points[unseen->npoints - 1];
		highest = Max(highest, last->id);
	}
	if (last == NULL || last->next != next)
	{
		if (unseen->npoints == unseen->points_size)
		{
			int			size = Max(16, 2 * unseen->points_size);

			unseen->points = unseen->points == NULL ?
				palloc(sizeof(TpcUnseenPoint) * size) :
				repalloc(unseen->points, sizeof(TpcUnseenPoint) * size);
			unseen->points_size = size;
		}
		last = &unseen->points[unseen->npoints++];
		last->next = next;
	}
	last->id = highest;

	unseen->known = true;
	unseen->done = done;
	unseen->now = unseen->before;
	unseen->before = now;
	prune(unseen);
}

/* tpc_unseen_again: the next look is to begin here, if not below. */
void
tpc_unseen_again(TpcUnseen *unseen, int64 id)
{
	unseen->done = Min(unseen->done, id - 1);
}

/* tpc_unseen_forget: the next look is to begin with the lowest id. */
void
tpc_unseen_forget(TpcUnseen *unseen)
{
	unseen->known = false;
	unseen->done = 0;
	unseen->npoints = 0;
}
