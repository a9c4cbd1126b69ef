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
 * can know beforehand which will.  So one of the shared workers is lent only:
 * if all of them have been busy for a while, and somebody waits who needs
 * little of their time, then one run has to give way.  Its message is put off
 * without its being counted, and its subscription does not get the last free
 * worker for some time; its runs in the others are never interrupted.
 *
 * "A while" is a second, or four times what the last run took of who waits.
 * So those that are equally slow do not interrupt each other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "settings.h"
#include "turn.h"

/* How many times as long as who waits needs, others may take. */
#define PATIENCE		4
/* For how long to leave the last worker to others; then twice as long … */
#define BAR_MIN_MS		10000
#define BAR_MAX_MS		300000

static TpcSubscription *
entry_at(dsa_pointer p)
{
	return dsa_get_address(tpc_area(), p);
}

/* tpc_turn_is_own: whether a worker's place is one for own workers. */
bool
tpc_turn_is_own(int number)
{
	return number >= TPC_MAX_SHARED_CONSUMERS;
}

static int
runs_of(TpcNode *node, uint64 id)
{
	int			n = 0;

	for (int i = 0; i < TPC_MAX_CONSUME_WORKERS; i++)
		n += node->consuming[i].subscription == id ? 1 : 0;
	return n;
}

/* Whether no other one of the shared workers is free, of several. */
static bool
is_last_free(TpcNode *node, int number)
{
	int			others = 0;

	for (int i = 0; i < TPC_MAX_SHARED_CONSUMERS; i++)
	{
		if (i == number || node->consume[i].pid == 0)
			continue;
		if (node->consuming[i].subscription == 0)
			return false;
		others++;
	}
	return others > 0;
}

/*
 * tpc_turn_may_run: whether a worker may work for this subscription now.  The
 * caller holds the lock of subscriptions.
 */
bool
tpc_turn_may_run(TpcNode *node, int number, const TpcSubscription *sub,
				 TimestampTz now)
{
	Assert(LWLockHeldByMe(&node->subscriptions_lock));
	if (!sub->wanted)
		return false;
	if (tpc_turn_is_own(number))
		return node->consuming[number].assigned == sub->id;
	return sub->workers == 0 &&
		(sub->barred_until <= now || !is_last_free(node, number));
}

/*
 * Of those a worker may work for, whose turn it is: of messages that have
 * arrived, or of those that failed and are due; NULL if there is nothing.
 */
static TpcSubscription *
pick(TpcNode *node, int number, bool arrived)
{
	TimestampTz now = GetCurrentTimestamp();
	TpcSubscription *best = NULL;
	int			best_runs = 0;
	dsa_pointer p;

	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		TpcSubscription *sub = entry_at(p);
		int			runs;

		if ((arrived ? sub->items.count == 0 : sub->retry_at > now) ||
			!tpc_turn_may_run(node, number, sub, now))
			continue;
		runs = runs_of(node, sub->id);
		if (best == NULL || runs < best_runs ||
			(runs == best_runs && sub->turn < best->turn))
		{
			best = sub;
			best_runs = runs;
		}
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
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = (TimestampTz) pg_atomic_read_u64(&node->retry_at);
	dsa_pointer p;

	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		if (entry_at(p)->retry_at < due &&
			tpc_turn_may_run(node, number, entry_at(p), now))
			due = entry_at(p)->retry_at;
	}
	return due;
}

/* tpc_turn_begin: a worker begins a run.  The caller holds the lock. */
void
tpc_turn_begin(TpcNode *node, int number, TpcSubscription *sub)
{
	TpcConsuming *run = &node->consuming[number];

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	run->serial++;
	run->subscription = sub->id;
	run->since = GetCurrentTimestamp();
	sub->turn = ++node->turns;
}

/*
 * tpc_turn_end: the run has ended, if there was one.  The caller holds the
 * lock.
 */
void
tpc_turn_end(TpcNode *node, int number, bool gave_way)
{
	TpcConsuming *run = &node->consuming[number];
	TpcSubscription *sub;
	long		ms;

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	if (run->subscription == 0)
		return;
	sub = tpc_subscription_find(node, run->subscription);
	run->subscription = 0;
	if (sub == NULL)
		return;
	ms = TimestampDifferenceMilliseconds(run->since, GetCurrentTimestamp());
	sub->last_run_ms = gave_way ? Max(sub->last_run_ms, ms) : ms;
	if (!gave_way && ms <= TPC_TURN_QUICK_MS)
		sub->barred_ms = sub->barred_until = 0;
}

