/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  The subscriptions of a node, as its processes share them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_SUBSCRIPTION_H
#define TPC_SUBSCRIPTION_H

#include "broker.h"
#include "shmem.h"
#include "utils/uuid.h"

#define TPC_NAME_SIZE (TPC_NAME_MAX + 1)

typedef enum TpcSubscriptionState
{
	TPC_SUBSCRIPTION_CONNECTING,	/* asked for, not answered yet */
	TPC_SUBSCRIPTION_ACTIVE,
	TPC_SUBSCRIPTION_REFUSED,	/* see last_error; it is tried again */
	TPC_SUBSCRIPTION_ENDING		/* not wanted any more */
} TpcSubscriptionState;

/* Counters, since the subscription came into this memory. */
typedef enum TpcSubscriptionCounter
{
	TPC_SUB_PROCESSED,			/* took effect */
	TPC_SUB_DUPLICATES,			/* had taken effect before */
	TPC_SUB_FAILED,				/* runs that ended in an error */
	TPC_SUB_RETRIED,			/* runs that were not the message's first */
	TPC_SUB_DEAD_LETTERED,
	TPC_SUB_KEPT,
	TPC_SUB_DROPPED,
	TPC_SUB_REJECTED,			/* too long to be taken at all */
	TPC_SUB_DEFERRED,			/* put off: another run was not finished */
	TPC_SUB_NCOUNTERS
} TpcSubscriptionCounter;

/*
 * One subscription, in the shared area; in the list node->subscriptions.  All
 * fields under subscriptions_lock, except that the messenger, which alone
 * removes entries, may read what never changes without it, and that the queue
 * of items is under queue_lock: its number, read without, may be old.
 */
typedef struct TpcSubscription
{
	dsa_pointer next;

	/* never changed */
	uint64		id;				/* of this entry */
	pg_uuid_t	generation;		/* of the row */
	char		queue[TPC_NAME_SIZE];	/* to the broker: in UTF-8 */
	char		name[TPC_NAME_SIZE];	/* in the database's encoding */
	char		consumer_tag[TPC_NAME_SIZE];
	bool		auto_ack;
	bool		exclusive;
	int			prefetch;
	int			workers;		/* of its own; 0: the shared ones */

	bool		wanted;			/* relay: the row is still there */

	/* the messenger's */
	TpcSubscriptionState state;
	uint64		opened;			/* serial of its channel; 0: none */
	int64		messages;		/* ready in the queue; -1: not known */
	TimestampTz measured_at;

	TpcItemQueue items;			/* messages that no worker has taken */
	int			running;		/* … that one has */

	/* for turn.c */
	int			runs;			/* going, those of failed messages included */
	uint64		turn;			/* when one last began */
	TimestampTz waits_since;	/* messenger: with work, but no run; 0: it
								 * does not */
	TimestampTz lent_until;		/* it has a worker lent to it */
	TimestampTz retry_at;		/* when the first failed message is due, as
								 * far as is known; DT_NOEND: never */

	int64		count[TPC_SUB_NCOUNTERS];
	char		last_sqlstate[6];
	char		last_error[320];
	TimestampTz last_error_at;	/* 0: none */

	uint32		arguments_len;
	char		arguments[FLEXIBLE_ARRAY_MEMBER];
} TpcSubscription;

/* A message in a TpcItem's body; texts and bytes follow in this order. */
typedef struct TpcConsumedHead
{
	uint64		subscription;
	uint64		opened;			/* which of its channels */
	bool		redelivered;
	TpcSettlement how;			/* on its way back */
	uint32		exchange_len;
	uint32		routing_key_len;
	uint32		properties_len;
	uint32		body_len;
} TpcConsumedHead;

extern TpcSubscription *tpc_subscription_find(TpcNode *node, uint64 id);
extern TpcSubscription *tpc_subscription_find_queue(TpcNode *node,
													const char *queue);
extern void tpc_subscription_add(TpcNode *node, dsa_pointer entry);
extern void tpc_subscription_remove(TpcNode *node, uint64 id);
extern void tpc_subscription_clear(TpcNode *node);
extern void tpc_subscription_note_error(TpcSubscription *sub,
										const char *sqlstate,
										const char *text);
extern void tpc_subscription_count(TpcNode *node, const char *queue,
								   TpcSubscriptionCounter counter);
extern void tpc_subscription_error(TpcNode *node, const char *queue,
								   const char *sqlstate, const char *text);
extern void tpc_subscription_retry_at(TpcNode *node, const char *queue,
									  TimestampTz when);
extern void tpc_retry_at(TpcNode *node, TimestampTz when);

#endif							/* TPC_SUBSCRIPTION_H */
