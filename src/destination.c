/*-------------------------------------------------------------------------
 *
 * destination.c
 *	  Destinations of publish() whose messages the broker does not take.
 *
 * One queue that is full and rejects (basic.nack), or that does not confirm, must
 * not fill the window with what it will not take, nor cost others anything.  Its
 * destination, which is an exchange and a routing key, is held then: what goes
 * there stays in the table, but for one message, the probe, that finds out
 * whether it takes some again.  If it does, two may be on their way, then four,
 * and when it takes that many, and soon, it is released.  If it refuses, it is
 * one again, later and later.
 *
 * Where its rows are, is known by the lowest id: rows of all destinations lie
 * in one table, and a look for others must not pass over those that wait here.
 *
 * Each message can have a routing key of its own, and all lead to one queue that
 * is full.  So there may be very many of them.  They are tried the less often
 * the more there are, and when one is released, so are the others of its
 * exchange, once a second at most.
 *
 * State of the relay alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "destination.h"

/* It is tried again after this time, then twice … */
#define DELAY_MIN_MS		100
#define DELAY_MAX_MS		10000
/* … or this, if nothing was heard of the last one: it may be there twice. */
#define DELAY_MAX_SILENT_MS	300000
/* As many may be on their way before it is released. */
#define ALLOWED_MAX			16
/* … or, where many are held, this for each of them. */
#define DELAY_EACH_MS		10
/* With more of them, those that come share this many entries. */
#define HELD_MAX			200000
#define SHARED				4096
/* Others of an exchange are released with one, so often at most. */
#define RELEASE_MS			1000

/* How many destinations of an exchange are held. */
typedef struct HeldOf
{
	uint64		exchange;
	int			n;
} HeldOf;

