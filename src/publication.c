/*-------------------------------------------------------------------------
 *
 * publication.c
 *	  The messenger's part of publishing: channels with confirms.
 *
 * The relay puts messages into places of shared memory (publish.h); here they
 * are sent in their order, and what the broker says of each is put into its
 * place.  It confirms by number on the channel, in any order, several at a
 * time, or rejects (basic.nack).  A mandatory message that no queue takes comes
 * back first, and is confirmed then.
 *
 * What the broker refuses altogether, for there is no such exchange or a
 * property that it does not like, it refuses by closing the channel.  It does
 * not say which message it was, and what else was on its way is unknown and
 * has to be sent again.  So from then on messages are sent one at a time, each
 * with a question behind it.  The broker answers in order: the answer says that
 * the message was accepted, confirmed or not yet; if the channel closes
 * instead, it was that one.  Each that is accepted lets one more be sent at a
 * time, so that this doubles with each round.  (To wait for confirmations would
 * hold up all others where a queue cannot give one for a long time.)
 *
 * Some messages make the broker close the whole connection.  Others' could be
 * to blame for that, so it takes two of those to refuse a message.
 *
 * A queue may say nothing at all, such as a quorum queue without its majority.
 * RabbitMQ then stops reading the channel, and after some hundred messages more
 * the whole connection (publisher.c), and with it all destinations.  So all
 * messages share a channel, the first lane, on which only so many are sent until
 * all of them have been confirmed.  When it has been silent for confirm_timeout,
 * all that is on it is given back to the relay, and the lane begins anew on
 * another channel.  The relay sends one message for each of those destinations,
 * as a probe, and nothing else there, until that is confirmed.  What goes to one
 * of them has a lane of its own, and stays in it, so that it is not repeated,
 * unless others need the lane.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "failpoint.h"
#include "messenger.h"
#include "properties.h"
#include "publish.h"
#include "settings.h"

/* An exchange that there always is, to ask for. */
#define ASKED_FOR			"amq.direct"
/* Questions that may be open at a time. */
#define MAX_QUESTIONS		8
/* With more unsent, nothing is added. */
#define UNSENT_MAX			(1024 * 1024)
/* Given to the connection in one turn; then others have theirs. */
#define TURN_BYTES			(256 * 1024)
/* Wait for a channel that cannot be had, or that the broker has ended. */
#define REOPEN_MS			1000
/* Lanes; all but the first are for probes. */
#define LANES				65
/*
 * As many messages may be sent on a channel until all are confirmed.
 *
 * RabbitMQ's reader may have 400 of a channel's messages that the channel has
 * not granted it more for.  The channel grants 200 with each 200th message,
 * but while some queue owes it something, and be it in passing, it keeps that to
 * itself (credit_flow.erl).  When all is confirmed no queue does, so at most 199
 * are used up then.  (400 and 200 are what RabbitMQ's configuration comes with,
 * credit_flow_default_credit.)
 */
#define LANE_LENGTH			200
/*
 * A classic queue that others fill can owe something all the same, and the
 * broker may be configured otherwise.  So if the first lane is silent we ask
 * something on a channel that nothing can be wrong with; if that is not
 * answered in this time, the connection is not read any more.
 */
#define CHECK_MS			3000
/*
 * A message is refused that has lost us the connection so often, alone.  An
 * internal error need not be its fault.
 */
#define LOSSES				2
#define LOSSES_INTERNAL		5
/* Silence counted for one turn at most: we may have been stopped ourselves. */
#define TURN_SILENCE_MS		1000

/* AMQP's reply codes. */
#define REPLY_NO_ROUTE			312
#define REPLY_CONTENT_TOO_LARGE	311
#define REPLY_ACCESS_REFUSED	403
#define REPLY_NOT_FOUND			404
#define REPLY_PRECONDITION		406
#define REPLY_FRAME_ERROR		501
#define REPLY_SYNTAX_ERROR		502
#define REPLY_COMMAND_INVALID	503
#define REPLY_UNEXPECTED_FRAME	505
#define REPLY_NOT_ALLOWED		530
#define REPLY_NOT_IMPLEMENTED	540
#define REPLY_INTERNAL_ERROR	541

