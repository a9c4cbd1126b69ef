/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The messenger's part of subscriptions: consume, hand out, acknowledge.
 *
 * Each subscription has a channel of its own, for the broker refuses a
 * consumer by closing its channel.  A delivery becomes an item, which a consume
 * worker takes (step S1; turn.c); the worker hands the same item back with
 * what is to become of the delivery (step S4), so that this cannot fail for
 * want of memory.
 *
 * How much there can be in memory is bounded twice: by the prefetch of each
 * subscription, and by a share of the area for all of them, so that there
 * always is room for the protocol between nodes.  So that subscriptions which
 * do not go on do not hold up others, one that has nothing in memory gets in
 * beyond that share, with one message.
 *
 * What finds no room is held: its delivery stays open, without its body.  It
 * goes back to its queue, which is how its body is had again, only when there
 * is room: brokers count deliveries, and drop what has had too many.
 *
 * One that is not wanted any more is cancelled first, and its channel stays
 * until what is under way is acknowledged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "consumer.h"
#include "failpoint.h"
#include "settings.h"
#include "subscription.h"
#include "turn.h"

/* A refused consumer is tried again after this time, then twice as late … */
#define RETRY_MIN_MS	500
#define RETRY_MAX_MS	10000
/* How often to ask how many messages are in a queue. */
#define MEASURE_MS		2000
/* Share of the area that messages may take, and with what gets in beyond. */
#define AREA_SHARE		4
#define AREA_SHARE_ALL	2
/* What has gone back because there is room is expected within that time. */
#define RETURN_MS		1000
/* How long nothing goes back if the area had no room, for all our share. */
#define AREA_FULL_MS	30000
/* What has been held for longer comes before what arrives. */
#define HELD_LONG_MS	5000
/* How often to look whether somebody waits for workers. */
#define TURN_MS			250

typedef enum ConsumerState
{
	CONSUMER_NONE,				/* no channel: it is due at next_attempt */
	CONSUMER_ASKED,
	CONSUMER_ACTIVE,
	CONSUMER_CANCELLING,		/* basic.cancel sent */
	CONSUMER_CANCELLED			/* what is under way may finish */
} ConsumerState;

/* A delivery that there is no room for. */
typedef struct Held
{
	uint64		tag;
	size_t		len;			/* of its item */
	TimestampTz since;
} Held;

typedef struct Consumer
{
	TpcChannelOwner owner;		/* first */
	TpcSubscription *sub;		/* ours to remove */
	uint64		id;
	bool		wanted;
	ConsumerState state;
	uint16		channel;		/* 0: none */
	uint64		opened;			/* serial: numbers are used again */
	int			unsettled;		/* deliveries of this channel in items */
	int			new_items;		/* consume workers to be woken */
	TimestampTz next_attempt;
	int			backoff_ms;
	bool		measuring;		/* asked, not answered yet */
	TimestampTz measure_at;
	int			nheld;			/* oldest first */
	int			held_size;
	Held	   *held;
	TimestampTz returned_at;	/* one of them has gone back */
} Consumer;

static List *consumers = NIL;
static uint32 listed_seen = 0;
static uint32 epoch = 0;		/* of the present connection */
static uint64 channels_opened = 0;
static TimestampTz turns_at = 0;	/* somebody who waits was looked for */
static size_t returned = 0;		/* bytes that have gone back … */
static TimestampTz returned_at = 0; /* … the first of them then */
static TimestampTz area_full_until = 0; /* others than messages fill it */

static TpcSlice
slice_of(const char *text, size_t len)
{
	TpcSlice	slice;

	slice.ptr = text;
	slice.len = len;
	return slice;
}

static void
set_state(TpcNode *node, Consumer *c, TpcSubscriptionState state)
{
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	c->sub->state = state;
	c->sub->opened = c->channel != 0 ? c->opened : 0;
	if (state != TPC_SUBSCRIPTION_ACTIVE)
		c->sub->messages = -1;
	LWLockRelease(&node->subscriptions_lock);
}

