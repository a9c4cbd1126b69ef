/*-------------------------------------------------------------------------
 *
 * publisher.c
 *	  The messenger's other connection: what publish() sends.
 *
 * RabbitMQ holds up publishers by not reading their connection, all of it.  A
 * queue that is slow, full or stuck must not hold up the node's transactions,
 * so what users publish has a connection of its own.  It is there once there is
 * something to publish, for as long as the other one is.
 *
 * Nothing here waits, but for connecting, which has a bound: what the socket
 * does not take is left for the next turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "messenger.h"
#include "publish.h"
#include "publisher.h"

/* Time for connecting, at first; transactions wait meanwhile. */
#define CONNECT_MS			2000
#define RECONNECT_MIN_MS	200
#define RECONNECT_MAX_MS	30000
#define EVENTS_PER_TURN		1000

static TpcBroker *broker = NULL;
static bool blocked = false;
static int	backoff_ms = 0;
static TimestampTz next_attempt = 0;
static uint64 counted_publishes = 0;
static uint64 counted_writes = 0;

static void
schedule_attempt(void)
{
	backoff_ms = backoff_ms == 0 ? RECONNECT_MIN_MS :
		Min(2 * backoff_ms, RECONNECT_MAX_MS);
	next_attempt = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   backoff_ms);
}

static void
close_connection(TpcNode *node, const TpcBrokerError *error)
{
	tpc_publisher_count(node);
	counted_publishes = counted_writes = 0;
	tpc_broker_close(broker);
	broker = NULL;
	node->publish_blocked = blocked = false;
	tpc_publication_part.lost(node, error);
}

static void
connection_lost(TpcNode *node, const TpcBrokerError *error)
{
	TpcBrokerError copy = *error;

	close_connection(node, &copy);
	tpc_messenger_report(&copy, true);
	schedule_attempt();
}

/* tpc_publisher_connect: one attempt; params are those of the other one. */
void
tpc_publisher_connect(TpcNode *node, const TpcBrokerParams *params)
{
	TpcBrokerParams own = *params;
	TpcBrokerError error;

	own.only_channels = true;
	own.connect_timeout_ms = Min(own.connect_timeout_ms,
								 CONNECT_MS + 2 * backoff_ms);
	broker = tpc_broker_open(&own, &error);
	if (broker == NULL)
	{
		tpc_messenger_report(&error, false);
		schedule_attempt();
		return;
	}
	tpc_publication_part.connected(node, broker);
}

static void
set_blocked(TpcNode *node, bool is_blocked)
{
	node->publish_blocked = blocked = is_blocked;
	ereport(LOG,
			(blocked ?
			 errmsg("the broker takes no messages of publish() from node \"%s\" for now",
					node->name) :
			 errmsg("the broker takes messages of publish() from node \"%s\" again",
					node->name)));
}

static void
receive(TpcNode *node)
{
	TpcBrokerEvent event;

	for (int i = 0; i < EVENTS_PER_TURN; i++)
	{
		TpcChannelOwner *owner;

		if (!tpc_broker_next_event(broker, &event))
		{
			/* the last ones may have made a difference */
			if (backoff_ms > 0 && i > 0)
				backoff_ms = 0;
			return;
		}
		switch (event.kind)
		{
			case TPC_EVENT_BLOCKED:
			case TPC_EVENT_UNBLOCKED:
				set_blocked(node, event.kind == TPC_EVENT_BLOCKED);
				break;
			case TPC_EVENT_CLOSED:
				connection_lost(node, &event.error);
				return;
			case TPC_EVENT_MESSAGE:
			case TPC_EVENT_RETURNED:
			case TPC_EVENT_CONFIRM:
			case TPC_EVENT_ANSWER:
			case TPC_EVENT_CANCELLED:
			case TPC_EVENT_CHANNEL_CLOSED:
				owner = event.owner;
				owner->take(owner, node, broker, &event);
				break;
			case TPC_EVENT_DELIVERY:
			case TPC_EVENT_OVERSIZED:
			case TPC_EVENT_RETURN:
				break;			/* of a channel that this one does not have */
		}
	}
	SetLatch(MyLatch);
}

/* Whether there has been anything to publish. */
static bool
is_wanted(TpcNode *node)
{
	dsa_pointer p = pg_atomic_read_u64(&node->publications);
	TpcPublications *window;

	if (!DsaPointerIsValid(p))
		return false;
	pg_read_barrier();
	window = dsa_get_address(tpc_area(), p);
	return pg_atomic_read_u64(&window->given) > 0;
}

/* tpc_publisher_is_due: whether to connect, if the other connection is there. */
bool
tpc_publisher_is_due(TpcNode *node)
{
	return broker == NULL && is_wanted(node) &&
		GetCurrentTimestamp() >= next_attempt;
}

/*
 * tpc_publisher_serve: once a turn.  readable: there may be something to read.
 */
void
tpc_publisher_serve(TpcNode *node, bool readable)
{
	if (broker != NULL && (readable || tpc_broker_wait_ms(broker) == 0))
		receive(node);
	tpc_publication_part.serve(node, broker, blocked);
	if (broker != NULL && !tpc_broker_try_flush(broker))
		connection_lost(node, tpc_broker_error(broker));
}

/* tpc_publisher_close: the other connection is lost. */
void
tpc_publisher_close(TpcNode *node)
{
	TpcBrokerError none;

	memset(&none, 0, sizeof(none));
	backoff_ms = 0;
	next_attempt = 0;
	if (broker != NULL)
		close_connection(node, &none);
}

/* tpc_publisher_socket: and what to wait for on it; -1: there is none. */
int
tpc_publisher_socket(uint32 *events)
{
	if (broker == NULL)
		return PGINVALID_SOCKET;
	*events = WL_SOCKET_READABLE |
		(tpc_broker_unsent(broker) > 0 ? WL_SOCKET_WRITEABLE : 0);
	return tpc_broker_socket(broker);
}

/* tpc_publisher_wait_ms: after how long to serve it again at the latest. */
long
tpc_publisher_wait_ms(void)
{
	return broker == NULL ? LONG_MAX : tpc_broker_wait_ms(broker);
}

/* tpc_publisher_count: bring the node's counters up to date. */
void
tpc_publisher_count(TpcNode *node)
{
	uint64		publishes;
	uint64		writes;

	if (broker == NULL)
		return;
	tpc_broker_counters(broker, &publishes, &writes);
	tpc_node_count(node, TPC_STAT_PUBLISHES, publishes - counted_publishes);
	tpc_node_count(node, TPC_STAT_SOCKET_WRITES, writes - counted_writes);
	counted_publishes = publishes;
	counted_writes = writes;
}