/* A channel, and what has been sent on it. */
typedef struct Lane
{
	TpcChannelOwner owner;
	uint16		channel;		/* 0: not open */
	uint64		held;			/* of a probe's: what it is to find out of */
	uint64		last_tag;
	uint64		empty_tag;		/* the last one when all were confirmed */
	dlist_head	flights;		/* by tag */
	uint64		questions[MAX_QUESTIONS];	/* open ones, by the tag before
											 * them */
	int			nquestions;
	int			nunsure;		/* sent and not accepted yet */
	int			silent_ms;		/* something is on its way, and the broker has
								 * not said anything for so long */
	bool		logged;			/* … which the log says */
} Lane;

/* What we know of a place that is sent. */
typedef struct Flight
{
	Lane	   *lane;
	uint64		tag;			/* its number on the channel; 0: not sent */
	TimestampTz sent_at;
	dlist_node	link;			/* in the lane's flights */
	bool		accepted;		/* the channel does not close for it */
	int			reply_code;		/* it has come back: why; else 0 */
} Flight;

static void take_event(TpcChannelOwner *owner, TpcNode *node,
					   TpcBroker *broker, const TpcBrokerEvent *event);

static Lane lanes[LANES];
static TimestampTz reopen_at = 0;
static Flight flight[TPC_PUBLICATIONS];
static int	limit = TPC_PUBLICATIONS;	/* as many may be unsure */
static int	nto_blame = 0;		/* one of as many lost us the connection: they
								 * go one at a time */
static int64 suspect = 0;		/* alone when the connection was lost … */
static int	nlosses = 0;		/* … so often */
static TimestampTz turn_at = 0; /* the last look for silence */
static size_t unsent = 0;		/* as of then */
static TpcChannelOwner check_owner;
static uint16 check_channel = 0;	/* the check's; 0: there is none */
static int	check_ms;			/* without an answer so far */

/* Places that wait, in the order to send them. */
typedef struct SendList
{
	int			n;
	int			next;
	int			places[TPC_PUBLICATIONS];
} SendList;

static SendList waiting;
static SendList probes;
static uint64 given = 0;		/* as of when those were made */
static bool make_list = true;	/* they have to be made anew */

static bool told = false;		/* places are done: wake the relay */

/* Destinations of a lane given up, as long as the relay may not know of them. */
static uint64 shunned[LANE_LENGTH];
static int	nshunned = 0;

static TpcPublications *
find_window(TpcNode *node)
{
	dsa_pointer p = pg_atomic_read_u64(&node->publications);

	if (!DsaPointerIsValid(p))
		return NULL;
	pg_read_barrier();
	return dsa_get_address(tpc_area(), p);
}

static void
set_state(TpcPublication *place, TpcPublicationState state)
{
	pg_write_barrier();
	pg_atomic_write_u32(&place->state, state);
}

/* Take a place from those that are sent. */
static void
land(int index)
{
	dlist_delete(&flight[index].link);
	flight[index].tag = 0;
	if (!flight[index].accepted)
		flight[index].lane->nunsure--;
}

static void
finish(TpcPublications *window, int index, TpcPublicationState state)
{
	land(index);
	set_state(&window->places[index], state);
	told = true;
}

static void
refuse(TpcPublications *window, int index, int code, const char *text)
{
	TpcPublication *place = &window->places[index];

	place->reply_code = code;
	strlcpy(place->reason, text, sizeof(place->reason));
	finish(window, index, TPC_PUBLICATION_REFUSED);
}

/* A lane's channel is gone, or there was none yet. */
static void
reset_lane(Lane *lane)
{
	lane->channel = 0;
	lane->last_tag = lane->empty_tag = 0;
	lane->nquestions = 0;
	lane->silent_ms = 0;
	lane->logged = false;
}

/* What is on its way is unknown: it will be sent again. */
static void
recall(TpcPublications *window, Lane *lane)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &lane->flights)
	{
		int			index = dlist_container(Flight, link, iter.cur) - flight;

		land(index);
		set_state(&window->places[index], TPC_PUBLICATION_WAITING);
	}
	reset_lane(lane);
	make_list = true;
}

/*-------------------------------------------------------------------------
 * Sending: step X4
 *-------------------------------------------------------------------------
 */