/* Tell the broker what becomes of a delivery, and free its item: step S4. */
static void
settle(TpcNode *node, TpcBroker *broker, dsa_pointer p, TpcSettlement how)
{
	TpcItem    *item = dsa_get_address(tpc_area(), p);
	TpcConsumedHead head;
	ListCell   *lc;

	memcpy(&head, item->body, sizeof(head));
	pg_atomic_fetch_sub_u64(&node->consumed_bytes, item->len);
	if (broker != NULL && item->epoch == epoch)
	{
		foreach(lc, consumers)
		{
			Consumer   *c = lfirst(lc);

			if (c->state == CONSUMER_NONE || c->opened != head.opened)
				continue;
			TPC_FAILPOINT("S4.before");
			(void) tpc_channel_settle(broker, c->channel, item->delivery_tag,
									  false, how);
			c->unsettled--;
			TPC_FAILPOINT("S4.after");
		}
	}
	dsa_free(tpc_area(), p);
}

/* What no worker has taken goes back, or is dropped with its channel. */
static void
take_back(TpcNode *node, TpcBroker *broker, Consumer *c)
{
	dsa_pointer p;

	while (DsaPointerIsValid(p = tpc_queue_pop(node, &c->sub->items)))
		settle(node, broker, p, TPC_SETTLE_REQUEUE);
}

/* The channel is gone, and whatever was under way in it. */
static void
reset(TpcNode *node, Consumer *c)
{
	take_back(node, NULL, c);
	c->state = CONSUMER_NONE;
	c->channel = 0;
	c->unsettled = 0;
	c->measuring = false;
	c->nheld = 0;
}

/* Try again, later and later. */
static void
schedule(Consumer *c)
{
	c->backoff_ms = c->backoff_ms == 0 ? RETRY_MIN_MS :
		Min(c->backoff_ms * 2, RETRY_MAX_MS);
	c->next_attempt = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  c->backoff_ms);
}

static void
refused(TpcNode *node, Consumer *c, int sqlstate, const char *text)
{
	reset(node, c);
	schedule(c);
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	c->sub->state = TPC_SUBSCRIPTION_REFUSED;
	c->sub->opened = 0;
	c->sub->messages = -1;
	tpc_subscription_note_error(c->sub, unpack_sql_state(sqlstate), text);
	LWLockRelease(&node->subscriptions_lock);
}

static bool
held_for_long(const Consumer *c)
{
	return c->nheld > 0 &&
		TimestampDifferenceExceeds(c->held[0].since, GetCurrentTimestamp(),
								   HELD_LONG_MS);
}

/* Whether there is room for so many bytes; alone: of who has no others. */
static bool
has_room(TpcNode *node, size_t len, bool alone)
{
	size_t		area = (size_t) tpc_max_memory * 1024 * 1024;

	return pg_atomic_read_u64(&node->consumed_bytes) + len <=
		area / (alone ? AREA_SHARE_ALL : AREA_SHARE);
}

/* There is no room for it yet. */
static void
hold_back(Consumer *c, uint64 tag, size_t len)
{
	if (c->nheld == c->held_size)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		c->held_size = Max(16, 2 * c->held_size);
		if (c->held == NULL)
			c->held = palloc(c->held_size * sizeof(Held));
		else
			c->held = repalloc(c->held, c->held_size * sizeof(Held));
		MemoryContextSwitchTo(old);
	}
	c->held[c->nheld].tag = tag;
	c->held[c->nheld].len = len;
	c->held[c->nheld].since = GetCurrentTimestamp();
	c->nheld++;
}

