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
 * Where many routing keys of one exchange are held, as when each message has
 * its own and all lead to one queue that is full, the exchange is held as one
 * destination.  That bounds what is kept here, and what finding out costs.
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
/* With more of an exchange, all of it is held. */
#define KEYS_MAX			100

static HTAB *destinations;
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
	waiting.ph_compare = compare_until;
	waiting.ph_arg = NULL;
	waiting.ph_root = NULL;
}

static TpcDestination *
lookup(uint64 hash)
{
	return hash_search(destinations, &hash, HASH_FIND, NULL);
}

static TpcDestination *
enter(uint64 hash, uint64 exchange, bool is_exchange)
{
	bool		found;
	TpcDestination *d = hash_search(destinations, &hash, HASH_ENTER, &found);

	if (!found)
	{
		memset(d, 0, sizeof(*d));
		d->hash = hash;
		d->exchange = exchange;
		d->is_exchange = is_exchange;
	}
	return d;
}

/* The one that counts for a message: its exchange, if that is held. */
static TpcDestination *
lookup_key(const TpcDestinationKey *key)
{
	TpcDestination *d = lookup(key->exchange);

	return d != NULL && d->held ? d : lookup(key->destination);
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
	bool		waits = d->held && d->on_way < d->allowed;

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
	if (!d->held && d->on_way == 0 && d->nkeys == 0)
		(void) hash_search(destinations, &d->hash, HASH_REMOVE, NULL);
}

static void
release(TpcDestination *d)
{
	d->held = false;
	d->delay_ms = 0;
	set_waits(d, 0);
	if (!d->is_exchange)
	{
		TpcDestination *exchange = lookup(d->exchange);

		if (exchange != NULL && exchange->nkeys > 0)
		{
			exchange->nkeys--;
			drop_if_idle(exchange);
		}
	}
	drop_if_idle(d);
}

/* From now on an exchange is held, and none of its destinations by itself. */
static void
hold_exchange(TpcDestination *exchange)
{
	HASH_SEQ_STATUS seq;
	TpcDestination *d;

	exchange->held = true;
	exchange->first = PG_INT64_MAX;
	exchange->nkeys = 0;
	hash_seq_init(&seq, destinations);
	while ((d = hash_seq_search(&seq)) != NULL)
	{
		if (d->is_exchange || d->exchange != exchange->hash)
			continue;
		if (d->held)
		{
			exchange->first = Min(exchange->first, d->first);
			exchange->delay_ms = Max(exchange->delay_ms, d->delay_ms);
		}
		exchange->on_way += d->on_way;
		d->held = false;
		set_waits(d, 0);
		(void) hash_search(destinations, &d->hash, HASH_REMOVE, NULL);
	}
}

/* Hold what this message goes to; there is no row of it below id. */
static TpcDestination *
hold(const TpcDestinationKey *key, int64 id)
{
	TpcDestination *d = enter(key->destination, key->exchange, false);
	TpcDestination *exchange = enter(key->exchange, key->exchange, true);

	d->held = true;
	d->first = id;
	if (++exchange->nkeys <= KEYS_MAX)
		return d;
	hold_exchange(exchange);
	return exchange;
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
		/* others that were sent before it was known say nothing new */
		if (!was_probe)
		{
			set_waits(d, d->until);
			return;
		}
	}
	else
		d = hold(key, id);
	d->delay_ms = Min(Max(2 * d->delay_ms, DELAY_MIN_MS),
					  silent && was_probe ? DELAY_MAX_SILENT_MS : DELAY_MAX_MS);
	d->allowed = 1;
	set_waits(d, TimestampTzPlusMilliseconds(now, d->delay_ms));
}

/*
 * tpc_destination_took: one has been taken (confirmed, or refused for good).
 * Returns true if what it goes to is held no more: then rows from *first on
 * are like any other.
 */
bool
tpc_destination_took(const TpcDestinationKey *key, bool was_probe, bool quick,
					 TimestampTz now, int64 *first)
{
	TpcDestination *d = lookup_key(key);

	if (d == NULL || !was_probe)
		return false;
	if (d->on_way > 0)
		d->on_way--;
	if (!d->held)
	{
		drop_if_idle(d);
		return false;
	}
	d->delay_ms = 0;
	if (d->allowed >= ALLOWED_MAX && quick)
	{
		*first = d->first;
		release(d);
		return true;
	}
	d->allowed = Min(2 * d->allowed, ALLOWED_MAX);
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

/*
 * tpc_destination_exhausted: … and none above either.  It is held no more if
 * none is on its way; d is gone then.
 */
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
tpc_destination_restore(const TpcDestinationKey *key, int64 id)
{
	TpcDestination *d = tpc_destination_find(key);

	if (d == NULL)
		d = hold(key, id);
	d->first = Min(d->first, id);
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