static HTAB *destinations;
static HTAB *held_of;
static int	nheld = 0;
static int	nshared = 0;		/* entries that are shared */
static TimestampTz released_at = 0;
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
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(TpcDestination);
	ctl.hcxt = TopMemoryContext;
	destinations = hash_create("tpc_amqp destinations", 256, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.entrysize = sizeof(HeldOf);
	held_of = hash_create("tpc_amqp exchanges", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	waiting.ph_compare = compare_until;
	waiting.ph_arg = NULL;
	waiting.ph_root = NULL;
}

static TpcDestination *
lookup(uint64 hash)
{
	return hash_search(destinations, &hash, HASH_FIND, NULL);
}

/* The entry of what a message goes to; NULL: there is none. */
static TpcDestination *
lookup_key(const TpcDestinationKey *key)
{
	TpcDestination *d = lookup(key->destination);

	if (d == NULL && nshared > 0)
		d = lookup(key->destination % SHARED);
	return d;
}

/* tpc_destination_find: NULL if nothing is held there. */
TpcDestination *
tpc_destination_find(const TpcDestinationKey *key)
{
	TpcDestination *d = lookup_key(key);

	return d != NULL && d->held ? d : NULL;
}

/* Have it wait for its time, if it may have more on their way. */
static void
set_waits(TpcDestination *d, TimestampTz until)
{
	bool		waits = d->held && d->on_way < d->allowed &&
	d->first <= d->last;

	if (d->waits)
		pairingheap_remove(&waiting, &d->link);
	d->until = until;
	d->waits = waits;
	if (waits)
		pairingheap_add(&waiting, &d->link);
}

/* Do without what says nothing any more. */
static void
drop_if_idle(TpcDestination *d)
{
	if (d->held || d->on_way > 0)
		return;
	if (d->hash < SHARED)
		nshared--;
	(void) hash_search(destinations, &d->hash, HASH_REMOVE, NULL);
}

/* Count it as held, or not any more; returns how many of its exchange are. */
static int
count_held(const TpcDestination *d, int change)
{
	bool		found;
	HeldOf	   *of = hash_search(held_of, &d->exchange, HASH_ENTER, &found);
	int			n;

	if (!found)
		of->n = 0;
	nheld += change;
	n = of->n += change;
	if (n == 0)
		(void) hash_search(held_of, &d->exchange, HASH_REMOVE, NULL);
	return n;
}

static void
release(TpcDestination *d)
{
	d->held = false;
	(void) count_held(d, -1);
	set_waits(d, 0);
	drop_if_idle(d);
}

/*
 * Release one that takes messages again, and at times what else has its
 * exchange.  Returns the lowest row that is like any other then; 0: there is
 * none, so that no look need begin anew for it.
 */
static int64
release_exchange(TpcDestination *one, TimestampTz now)
{
	uint64		exchange = one->exchange;
	int64		first = one->first <= one->last ? one->first : 0;
	HASH_SEQ_STATUS seq;
	TpcDestination *d;

	release(one);
	if (nheld == 0 || !TimestampDifferenceExceeds(released_at, now, RELEASE_MS))
		return first;
	released_at = now;
	hash_seq_init(&seq, destinations);
	while ((d = hash_seq_search(&seq)) != NULL)
	{
		/* what is on its way will tell by itself */
		if (!d->held || d->exchange != exchange || d->on_way > 0)
			continue;
		first = first == 0 ? d->first : Min(first, d->first);
		release(d);
	}
	return first;
}

/* Hold what this message goes to; there is no row of it below id. */
static TpcDestination *
hold(const TpcDestinationKey *key, int64 id)
{
	/* one with messages on their way has its entry, which is found first */
	bool		shared = nheld >= HELD_MAX && lookup(key->destination) == NULL;
	uint64		hash = shared ? key->destination % SHARED : key->destination;
	bool		found;
	TpcDestination *d = hash_search(destinations, &hash, HASH_ENTER, &found);

	if (!found)
	{
		memset(d, 0, sizeof(*d));
		d->hash = hash;
		if (hash < SHARED)
			nshared++;
	}
	d->exchange = key->exchange;
	d->held = true;
	(void) count_held(d, 1);
	d->first = d->last = id;
	d->delay_ms = 0;
	d->until = 0;
	return d;
}

/*
 * tpc_destination_refused: a message with this id has not been taken, and is
 * back.  was_probe: it was on its way by tpc_destination_given().  silent:
 * nothing has been said of it.
 */
void
tpc_destination_refused(const TpcDestinationKey *key, int64 id,
						bool was_probe, bool silent, TimestampTz now)
{
	TpcDestination *d = lookup_key(key);

	if (d != NULL && was_probe && d->on_way > 0)
		d->on_way--;
	if (d != NULL && d->held)
	{
		d->first = Min(d->first, id);
		d->last = Max(d->last, id);
		/* others that were sent before it was known say nothing new */
		if (!was_probe)
		{
			set_waits(d, d->until);
			return;
		}
	}
	else
		d = hold(key, id);
	d->allowed = 1;
	if (d->until > now)
	{
		/* the others that were sent with one that has come back */
		set_waits(d, d->until);
		return;
	}
	d->delay_ms = Min(Max(2 * d->delay_ms, DELAY_MIN_MS),
					  silent && was_probe ? DELAY_MAX_SILENT_MS : DELAY_MAX_MS);
	d->delay_ms = Max(d->delay_ms, count_held(d, 0) * DELAY_EACH_MS);
	set_waits(d, TimestampTzPlusMilliseconds(now, d->delay_ms));
}

/*
 * tpc_destination_took: one has been taken (confirmed, or refused for good).
 * Returns the lowest row of what is held no more for that, which is like any
 * other now; 0: there is none.
 */
int64
tpc_destination_took(const TpcDestinationKey *key, bool was_probe, bool quick,
					 TimestampTz now)
{
	TpcDestination *d = lookup_key(key);

	if (d == NULL || !was_probe)
		return 0;
	if (d->on_way > 0)
		d->on_way--;
	if (!d->held)
	{
		drop_if_idle(d);
		return 0;
	}
	d->delay_ms = 0;
	if ((d->allowed >= ALLOWED_MAX && quick) ||
		(d->first > d->last && d->on_way == 0))
		return release_exchange(d, now);
	d->allowed = Min(2 * d->allowed, ALLOWED_MAX);
	set_waits(d, now);
	return 0;
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
	d->last = Max(d->last, id);
	if (!d->waits)
		set_waits(d, d->until);
}

/*
 * tpc_destination_passed: there is no row of it below id but those on their
 * way.  It may be held no more after that, and d gone.
 */
void
tpc_destination_passed(TpcDestination *d, int64 id)
{
	d->first = Max(d->first, id);
	if (d->first > d->last && d->on_way == 0)
		release(d);
	else
		set_waits(d, d->until);
}

/*
 * tpc_destination_restore: the relay before us has sent this one to find out.
 */
void
tpc_destination_restore(const TpcDestinationKey *key, int64 id)
{
	TpcDestination *d = tpc_destination_find(key);

	if (d == NULL)
		d = hold(key, id);
	d->first = Min(d->first, id);
	d->last = Max(d->last, id);
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
