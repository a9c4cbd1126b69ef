/*-------------------------------------------------------------------------
 *
 * turn.c
 *	  Which subscription a consume worker works for next.
 *
 * A subscription has workers of its own, or shares those of the node with the
 * others.  A shared worker that is free works for whoever has the fewest runs
 * going, and waits longest.  So one with many messages leaves the others their
 * turn, and has all workers while nobody else has anything to do.
 *
 * That alone would not do.  A handler may hang, one in each worker, and nobody
 * can know beforehand which will, nor whether what takes long is at fault: so
 * none is interrupted.  Instead, who waits while all shared workers have been
 * busy for a while is lent a worker: one of the places for own workers, until
 * it has had nothing to do for some time, or a shared worker works for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "turn.h"

/* How long who waits leaves the shared workers to others. */
#define PATIENCE_MS		1000
/* How long a worker stays lent after there was something for it to do. */
#define LINGER_MS		5000

static TpcSubscription *
entry_at(dsa_pointer p)
{
	return dsa_get_address(tpc_area(), p);
}

/* tpc_turn_is_own: whether a worker's place is one for own or lent workers. */
bool
tpc_turn_is_own(int number)
{
	return number >= TPC_MAX_SHARED_CONSUMERS;
}

/*
 * tpc_turn_may_run: whether a worker may work for this subscription.  The
 * caller holds the lock of subscriptions.
 */
bool
tpc_turn_may_run(TpcNode *node, int number, const TpcSubscription *sub)
{
	Assert(LWLockHeldByMe(&node->subscriptions_lock));
	if (!sub->wanted)
		return false;
	if (tpc_turn_is_own(number))
		return node->consuming[number].assigned == sub->id;
	return sub->workers == 0;
}

/* Whether there is something for a worker to do, as far as is known. */
static bool
has_work(const TpcSubscription *sub, TimestampTz now)
{
	return sub->items.count > 0 || sub->retry_at <= now;
}

/*
 * Of those a worker may work for, whose turn it is: of messages that have
 * arrived, or of those that failed and are due; NULL if there is nothing.
 */
static TpcSubscription *
pick(TpcNode *node, int number, bool arrived)
{
	TimestampTz now = arrived ? 0 : GetCurrentTimestamp();
	TpcSubscription *best = NULL;
	dsa_pointer p;

	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		TpcSubscription *sub = entry_at(p);

		if ((arrived ? sub->items.count == 0 : sub->retry_at > now) ||
			!tpc_turn_may_run(node, number, sub))
			continue;
		if (best == NULL || sub->runs < best->runs ||
			(sub->runs == best->runs && sub->turn < best->turn))
			best = sub;
	}
	return best;
}

/*
 * tpc_turn_pick: whose message a worker is to take next; NULL if there is none
 * for it.  The caller holds the lock of subscriptions.
 */
TpcSubscription *
tpc_turn_pick(TpcNode *node, int number)
{
	return pick(node, number, true);
}

/* tpc_turn_pick_due: the same of failed messages, as far as is known. */
TpcSubscription *
tpc_turn_pick_due(TpcNode *node, int number)
{
	return pick(node, number, false);
}

/*
 * tpc_turn_due: when a worker is to look for failed messages that are due.
 * The caller holds the lock.
 */
TimestampTz
tpc_turn_due(TpcNode *node, int number)
{
	TimestampTz due = (TimestampTz) pg_atomic_read_u64(&node->retry_at);
	dsa_pointer p;

	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		if (entry_at(p)->retry_at < due &&
			tpc_turn_may_run(node, number, entry_at(p)))
			due = entry_at(p)->retry_at;
	}
	return due;
}

/*
 * tpc_turn_begin: a worker begins a run, of a message whose subscription may
 * not be in the list: sub is NULL then.  The caller holds the lock.
 */
void
tpc_turn_begin(TpcNode *node, int number, TpcSubscription *sub)
{
	TpcConsuming *run = &node->consuming[number];

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	run->busy = true;
	run->since = GetCurrentTimestamp();
	run->subscription = 0;
	if (sub == NULL)
		return;
	run->subscription = sub->id;
	sub->runs++;
	sub->turn = ++node->turns;
	sub->waits_since = 0;
	if (!tpc_turn_is_own(number))
		sub->lent_until = 0;
}

/*
 * tpc_turn_end: the run has ended, if there was one.  The caller holds the
 * lock.
 */
void
tpc_turn_end(TpcNode *node, int number)
{
	TpcConsuming *run = &node->consuming[number];
	TpcSubscription *sub;

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	if (!run->busy)
		return;
	sub = tpc_subscription_find(node, run->subscription);
	if (sub != NULL)
		sub->runs--;
	run->busy = false;
	run->subscription = 0;
}