static void
reject(TpcNode *node, TpcBroker *broker, Consumer *c, uint64 tag,
	   const char *text)
{
	(void) tpc_channel_settle(broker, c->channel, tag, false,
							  TPC_SETTLE_REJECT);
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	c->sub->count[TPC_SUB_REJECTED]++;
	tpc_subscription_note_error(c->sub,
								unpack_sql_state(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
								text);
	LWLockRelease(&node->subscriptions_lock);
}

/* Step S1: a delivery becomes an item. */
static void
take_message(TpcNode *node, TpcBroker *broker, Consumer *c,
			 const TpcBrokerEvent *event)
{
	TpcItem		head;
	TpcConsumedHead consumed;
	TpcItem    *item;
	dsa_pointer p = InvalidDsaPointer;
	size_t		len;
	size_t		share = (size_t) tpc_max_memory * 1024 * 1024 / AREA_SHARE;
	char	   *to;
	char		text[200];

	if (c->state != CONSUMER_ACTIVE && c->state != CONSUMER_ASKED)
	{
		(void) tpc_channel_settle(broker, c->channel, event->delivery_tag,
								  false, TPC_SETTLE_REQUEUE);
		return;
	}
	if (event->body.ptr == NULL ||
		event->body.len > (size_t) tpc_max_payload * 1024)
	{
		snprintf(text, sizeof(text),
				 "a message longer than tpc_amqp.max_payload (%d kB) was rejected",
				 tpc_max_payload);
		reject(node, broker, c, event->delivery_tag, text);
		return;
	}

	TPC_FAILPOINT("S1.before");
	memset(&head, 0, sizeof(head));
	head.kind = TPC_ITEM_CONSUMED;
	head.delivery_tag = event->delivery_tag;
	head.epoch = epoch;
	memset(&consumed, 0, sizeof(consumed));
	consumed.subscription = c->id;
	consumed.opened = c->opened;
	consumed.redelivered = event->redelivered;
	consumed.exchange_len = event->exchange.len;
	consumed.routing_key_len = event->routing_key.len;
	consumed.properties_len = event->properties.len;
	consumed.body_len = event->body.len;
	len = sizeof(consumed) + event->exchange.len + event->routing_key.len +
		event->properties.len + event->body.len;
	if (len > share)
	{
		reject(node, broker, c, event->delivery_tag,
			   "a message for which tpc_amqp.max_memory is too small was rejected");
		return;
	}
	if (has_room(node, len, c->unsettled == 0) &&
		(event->redelivered || !held_for_long(c)))
	{
		p = tpc_area_try_alloc(offsetof(TpcItem, body) + len);
		if (!DsaPointerIsValid(p))
			area_full_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														  AREA_FULL_MS);
	}
	if (!DsaPointerIsValid(p))
	{
		hold_back(c, event->delivery_tag, len);
		return;
	}
	item = dsa_get_address(tpc_area(), p);
	memcpy(item, &head, offsetof(TpcItem, body));
	item->len = len;
	to = item->body;
	memcpy(to, &consumed, sizeof(consumed));
	to += sizeof(consumed);
	if (event->exchange.len > 0)
		memcpy(to, event->exchange.ptr, event->exchange.len);
	to += event->exchange.len;
	if (event->routing_key.len > 0)
		memcpy(to, event->routing_key.ptr, event->routing_key.len);
	to += event->routing_key.len;
	if (event->properties.len > 0)
		memcpy(to, event->properties.ptr, event->properties.len);
	to += event->properties.len;
	if (event->body.len > 0)
		memcpy(to, event->body.ptr, event->body.len);

	pg_atomic_fetch_add_u64(&node->consumed_bytes, len);
	c->unsettled++;
	tpc_queue_push(node, &c->sub->items, p);
	c->new_items++;
	TPC_FAILPOINT("S1.after");
}

/* The events of a subscription's channel. */
static void
take(TpcChannelOwner *owner, TpcNode *node, TpcBroker *broker,
	 const TpcBrokerEvent *event)
{
	Consumer   *c = (Consumer *) owner;
	char		text[320];

	switch (event->kind)
	{
		case TPC_EVENT_MESSAGE:
			take_message(node, broker, c, event);
			break;

		case TPC_EVENT_ANSWER:
			if (event->name.len > 0)
			{
				c->measuring = false;
				LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
				c->sub->messages = event->messages;
				c->sub->measured_at = GetCurrentTimestamp();
				LWLockRelease(&node->subscriptions_lock);
			}
			else if (c->state == CONSUMER_ASKED)
			{
				c->state = CONSUMER_ACTIVE;
				c->backoff_ms = 0;
				c->measure_at = GetCurrentTimestamp();
				set_state(node, c, TPC_SUBSCRIPTION_ACTIVE);
			}
			else if (c->state == CONSUMER_CANCELLING)
				c->state = CONSUMER_CANCELLED;
			break;

		case TPC_EVENT_CANCELLED:
			tpc_channel_close(broker, c->channel);
			refused(node, c, ERRCODE_UNDEFINED_OBJECT,
					"the broker has cancelled the consumer: its queue was deleted, or has moved");
			break;

		case TPC_EVENT_CHANNEL_CLOSED:
			if (event->error.reply_code != 0)
				snprintf(text, sizeof(text), "%d %s",
						 event->error.reply_code, event->error.text);
			else
				strlcpy(text, event->error.text, sizeof(text));
			refused(node, c, event->error.sqlstate, text);
			break;

		default:
			break;
	}
}