/* How long others may take while this one waits; -1 if it does not. */
static int64
patience_of(TpcNode *node, const TpcSubscription *sub, TimestampTz now)
{
	if (!sub->wanted || sub->workers != 0 || sub->barred_until > now ||
		(sub->items.count == 0 && sub->retry_at > now) ||
		runs_of(node, sub->id) > 0)
		return -1;
	return Max(TPC_TURN_QUICK_MS, PATIENCE * sub->last_run_ms);
}

/*
 * tpc_turn_look_after: the messenger, several times a second: if the shared
 * workers are all busy while somebody waits, tell one run to give way.
 */
void
tpc_turn_look_after(TpcNode *node)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		patience = -1;
	int			nworkers = 0;
	int			victim = -1;
	int			victim_runs = 0;
	TpcSubscription *sub;
	dsa_pointer p;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		int64		ms = patience_of(node, entry_at(p), now);

		if (ms >= 0 && (patience < 0 || ms < patience))
			patience = ms;
	}
	for (int i = 0; i < TPC_MAX_SHARED_CONSUMERS && patience >= 0; i++)
	{
		TpcConsuming *run = &node->consuming[i];
		int			runs;

		if (node->consume[i].pid == 0)
			continue;
		nworkers++;
		if (run->subscription == 0 ||
			pg_atomic_read_u32(&run->give_way) == run->serial ||
			!TimestampDifferenceExceeds(run->since, now, patience))
			patience = -1;		/* one will be free without that */
		runs = runs_of(node, run->subscription);
		if (victim < 0 || runs > victim_runs ||
			(runs == victim_runs &&
			 run->since > node->consuming[victim].since))
		{
			victim = i;
			victim_runs = runs;
		}
	}
	if (patience >= 0 && nworkers > 1)
	{
		TpcConsuming *run = &node->consuming[victim];

		pg_atomic_write_u32(&run->give_way, run->serial);
		sub = tpc_subscription_find(node, run->subscription);
		if (sub != NULL)
		{
			sub->barred_ms = Min(Max(BAR_MIN_MS, 2 * sub->barred_ms),
								 BAR_MAX_MS);
			sub->barred_until = TimestampTzPlusMilliseconds(now,
															sub->barred_ms);
		}
	}
	LWLockRelease(&node->subscriptions_lock);
}

/* A place for one more worker of a subscription; -1 if there is none. */
static int
free_place(TpcNode *node)
{
	int			best = -1;
	int			best_rank = 0;

	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		int			rank = 3;	/* its process is idle, and stays */

		if (node->consuming[i].assigned != 0)
			continue;
		if (node->consuming[i].subscription != 0)
			rank = 1;			/* it has a run to finish first */
		else if (node->consume[i].pid == 0)
			rank = 2;
		if (rank > best_rank)
		{
			best = i;
			best_rank = rank;
		}
	}
	return best;
}

static void
assign(TpcNode *node, int number, uint64 id)
{
	node->consuming[number].assigned = id;
	if (node->consume[number].latch != NULL)
		SetLatch(node->consume[number].latch);
}

/*
 * tpc_turn_assign: say which places are whose own; returns how many are.  A
 * worker that finds its place to be nobody's leaves when it has finished its
 * run.  The launcher, which holds control.
 */
int
tpc_turn_assign(TpcNode *node)
{
	int			n = 0;
	dsa_pointer p;

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
		if (sub == NULL || !sub->wanted || before >= sub->workers)
			node->consuming[i].assigned = 0;
	}
	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		TpcSubscription *sub = entry_at(p);
		int			have = 0;

		if (!sub->wanted)
			continue;
		for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS;
			 i++)
			have += node->consuming[i].assigned == sub->id ? 1 : 0;
		for (; have < sub->workers; have++)
		{
			int			place = free_place(node);

			if (place < 0)
				break;
			assign(node, place, sub->id);
		}
		n += have;
	}
	/* who has none any more leaves */
	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		if (node->consuming[i].assigned == 0 && node->consume[i].pid != 0)
			assign(node, i, 0);
	}
	LWLockRelease(&node->subscriptions_lock);
	return n;
}