/* Whether no shared worker has been free for a while.  Both locks are held. */
static bool
all_are_busy(TpcNode *node, TimestampTz now)
{
	int			nworkers = 0;

	for (int i = 0; i < TPC_MAX_SHARED_CONSUMERS; i++)
	{
		const TpcConsuming *run = &node->consuming[i];

		if (node->consume[i].pid == 0)
			continue;
		nworkers++;
		if (!run->busy ||
			!TimestampDifferenceExceeds(run->since, now, PATIENCE_MS))
			return false;
	}
	return nworkers > 0;
}

/*
 * tpc_turn_look_after: the messenger, at least once a second: see who waits
 * for how long, and who is to be lent a worker, which the launcher then does.
 */
void
tpc_turn_look_after(TpcNode *node)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		lend = false;
	bool		busy;
	dsa_pointer p;

	LWLockAcquire(&tpc_shared->control, LW_SHARED);
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	busy = all_are_busy(node, now);
	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		TpcSubscription *sub = entry_at(p);
		TimestampTz until = TimestampTzPlusMilliseconds(now, LINGER_MS);

		if (!sub->wanted || sub->workers > 0)
			continue;
		if (sub->lent_until > now && (sub->runs > 0 || has_work(sub, now)))
			sub->lent_until = until;
		if (sub->runs > 0 || !has_work(sub, now))
			sub->waits_since = 0;
		else if (sub->waits_since == 0)
			sub->waits_since = now;
		else if (busy && sub->lent_until <= now &&
				 TimestampDifferenceExceeds(sub->waits_since, now,
											PATIENCE_MS))
		{
			sub->lent_until = until;
			lend = true;
		}
	}
	LWLockRelease(&node->subscriptions_lock);
	LWLockRelease(&tpc_shared->control);
	if (lend)
		tpc_wake_launcher();
}

/* How many places a subscription is to have. */
static int
places_for(const TpcSubscription *sub, TimestampTz now)
{
	if (!sub->wanted)
		return 0;
	if (sub->workers > 0)
		return sub->workers;
	return sub->lent_until > now ? 1 : 0;
}

/*
 * A place for one more worker of a subscription, one that is lent if need be
 * and an own worker is to have it; -1 if there is none.
 */
static int
free_place(TpcNode *node, bool lend)
{
	int			best = -1;
	int			best_rank = 0;

	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		const TpcConsuming *place = &node->consuming[i];
		int			rank = 4;	/* its process is idle, and stays */

		if (place->assigned != 0)
		{
			if (lend || !place->lent)
				continue;
			rank = 1;
		}
		else if (place->busy)
			rank = 2;			/* it has a run to finish first */
		else if (node->consume[i].pid == 0)
			rank = 3;
		if (rank > best_rank)
		{
			best = i;
			best_rank = rank;
		}
	}
	return best;
}

static void
assign(TpcNode *node, int number, uint64 id, bool lent)
{
	node->consuming[number].assigned = id;
	node->consuming[number].lent = lent;
	if (node->consume[number].latch != NULL)
		SetLatch(node->consume[number].latch);
}

/* Give places to those that have too few: as their own, or lent. */
static void
assign_places(TpcNode *node, bool lend, TimestampTz now)
{
	dsa_pointer p;

	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		TpcSubscription *sub = entry_at(p);
		int			have = 0;

		if ((sub->workers == 0) != lend)
			continue;
		for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS;
			 i++)
			have += node->consuming[i].assigned == sub->id ? 1 : 0;
		for (; have < places_for(sub, now); have++)
		{
			int			place = free_place(node, lend);

			if (place < 0)
			{
				node->lacks_lent = node->lacks_lent || lend;
				return;
			}
			assign(node, place, sub->id, lend);
		}
	}
}

/*
 * tpc_turn_assign: say which places are whose.  A worker that finds its place
 * to be nobody's leaves when it has finished its run.  The launcher, which
 * holds control.
 */
void
tpc_turn_assign(TpcNode *node)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		uint64		id = node->consuming[i].assigned;
		TpcSubscription *sub;
		int			before = 0;

		if (id == 0)
			continue;
		sub = tpc_subscription_find(node, id);
		for (int j = TPC_MAX_SHARED_CONSUMERS; j < i; j++)
			before += node->consuming[j].assigned == id ? 1 : 0;
		if (sub == NULL || before >= places_for(sub, now))
			node->consuming[i].assigned = 0;
	}
	node->lacks_lent = false;
	assign_places(node, false, now);
	assign_places(node, true, now);
	/* who has none any more leaves */
	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		if (node->consuming[i].assigned == 0 && node->consume[i].pid != 0)
			assign(node, i, 0, false);
	}
	LWLockRelease(&node->subscriptions_lock);
}