static int
compare_orders(const void *a, const void *b, void *arg)
{
	TpcPublications *window = arg;
	uint64		x = window->places[*(const int *) a].order;
	uint64		y = window->places[*(const int *) b].order;

	return x < y ? -1 : x > y;
}

static bool
is_shunned(uint64 destination)
{
	for (int i = 0; i < nshunned; i++)
	{
		if (shunned[i] == destination)
			return true;
	}
	return false;
}

/*
 * Those whose order is beyond what was given when we began are left to the next
 * time: one before them could have been put where we have looked already.
 *
 * What the relay has given before it knew that a destination takes nothing goes
 * back to it, too.  It knows when it has taken back all that was overdue.
 */
static void
list_waiting(TpcPublications *window)
{
	bool		known = true;

	given = pg_atomic_read_u64(&window->given);
	pg_read_barrier();
	waiting.n = waiting.next = 0;
	probes.n = probes.next = 0;
	make_list = false;
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		TpcPublication *place = &window->places[i];
		SendList   *list;

		if (pg_atomic_read_u32(&place->state) == TPC_PUBLICATION_OVERDUE)
			known = false;
		if (pg_atomic_read_u32(&place->state) != TPC_PUBLICATION_WAITING)
			continue;
		pg_read_barrier();
		list = place->probe ? &probes : &waiting;
		if (place->order > given)
			continue;
		if (nshunned > 0 && !place->probe &&
			is_shunned(place->key.destination))
		{
			set_state(place, TPC_PUBLICATION_OVERDUE);
			told = true;
			continue;
		}
		list->places[list->n++] = i;
	}
	/* nothing was put where we have looked already */
	if (known && pg_atomic_read_u64(&window->given) == given)
		nshunned = 0;
	qsort_arg(waiting.places, waiting.n, sizeof(int), compare_orders, window);
	qsort_arg(probes.places, probes.n, sizeof(int), compare_orders, window);
}

/* The channel closes for none of those up to this tag. */
static void
accept_up_to(Lane *lane, uint64 tag)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lane->flights)
	{
		Flight	   *f = dlist_container(Flight, link, iter.cur);

		if (f->tag > tag)
			break;
		if (f->accepted)
			continue;
		f->accepted = true;
		lane->nunsure--;
		if (nto_blame > 0)
			nto_blame--;
		else
			limit = Min(limit + 1, TPC_PUBLICATIONS);
	}
}

/*
 * Whether one more may be unsure.  What a probe's channel has not been closed
 * for in a second it will hardly be closed for: then it is stuck.
 */
static bool
may_be_unsure(void)
{
	int			n = lanes[0].nunsure;

	if (limit == TPC_PUBLICATIONS)
		return true;
	for (int i = 1; i < LANES; i++)
	{
		if (lanes[i].silent_ms < TURN_SILENCE_MS)
			n += lanes[i].nunsure;
	}
	return n < limit;
}

/* A question that the broker answers at once. */
static bool
ask_something(TpcBroker *broker, uint16 channel)
{
	TpcBrokerCall call;

	memset(&call, 0, sizeof(call));
	call.kind = TPC_CALL_DECLARE_EXCHANGE;
	call.passive = true;
	call.exchange.ptr = ASKED_FOR;
	call.exchange.len = strlen(ASKED_FOR);
	call.type.ptr = "direct";
	call.type.len = strlen("direct");
	return tpc_channel_call(broker, channel, &call);
}

/* Ask the broker something, if we have to know what it accepts. */
static void
ask(TpcBroker *broker, Lane *lane)
{
	if (limit == TPC_PUBLICATIONS || lane->nunsure == 0 ||
		lane->nquestions == MAX_QUESTIONS ||
		(lane->nquestions > 0 &&
		 lane->questions[lane->nquestions - 1] == lane->last_tag))
		return;
	if (ask_something(broker, lane->channel))
		lane->questions[lane->nquestions++] = lane->last_tag;
}

static void
take_answer(Lane *lane)
{
	if (lane->nquestions == 0)
		return;
	accept_up_to(lane, lane->questions[0]);
	lane->nquestions--;
	memmove(lane->questions, lane->questions + 1,
			sizeof(uint64) * lane->nquestions);
}