/* What workers have done with deliveries. */
static void
serve_settled(TpcNode *node, TpcBroker *broker)
{
	dsa_pointer p;

	while (DsaPointerIsValid(p = tpc_queue_pop(node, &node->settled)))
	{
		TpcItem    *item = dsa_get_address(tpc_area(), p);
		TpcConsumedHead head;

		memcpy(&head, item->body, sizeof(head));
		settle(node, broker, p, head.how);
	}
}

/* Follow the list of subscriptions, as the relay has left it. */
static void
follow(TpcNode *node)
{
	uint32		listed = pg_atomic_read_u32(&node->subscriptions_listed);
	MemoryContext old;
	dsa_pointer p;

	if (listed == listed_seen)
		return;
	listed_seen = listed;
	old = MemoryContextSwitchTo(TopMemoryContext);
	LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
	for (p = node->subscriptions; DsaPointerIsValid(p);)
	{
		TpcSubscription *sub = dsa_get_address(tpc_area(), p);
		Consumer   *c = NULL;
		ListCell   *lc;

		foreach(lc, consumers)
		{
			if (((Consumer *) lfirst(lc))->id == sub->id)
				c = lfirst(lc);
		}
		if (c == NULL)
		{
			c = palloc0(sizeof(Consumer));
			c->owner.take = take;
			c->sub = sub;
			c->id = sub->id;
			consumers = lappend(consumers, c);
		}
		c->wanted = sub->wanted;
		if (!c->wanted)
			sub->state = TPC_SUBSCRIPTION_ENDING;
		p = sub->next;
	}
	LWLockRelease(&node->subscriptions_lock);
	MemoryContextSwitchTo(old);
}

static void
subscribe(TpcNode *node, TpcBroker *broker, Consumer *c)
{
	TpcBrokerCall call;
	TpcSubscription *sub = c->sub;

	c->channel = tpc_channel_open(broker, c, false);
	if (c->channel == 0)
	{
		refused(node, c, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
				"all channels of the connection are in use");
		return;
	}
	c->opened = ++channels_opened;
	memset(&call, 0, sizeof(call));
	call.kind = TPC_CALL_CONSUME;
	call.queue = slice_of(sub->queue, strlen(sub->queue));
	call.consumer_tag = slice_of(sub->consumer_tag,
								 strlen(sub->consumer_tag));
	call.exclusive = sub->exclusive;
	call.prefetch = sub->prefetch;
	call.arguments = slice_of(sub->arguments, sub->arguments_len);
	if (!tpc_channel_call(broker, c->channel, &call))
	{
		tpc_channel_close(broker, c->channel);
		refused(node, c, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
				"its arguments are too long to be sent");
		return;
	}
	c->state = CONSUMER_ASKED;
	set_state(node, c, TPC_SUBSCRIPTION_CONNECTING);
}

/* Ask how many messages there are. */
static void
measure(TpcBroker *broker, Consumer *c)
{
	TpcBrokerCall call;

	memset(&call, 0, sizeof(call));
	call.kind = TPC_CALL_DECLARE_QUEUE;
	call.queue = slice_of(c->sub->queue, strlen(c->sub->queue));
	call.passive = true;
	c->measuring = tpc_channel_call(broker, c->channel, &call);
	c->measure_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												MEASURE_MS);
}

