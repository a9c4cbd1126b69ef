/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  The subscriptions of a node, as its processes share them.
 *
 * The relay, which reads the table, adds entries and says which of them are
 * not wanted any more; the messenger, which consumes for them, removes those;
 * consume workers count.  There are few, so they are a list.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscription.h"

static TpcSubscription *
entry_at(dsa_pointer p)
{
	return dsa_get_address(tpc_area(), p);
}

/* tpc_subscription_find: NULL if there is none.  Caller holds the lock. */
TpcSubscription *
tpc_subscription_find(TpcNode *node, uint64 id)
{
	dsa_pointer p;

	Assert(LWLockHeldByMe(&node->subscriptions_lock));
	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		if (entry_at(p)->id == id)
			return entry_at(p);
	}
	return NULL;
}

/* The one of a queue that is wanted. */
TpcSubscription *
tpc_subscription_find_queue(TpcNode *node, const char *queue)
{
	dsa_pointer p;

	Assert(LWLockHeldByMe(&node->subscriptions_lock));
	for (p = node->subscriptions; DsaPointerIsValid(p); p = entry_at(p)->next)
	{
		if (entry_at(p)->wanted && strcmp(entry_at(p)->name, queue) == 0)
			return entry_at(p);
	}
	return NULL;
}

/* tpc_subscription_add: as the last one.  Gives it its id. */
void
tpc_subscription_add(TpcNode *node, dsa_pointer entry)
{
	dsa_pointer *link = &node->subscriptions;

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	entry_at(entry)->id = ++node->subscription_serial;
	entry_at(entry)->next = InvalidDsaPointer;
	while (DsaPointerIsValid(*link))
		link = &entry_at(*link)->next;
	*link = entry;
}

/*
 * tpc_subscription_remove: and free it.  By the messenger only, which has taken
 * the items.
 */
void
tpc_subscription_remove(TpcNode *node, uint64 id)
{
	dsa_pointer *link = &node->subscriptions;

	Assert(LWLockHeldByMeInMode(&node->subscriptions_lock, LW_EXCLUSIVE));
	while (DsaPointerIsValid(*link))
	{
		dsa_pointer p = *link;

		if (entry_at(p)->id == id)
		{
			*link = entry_at(p)->next;
			dsa_free(tpc_area(), p);
			return;
		}
		link = &entry_at(p)->next;
	}
}

static void
free_queue(TpcNode *node, TpcItemQueue *queue)
{
	dsa_pointer item;

	while (DsaPointerIsValid(item = tpc_queue_pop(node, queue)))
		dsa_free(tpc_area(), item);
}

/*
 * tpc_subscription_clear: free all that a node has of them.  Its processes are
 * gone.
 */
void
tpc_subscription_clear(TpcNode *node)
{
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	while (DsaPointerIsValid(node->subscriptions))
	{
		dsa_pointer p = node->subscriptions;

		node->subscriptions = entry_at(p)->next;
		free_queue(node, &entry_at(p)->items);
		dsa_free(tpc_area(), p);
	}
	LWLockRelease(&node->subscriptions_lock);
	free_queue(node, &node->settled);
	pg_atomic_write_u64(&node->consumed_bytes, 0);
	pg_atomic_write_u64(&node->retry_at, 0);
}

/* tpc_subscription_note_error: the caller holds the lock, exclusively. */
void
tpc_subscription_note_error(TpcSubscription *sub, const char *sqlstate,
							const char *text)
{
	strlcpy(sub->last_sqlstate, sqlstate, sizeof(sub->last_sqlstate));
	strlcpy(sub->last_error, text, sizeof(sub->last_error));
	sub->last_error_at = GetCurrentTimestamp();
}

/* Count something of a queue's subscription, if there still is one. */
void
tpc_subscription_count(TpcNode *node, const char *queue,
					   TpcSubscriptionCounter counter)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_subscription_find_queue(node, queue);
	if (sub != NULL)
		sub->count[counter]++;
	LWLockRelease(&node->subscriptions_lock);
}

/* The same for an error. */
void
tpc_subscription_error(TpcNode *node, const char *queue, const char *sqlstate,
					   const char *text)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_subscription_find_queue(node, queue);
	if (sub != NULL)
		tpc_subscription_note_error(sub, sqlstate, text);
	LWLockRelease(&node->subscriptions_lock);
}

/* A failed message of this queue is due for another run then. */
void
tpc_subscription_retry_at(TpcNode *node, const char *queue, TimestampTz when)
{
	TpcSubscription *sub;

	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	sub = tpc_subscription_find_queue(node, queue);
	if (sub != NULL)
		sub->retry_at = Min(sub->retry_at, when);
	LWLockRelease(&node->subscriptions_lock);
}

/*
 * tpc_retry_at: have a consume worker look then what is due for another run.
 * One that looks at the same time may miss it; it looks again before long.
 */
void
tpc_retry_at(TpcNode *node, TimestampTz when)
{
	uint64		known = pg_atomic_read_u64(&node->retry_at);

	while ((uint64) when < known)
	{
		if (pg_atomic_compare_exchange_u64(&node->retry_at, &known,
										   (uint64) when))
			break;
	}
}