static bool
open_lane(TpcBroker *broker, Lane *lane)
{
	if (lane->channel != 0)
		return true;
	if (reopen_at != 0 && GetCurrentTimestamp() < reopen_at)
		return false;
	reset_lane(lane);
	lane->channel = tpc_channel_open(broker, &lane->owner, true);
	reopen_at = lane->channel != 0 ? 0 :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REOPEN_MS);
	return lane->channel != 0;
}

static bool
has_room(Lane *lane)
{
	return dlist_is_empty(&lane->flights) ||
		lane->last_tag - lane->empty_tag < LANE_LENGTH;
}

/* The lane for a message; NULL: it has to wait. */
static Lane *
lane_of(const TpcPublication *place)
{
	Lane	   *lane = NULL;

	if (!place->probe)
		return has_room(&lanes[0]) ? &lanes[0] : NULL;
	for (int i = 1; i < LANES; i++)
	{
		if (dlist_is_empty(&lanes[i].flights))
			lane = lane != NULL ? lane : &lanes[i];
		/* its destination's messages stay in order */
		else if (lanes[i].held == place->held)
			return has_room(&lanes[i]) ? &lanes[i] : NULL;
	}
	return lane;
}

/* Returns false if the connection is lost. */
static bool
send_one(TpcNode *node, TpcBroker *broker, TpcPublications *window, Lane *lane,
		 int index)
{
	TpcPublication *place = &window->places[index];
	TpcSlice	exchange;
	TpcSlice	key;
	TpcSlice	properties;
	TpcSlice	body;

	exchange.ptr = dsa_get_address(tpc_area(), place->data);
	exchange.len = place->exchange_len;
	key.ptr = exchange.ptr + exchange.len;
	key.len = place->key_len;
	properties.ptr = key.ptr + key.len;
	properties.len = place->properties_len;
	body.ptr = properties.ptr + properties.len;
	body.len = place->body_len;

	TPC_FAILPOINT("X4.before");
	flight[index].lane = lane;
	flight[index].tag = lane->last_tag + 1;
	flight[index].reply_code = 0;
	flight[index].accepted = false;
	flight[index].sent_at = GetCurrentTimestamp();
	if (dlist_is_empty(&lane->flights))
	{
		lane->silent_ms = 0;
		lane->logged = false;
		lane->empty_tag = lane->last_tag;
		lane->held = place->held;
	}
	dlist_push_tail(&lane->flights, &flight[index].link);
	lane->nunsure++;
	set_state(place, TPC_PUBLICATION_SENT);
	if (!tpc_channel_publish(broker, lane->channel, &exchange, &key, &properties,
							 &body, place->mandatory))
	{
		if (tpc_broker_error(broker) != NULL)
			return false;
		refuse(window, index, 0,
			   "its properties are longer than the broker's frames");
		return true;
	}
	lane->last_tag++;
	tpc_node_count(node, TPC_STAT_PUBLISHED, 1);
	if (place->repeated)
		tpc_node_count(node, TPC_STAT_REPUBLISHED, 1);
	place->repeated = true;
	TPC_FAILPOINT("X4.after");
	return true;
}

/*
 * Send what waits in the order of this list, as far as lanes have room for it.
 * Probes do not wait for one another.
 */
static void
send_list(TpcNode *node, TpcBroker *broker, TpcPublications *window,
		  SendList *list, Size *bytes)
{
	int			kept = 0;
	int			i = list->next;

	for (; i < list->n && may_be_unsure(); i++)
	{
		int			index = list->places[i];
		TpcPublication *place = &window->places[index];
		Lane	   *lane = lane_of(place);

		if (lane == NULL && place->probe)
		{
			list->places[kept++] = index;
			continue;
		}
		if (lane == NULL)
			break;
		if (tpc_broker_unsent(broker) > UNSENT_MAX)
			break;
		if (*bytes > TURN_BYTES)
		{
			SetLatch(MyLatch);
			break;
		}
		if (!open_lane(broker, lane))
			break;
		*bytes += place->body_len + 512;
		if (!send_one(node, broker, window, lane, index))
			break;
	}
	if (list == &waiting)
	{
		list->next = i;
		return;
	}
	memmove(&list->places[kept], &list->places[i],
			sizeof(int) * (list->n - i));
	list->n = kept + list->n - i;
}