/* Towards its end; true if it has come. */
static bool
wind_up(TpcNode *node, TpcBroker *broker, Consumer *c)
{
	if (c->state == CONSUMER_ASKED || c->state == CONSUMER_ACTIVE)
	{
		TpcBrokerCall call;

		memset(&call, 0, sizeof(call));
		call.kind = TPC_CALL_CANCEL;
		call.consumer_tag = slice_of(c->sub->consumer_tag,
									 strlen(c->sub->consumer_tag));
		if (tpc_channel_call(broker, c->channel, &call))
			c->state = CONSUMER_CANCELLING;
	}
	if (c->state == CONSUMER_CANCELLED && c->unsettled == 0)
	{
		/* what is held back goes back with it */
		tpc_channel_close(broker, c->channel);
		reset(node, c);
	}
	return c->state == CONSUMER_NONE;
}

/* Have the broker deliver again what there is room for by now. */
static void
release_held(TpcNode *node, TpcBroker *broker, Consumer *c, TimestampTz now)
{
	int			n;

	if (TimestampDifferenceExceeds(returned_at, now, RETURN_MS))
		returned = 0;
	for (n = 0; n < c->nheld && area_full_until <= now; n++)
	{
		bool		alone = c->unsettled == 0 &&
		TimestampDifferenceExceeds(c->returned_at, now, RETURN_MS);

		if (!has_room(node, c->held[n].len + returned, alone))
			break;
		if (returned == 0)
			returned_at = now;
		returned += c->held[n].len;
		c->returned_at = now;
		(void) tpc_channel_settle(broker, c->channel, c->held[n].tag, false,
								  TPC_SETTLE_REQUEUE);
	}
	c->nheld -= n;
	memmove(c->held, c->held + n, c->nheld * sizeof(Held));
}

static void
connected(TpcNode *node, TpcBroker *broker)
{
	ListCell   *lc;

	epoch = pg_atomic_read_u32(&node->epoch);
	foreach(lc, consumers)
	{
		Consumer   *c = lfirst(lc);

		c->next_attempt = 0;
		c->backoff_ms = 0;
	}
}

static void
lost(TpcNode *node, const TpcBrokerError *error)
{
	ListCell   *lc;

	foreach(lc, consumers)
	{
		Consumer   *c = lfirst(lc);

		reset(node, c);
		set_state(node, c, c->wanted ? TPC_SUBSCRIPTION_CONNECTING :
				  TPC_SUBSCRIPTION_ENDING);
	}
}

static void
serve(TpcNode *node, TpcBroker *broker, bool blocked)
{
	ListCell   *lc;
	TimestampTz now;

	foreach(lc, consumers)
	{
		Consumer   *c = lfirst(lc);

		for (; c->new_items > 0; c->new_items--)
			tpc_wake_consumer(node, c->id, c->sub->workers > 0);
	}
	follow(node);
	serve_settled(node, broker);
	if (consumers == NIL)
		return;
	now = GetCurrentTimestamp();
	if (TimestampDifferenceExceeds(turns_at, now, TURN_MS))
	{
		tpc_turn_look_after(node);
		turns_at = now;
	}
	foreach(lc, consumers)
	{
		Consumer   *c = lfirst(lc);

		if (!c->wanted)
		{
			take_back(node, broker, c);
			if (broker != NULL ? !wind_up(node, broker, c) :
				c->state != CONSUMER_NONE)
				continue;
			LWLockAcquire(&node->subscriptions_lock, LW_EXCLUSIVE);
			tpc_subscription_remove(node, c->id);
			LWLockRelease(&node->subscriptions_lock);
			consumers = foreach_delete_current(consumers, lc);
			if (c->held != NULL)
				pfree(c->held);
			pfree(c);
			continue;
		}
		if (broker == NULL)
			continue;
		if (c->state == CONSUMER_NONE && c->next_attempt <= now)
			subscribe(node, broker, c);
		if (c->state == CONSUMER_ACTIVE && !c->measuring &&
			c->measure_at <= now)
			measure(broker, c);
		if (c->nheld > 0)
			release_held(node, broker, c, now);
	}
}

const TpcMessengerPart tpc_consumer_part = {
	.connected = connected,
	.lost = lost,
	.serve = serve
};
