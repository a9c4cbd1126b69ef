/*-------------------------------------------------------------------------
 *
 * destination.c
 *	  Destinations of publish() whose messages the broker does not take.
 *
 * One queue that is full and rejects (basic.nack), or that does not confirm, must
 * not fill the window with what it will not take, nor cost others anything.  Its
 * destination is held then: what goes there stays in the table, but for one
 * message that finds out whether it takes some again.  If it does, two may be on
 * their way, then four, and when it takes that many without refusing one it is
 * released.  If it refuses, it is one again, later and later.
 *
 * Where its rows are, is known by the lowest id: rows of all destinations lie
 * in one table, and a look for others must not pass over those that wait here.
 *
 * Destinations are told apart by a hash of exchange and routing key, of which
 * there are as many values as places here: some share one, and their fate.
 * That bounds what is known of them, where every message has a routing key of
 * its own and all lead to one queue that is full.
 *
 * State of the relay alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "destination.h"

#define DESTINATIONS		16384
/* It is tried again after this time, then twice … */
#define DELAY_MIN_MS		100
#define DELAY_MAX_MS		10000
/* Released when so many were on their way, and one of them was taken. */
#define ALLOWED_MAX			64

static TpcDestination *destinations;
static pairingheap waiting;		/* held, and more may be on their way */

static int
compare_until(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const TpcDestination *x = pairingheap_const_container(TpcDestination,
														  link, a);
	const TpcDestination *y = pairingheap_const_container(TpcDestination,
														  link, b);

	/* the first one is the largest */
	return x->until < y->until ? 1 : x->until > y->until ? -1 : 0;
}

void
tpc_destinations_init(void)
{
	destinations = MemoryContextAllocZero(TopMemoryContext,
										  sizeof(TpcDestination) * DESTINATIONS);
	waiting.ph_compare = compare_until;
	waiting.ph_arg = NULL;
	waiting.ph_root = NULL;
}

TpcDestination *
tpc_destination_find(uint64 hash)
{
	return &destinations[hash % DESTINATIONS];
}

/* Have it wait for its time, if it may have more on their way. */
static void
set_waits(TpcDestination *d, TimestampTz until)
{
	bool		waits = d->held && d->on_way < d->allowed;

	if (d->waits)
		pairingheap_remove(&waiting, &d->link);
	d->until = until;
	d->waits = waits;
	if (waits)
		pairingheap_add(&waiting, &d->link);
}

/*
 * tpc_destination_refused: a message with this id has not been taken, and is
 * back.  counted: it was on its way by tpc_destination_given().
 */
void
tpc_destination_refused(TpcDestination *d, int64 id, bool counted,
						TimestampTz now)
{
	if (counted && d->on_way > 0)
		d->on_way--;
	d->first = d->held ? Min(d->first, id) : id;

	/* others that were sent before it was known say nothing new */
	if (d->held && !counted)
		return;
	d->held = true;
	d->delay_ms = Min(Max(2 * d->delay_ms, DELAY_MIN_MS), DELAY_MAX_MS);
	d->allowed = 1;
	set_waits(d, TimestampTzPlusMilliseconds(now, d->delay_ms));
}

static void
release(TpcDestination *d)
{
	d->held = false;
	d->delay_ms = 0;
	set_waits(d, 0);
}

/*
 * tpc_destination_took: one has been taken (confirmed, or refused for good).
 * Returns true if it is held no more: then rows from d->first on are like any
 * other.
 */
bool
tpc_destination_took(TpcDestination *d, bool counted, TimestampTz now)
{
	if (counted && d->on_way > 0)
		d->on_way--;
	if (!d->held || !counted)
		return false;
	d->delay_ms = 0;
	d->allowed *= 2;
	if (d->allowed > ALLOWED_MAX)
	{
		release(d);
		return true;
	}
	set_waits(d, now);
	return false;
}

/* tpc_destination_given: of what is held, the row with this id is on its way. */
void
tpc_destination_given(TpcDestination *d, int64 id)
{
	d->on_way++;
	d->first = id + 1;
	set_waits(d, d->until);
}

/* tpc_destination_met: there is a row with this id, of what is held. */
void
tpc_destination_met(TpcDestination *d, int64 id)
{
	d->first = Min(d->first, id);
	if (!d->waits)
		set_waits(d, d->until);
}

/*
 * tpc_destination_passed: there is no row of it below id but those on their
 * way.
 */
void
tpc_destination_passed(TpcDestination *d, int64 id)
{
	d->first = Max(d->first, id);
}

/* tpc_destination_exhausted: … and none above either. */
void
tpc_destination_exhausted(TpcDestination *d)
{
	if (d->on_way == 0)
		release(d);
	else
	{
		/* until one of them is back, there is nothing to look for */
		if (d->waits)
			pairingheap_remove(&waiting, &d->link);
		d->waits = false;
	}
}

/*
 * tpc_destination_restore: the relay before us has sent this one to find out.
 */
void
tpc_destination_restore(TpcDestination *d, int64 id)
{
	d->first = d->held ? Min(d->first, id) : id;
	d->held = true;
	d->allowed = 1;
	d->on_way++;
	set_waits(d, 0);
}

/* tpc_destination_next: the one whose time comes first; NULL: none waits. */
TpcDestination *
tpc_destination_next(void)
{
	if (pairingheap_is_empty(&waiting))
		return NULL;
	return pairingheap_container(TpcDestination, link,
								 pairingheap_first(&waiting));
}