/*
 * Give back to the relay what is in a lane, and go on without it.  The channel
 * may take some time to close.
 */
static void
give_up_lane(TpcNode *node, TpcBroker *broker, TpcPublications *window,
			 Lane *lane)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &lane->flights)
	{
		int			index = dlist_container(Flight, link, iter.cur) - flight;
		uint64		destination = window->places[index].key.destination;

		/* it has come back already */
		if (flight[index].reply_code != 0)
		{
			window->places[index].reply_code = flight[index].reply_code;
			finish(window, index, TPC_PUBLICATION_RETURNED);
			continue;
		}
		if (nshunned < LANE_LENGTH && !is_shunned(destination))
			shunned[nshunned++] = destination;
		tpc_node_count(node, TPC_STAT_OVERDUE, 1);
		finish(window, index, TPC_PUBLICATION_OVERDUE);
	}
	make_list = true;
	tpc_channel_close(broker, lane->channel);
	reset_lane(lane);
}

static void
take_check(TpcChannelOwner *owner, TpcNode *node, TpcBroker *broker,
		   const TpcBrokerEvent *event)
{
	/* whatever it says, it has read the question */
	if (event->kind == TPC_EVENT_ANSWER)
		tpc_channel_close(broker, check_channel);
	check_channel = 0;
}

static void
begin_check(TpcBroker *broker)
{
	if (check_channel != 0)
		return;
	check_owner.take = take_check;
	check_channel = tpc_channel_open(broker, &check_owner, false);
	check_ms = 0;
	if (check_channel != 0)
		ask_something(broker, check_channel);
}

/* Look after lanes of which the broker says nothing. */
static void
look_after_silence(TpcNode *node, TpcBroker *broker, TpcPublications *window)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		passed = turn_at == 0 ? 0 : (now - turn_at) / 1000;
	bool		wanted = false;
	bool		free = false;
	Lane	   *longest = NULL;

	/* what is less than a millisecond counts next time */
	if (turn_at != 0 && passed == 0)
		return;
	turn_at = now;
	/* clocks can be set */
	passed = Max(0, Min(passed, TURN_SILENCE_MS));
	/* what is being read is not silent, but large */
	if (tpc_broker_unsent(broker) < unsent)
		passed = 0;
	unsent = tpc_broker_unsent(broker);
	for (int i = 0; i < LANES; i++)
	{
		Lane	   *lane = &lanes[i];

		if (dlist_is_empty(&lane->flights))
		{
			free |= i > 0;
			continue;
		}
		lane->silent_ms = Min(lane->silent_ms + (int) passed, INT_MAX / 2);
		if (lane->silent_ms < tpc_confirm_timeout)
			continue;
		if (i == 0)
		{
			ereport(LOG,
					(errmsg("the broker has not confirmed any message for %d ms",
							lane->silent_ms),
					 errdetail("One message at a time tries each of their destinations.")));
			give_up_lane(node, broker, window, lane);
			begin_check(broker);
			continue;
		}
		if (!lane->logged)
		{
			begin_check(broker);
			ereport(LOG,
					(errmsg("the broker does not confirm message " INT64_FORMAT,
							window->places[dlist_container(Flight, link,
														   lane->flights.head.next) - flight].id),
					 errdetail("What else goes to its exchange with its routing key waits until it does."),
					 errhint("View tpc_amqp.publications lists messages that wait.")));
		}
		lane->logged = true;
		if (longest == NULL || lane->silent_ms > longest->silent_ms)
			longest = lane;
	}
	for (int i = probes.next; i < probes.n && !free; i++)
		wanted |= lane_of(&window->places[probes.places[i]]) == NULL;
	if (longest != NULL &&
		(wanted || pg_atomic_exchange_u32(&window->probes_held_up, 0) != 0))
		give_up_lane(node, broker, window, longest);

	if (check_channel != 0)
	{
		check_ms += (int) passed;
		if (check_ms >= CHECK_MS)
			tpc_broker_abandon(broker,
							   "the broker does not read the connection any more");
	}
}

static void
serve(TpcNode *node, TpcBroker *broker, bool blocked)
{
	TpcPublications *window = find_window(node);
	Size		bytes = 0;

	if (window != NULL && broker != NULL && !blocked)
	{
		look_after_silence(node, broker, window);
		if (make_list || given != pg_atomic_read_u64(&window->given))
			list_waiting(window);
		/* few, and others wait for what they find out */
		send_list(node, broker, window, &probes, &bytes);
		send_list(node, broker, window, &waiting, &bytes);
		for (int i = 0; i < LANES; i++)
			ask(broker, &lanes[i]);
	}
	else
		turn_at = 0;
	if (told)
	{
		told = false;
		tpc_poke_relay(node);
	}
}

/*-------------------------------------------------------------------------
 * What the broker says: step X5
 *-------------------------------------------------------------------------
 */

static void
settle(TpcNode *node, TpcPublications *window, int index, bool rejected)
{
	TpcPublication *place = &window->places[index];

	place->slow = TimestampDifferenceExceeds(flight[index].sent_at,
											 GetCurrentTimestamp(),
											 tpc_confirm_timeout / 2);
	if (flight[index].reply_code != 0)
	{
		place->reply_code = flight[index].reply_code;
		finish(window, index, TPC_PUBLICATION_RETURNED);
	}
	else if (rejected)
	{
		tpc_node_count(node, TPC_STAT_REJECTED, 1);
		finish(window, index, TPC_PUBLICATION_REJECTED);
	}
	else
	{
		tpc_node_count(node, TPC_STAT_CONFIRMED, 1);
		finish(window, index, TPC_PUBLICATION_CONFIRMED);
	}
	if (suspect == place->id)
		suspect = 0;
}

static void
take_confirm(TpcNode *node, TpcPublications *window, Lane *lane,
			 const TpcBrokerEvent *event)
{
	dlist_mutable_iter iter;

	TPC_FAILPOINT("X5.before");
	accept_up_to(lane, event->delivery_tag);
	dlist_foreach_modify(iter, &lane->flights)
	{
		int			index = dlist_container(Flight, link, iter.cur) - flight;
		uint64		tag = flight[index].tag;

		if (tag > event->delivery_tag)
			break;
		if (tag == event->delivery_tag || event->multiple)
			settle(node, window, index, event->refused);
	}
	TPC_FAILPOINT("X5.after");
}

/*
 * One came back.  It is confirmed next, and known by its message_id.  Should
 * the application have given the same to others that are on their way, it is
 * the first of those that went the same way.
 */
static void
take_return(TpcPublications *window, Lane *lane, const TpcBrokerEvent *event)
{
	const char *id;
	size_t		id_len;
	dlist_iter	iter;

	if (!tpc_properties_message_id(event->properties.ptr,
								   event->properties.len, &id, &id_len))
		return;
	dlist_foreach(iter, &lane->flights)
	{
		int			index = dlist_container(Flight, link, iter.cur) - flight;
		TpcPublication *place = &window->places[index];
		const char *p = dsa_get_address(tpc_area(), place->data);
		const char *its_id;
		size_t		its_len;

		if (!place->mandatory || flight[index].reply_code != 0 ||
			place->exchange_len != event->exchange.len ||
			place->key_len != event->routing_key.len ||
			memcmp(p, event->exchange.ptr, event->exchange.len) != 0)
			continue;
		p += place->exchange_len;
		if (memcmp(p, event->routing_key.ptr, event->routing_key.len) != 0)
			continue;
		p += place->key_len;
		if (!tpc_properties_message_id(p, place->properties_len, &its_id,
									   &its_len) ||
			its_len != id_len || memcmp(its_id, id, id_len) != 0)
			continue;
		flight[index].reply_code = event->reply_code != 0 ?
			event->reply_code : REPLY_NO_ROUTE;
		snprintf(place->reason, sizeof(place->reason), "%.*s",
				 (int) event->text.len, event->text.ptr);
		return;
	}
}

static bool
is_refusal(int code)
{
	switch (code)
	{
		case REPLY_CONTENT_TOO_LARGE:
		case REPLY_ACCESS_REFUSED:
		case REPLY_NOT_FOUND:
		case REPLY_PRECONDITION:
		case REPLY_FRAME_ERROR:
		case REPLY_SYNTAX_ERROR:
		case REPLY_COMMAND_INVALID:
		case REPLY_UNEXPECTED_FRAME:
		case REPLY_NOT_ALLOWED:
		case REPLY_NOT_IMPLEMENTED:
		case REPLY_INTERNAL_ERROR:
			return true;
		default:
			return false;
	}
}

/*
 * The only one that is unsure, in this lane or (NULL) in all; -1 if there are
 * none, or several.
 */
static int
only_unsure(const Lane *only)
{
	int			found = -1;

	for (int i = 0; i < LANES; i++)
	{
		dlist_iter	iter;

		if (only != NULL && only != &lanes[i])
			continue;
		/* not counted: may_be_unsure() */
		if (only == NULL && i > 0 && lanes[i].silent_ms >= TURN_SILENCE_MS)
			continue;
		dlist_foreach(iter, &lanes[i].flights)
		{
			Flight	   *f = dlist_container(Flight, link, iter.cur);

			if (f->accepted)
				continue;
			if (found >= 0)
				return -1;
			found = f - flight;
		}
	}
	return found;
}

static void
channel_closed(TpcPublications *window, Lane *lane, const TpcBrokerError *error)
{
	int			index = only_unsure(lane);

	if (!is_refusal(error->reply_code))
		reopen_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												REOPEN_MS);
	else if (index >= 0)
		refuse(window, index, error->reply_code, error->text);
	limit = 1;
	recall(window, lane);
}

static void
take_event(TpcChannelOwner *owner, TpcNode *node, TpcBroker *broker,
		   const TpcBrokerEvent *event)
{
	TpcPublications *window = find_window(node);
	Lane	   *lane = (Lane *) owner;

	lane->silent_ms = 0;
	switch (event->kind)
	{
		case TPC_EVENT_CONFIRM:
			take_confirm(node, window, lane, event);
			break;
		case TPC_EVENT_RETURNED:
			take_return(window, lane, event);
			break;
		case TPC_EVENT_ANSWER:
			take_answer(lane);
			break;
		case TPC_EVENT_CHANNEL_CLOSED:
			channel_closed(window, lane, &event->error);
			break;
		default:
			break;
	}
}

/*-------------------------------------------------------------------------
 * The connection
 *-------------------------------------------------------------------------
 */

static void
connected(TpcNode *node, TpcBroker *broker)
{
	TpcPublications *window = find_window(node);

	for (int i = 0; i < LANES; i++)
	{
		if (lanes[i].owner.take == NULL)
		{
			lanes[i].owner.take = take_event;
			dlist_init(&lanes[i].flights);
		}
		reset_lane(&lanes[i]);
	}
	reopen_at = 0;
	turn_at = 0;
	check_channel = 0;
	make_list = true;
	if (window == NULL)
		return;

	/* those of a messenger before us */
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		if (pg_atomic_read_u32(&window->places[i].state) ==
			TPC_PUBLICATION_SENT)
			set_state(&window->places[i], TPC_PUBLICATION_WAITING);
	}
}

static void
lost(TpcNode *node, const TpcBrokerError *error)
{
	TpcPublications *window = find_window(node);
	int			nunsure = 0;

	if (window == NULL)
		return;
	check_channel = 0;
	for (int i = 0; i < LANES; i++)
		nunsure += lanes[i].nunsure;
	if (is_refusal(error->reply_code) && nunsure > 0)
	{
		int			index = only_unsure(NULL);

		limit = 1;
		nto_blame = 0;
		for (int i = 0; i < LANES; i++)
		{
			dlist_iter	iter;

			dlist_foreach(iter, &lanes[i].flights)
				nto_blame++;
		}
		if (index >= 0)
		{
			int64		id = window->places[index].id;

			nlosses = suspect == id ? nlosses + 1 : 1;
			if (nlosses >= (error->reply_code == REPLY_INTERNAL_ERROR ?
							LOSSES_INTERNAL : LOSSES))
				refuse(window, index, error->reply_code, error->text);
			suspect = id;
		}
	}
	for (int i = 0; i < LANES; i++)
		recall(window, &lanes[i]);
}

const TpcMessengerPart tpc_publication_part = {connected, lost, serve};
