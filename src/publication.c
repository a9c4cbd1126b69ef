/*-------------------------------------------------------------------------
 *
 * publication.c
 *	  The messenger's part of publishing: one channel, with confirms.
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

/* An exchange that there always is, to ask for. */
#define ASKED_FOR			"amq.direct"
/* Questions that may be open at a time. */
#define MAX_QUESTIONS		8
/* Given to the connection in one turn; then others have theirs. */
#define TURN_BYTES			(256 * 1024)
/* Wait for a channel that cannot be had, or that the broker has ended. */
#define REOPEN_MS			1000

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

/* What we know of a place that is sent. */
typedef struct Flight
{
	uint64		tag;			/* its number on the channel; 0: not sent */
	dlist_node	link;			/* in flights */
	bool		accepted;		/* the channel does not close for it */
	int			reply_code;		/* it has come back: why; else 0 */
} Flight;

static void take_event(TpcChannelOwner *owner, TpcNode *node,
					   TpcBroker *broker, const TpcBrokerEvent *event);

static TpcChannelOwner owner = {take_event};
static uint16 channel = 0;		/* 0: not open */
static TimestampTz reopen_at = 0;
static uint64 last_tag = 0;
static Flight flight[TPC_PUBLICATIONS];
static dlist_head flights = DLIST_STATIC_INIT(flights); /* by tag */
static int	nflights = 0;
static int	nunsure = 0;		/* of those, not accepted yet */
static int	limit = TPC_PUBLICATIONS;	/* as many may be unsure */
static uint64 questions[MAX_QUESTIONS]; /* open ones, by the tag before them */
static int	nquestions = 0;
static int64 suspect = 0;		/* alone when the connection was lost */

/* Places that wait, in the order to send them. */
static int	waiting[TPC_PUBLICATIONS];
static int	nwaiting = 0;
static int	next_waiting = 0;
static uint64 given = 0;		/* as of when that was made */
static bool make_list = true;	/* it has to be made anew */

static bool told = false;		/* places are done: wake the relay */

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
	nflights--;
	if (!flight[index].accepted)
		nunsure--;
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

/* What is on its way is unknown: it will be sent again. */
static void
recall(TpcPublications *window)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &flights)
	{
		int			index = dlist_container(Flight, link, iter.cur) - flight;

		land(index);
		set_state(&window->places[index], TPC_PUBLICATION_WAITING);
	}
	make_list = true;
}

/*-------------------------------------------------------------------------
 * Sending: step X4
 *-------------------------------------------------------------------------
 */

static TpcPublications *sorted_window;

static int
compare_orders(const void *a, const void *b)
{
	uint64		x = sorted_window->places[*(const int *) a].order;
	uint64		y = sorted_window->places[*(const int *) b].order;

	return x < y ? -1 : x > y;
}

/*
 * Those whose order is beyond what was given when we began are left to the next
 * time: one before them could have been put where we have looked already.
 */
static void
list_waiting(TpcPublications *window)
{
	given = pg_atomic_read_u64(&window->given);
	pg_read_barrier();
	nwaiting = next_waiting = 0;
	make_list = false;
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		TpcPublication *place = &window->places[i];

		if (pg_atomic_read_u32(&place->state) != TPC_PUBLICATION_WAITING)
			continue;
		pg_read_barrier();
		if (place->order <= given)
			waiting[nwaiting++] = i;
	}
	sorted_window = window;
	qsort(waiting, nwaiting, sizeof(int), compare_orders);
}

/* The channel closes for none of those up to this tag. */
static void
accept_up_to(uint64 tag)
{
	dlist_iter	iter;

	dlist_foreach(iter, &flights)
	{
		Flight	   *f = dlist_container(Flight, link, iter.cur);

		if (f->tag > tag)
			break;
		if (f->accepted)
			continue;
		f->accepted = true;
		nunsure--;
		limit = Min(limit + 1, TPC_PUBLICATIONS);
	}
}

/* Ask the broker something, if we have to know what it accepts. */
static void
ask(TpcBroker *broker)
{
	TpcBrokerCall call;

	if (limit == TPC_PUBLICATIONS || nunsure == 0 ||
		nquestions == MAX_QUESTIONS ||
		(nquestions > 0 && questions[nquestions - 1] == last_tag))
		return;
	memset(&call, 0, sizeof(call));
	call.kind = TPC_CALL_DECLARE_EXCHANGE;
	call.passive = true;
	call.exchange.ptr = ASKED_FOR;
	call.exchange.len = strlen(ASKED_FOR);
	call.type.ptr = "direct";
	call.type.len = strlen("direct");
	if (tpc_channel_call(broker, channel, &call))
		questions[nquestions++] = last_tag;
}

static void
take_answer(void)
{
	if (nquestions == 0)
		return;
	accept_up_to(questions[0]);
	nquestions--;
	memmove(questions, questions + 1, sizeof(uint64) * nquestions);
}

static bool
open_channel(TpcBroker *broker)
{
	if (channel != 0)
		return true;
	if (reopen_at != 0 && GetCurrentTimestamp() < reopen_at)
		return false;
	channel = tpc_channel_open(broker, &owner, true);
	last_tag = 0;
	nquestions = 0;
	reopen_at = channel != 0 ? 0 :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REOPEN_MS);
	return channel != 0;
}

/* Returns false if the connection is lost. */
static bool
send_one(TpcNode *node, TpcBroker *broker, TpcPublications *window, int index)
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
	flight[index].tag = last_tag + 1;
	flight[index].reply_code = 0;
	flight[index].accepted = false;
	dlist_push_tail(&flights, &flight[index].link);
	nflights++;
	nunsure++;
	set_state(place, TPC_PUBLICATION_SENT);
	if (!tpc_channel_publish(broker, channel, &exchange, &key, &properties,
							 &body, place->mandatory))
	{
		if (tpc_broker_error(broker) != NULL)
			return false;
		refuse(window, index, 0,
			   "its properties are longer than the broker's frames");
		return true;
	}
	last_tag++;
	tpc_node_count(node, TPC_STAT_PUBLISHED, 1);
	if (place->repeated)
		tpc_node_count(node, TPC_STAT_REPUBLISHED, 1);
	place->repeated = true;
	TPC_FAILPOINT("X4.after");
	return true;
}

static void
serve(TpcNode *node, TpcBroker *broker, bool blocked)
{
	TpcPublications *window = find_window(node);
	Size		bytes = 0;

	if (told)
	{
		told = false;
		tpc_poke_relay(node);
	}
	if (window == NULL || broker == NULL || blocked)
		return;
	if (make_list || given != pg_atomic_read_u64(&window->given))
		list_waiting(window);
	while (next_waiting < nwaiting && nunsure < limit)
	{
		int			index = waiting[next_waiting];

		if (bytes > TURN_BYTES)
		{
			SetLatch(MyLatch);
			break;
		}
		if (!open_channel(broker))
			break;
		bytes += window->places[index].body_len + 512;
		if (!send_one(node, broker, window, index))
			break;
		next_waiting++;
	}
	if (channel != 0)
		ask(broker);
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
	if (flight[index].reply_code != 0)
	{
		window->places[index].reply_code = flight[index].reply_code;
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
	suspect = 0;
}

static void
take_confirm(TpcNode *node, TpcPublications *window,
			 const TpcBrokerEvent *event)
{
	dlist_mutable_iter iter;

	TPC_FAILPOINT("X5.before");
	accept_up_to(event->delivery_tag);
	dlist_foreach_modify(iter, &flights)
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
take_return(TpcPublications *window, const TpcBrokerEvent *event)
{
	const char *id;
	size_t		id_len;
	dlist_iter	iter;

	if (!tpc_properties_message_id(event->properties.ptr,
								   event->properties.len, &id, &id_len))
		return;
	dlist_foreach(iter, &flights)
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
			return true;
		default:
			return false;
	}
}

/* The only one that is unsure; -1 if there are none, or several. */
static int
only_unsure(void)
{
	dlist_iter	iter;

	if (nunsure != 1)
		return -1;
	dlist_foreach(iter, &flights)
	{
		Flight	   *f = dlist_container(Flight, link, iter.cur);

		if (!f->accepted)
			return f - flight;
	}
	return -1;
}

static void
channel_closed(TpcPublications *window, const TpcBrokerError *error)
{
	int			index = only_unsure();

	channel = 0;
	if (!is_refusal(error->reply_code))
		reopen_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												REOPEN_MS);
	else if (index >= 0)
		refuse(window, index, error->reply_code, error->text);
	limit = 1;
	recall(window);
}

static void
take_event(TpcChannelOwner *self, TpcNode *node, TpcBroker *broker,
		   const TpcBrokerEvent *event)
{
	TpcPublications *window = find_window(node);

	switch (event->kind)
	{
		case TPC_EVENT_CONFIRM:
			take_confirm(node, window, event);
			break;
		case TPC_EVENT_RETURNED:
			take_return(window, event);
			break;
		case TPC_EVENT_ANSWER:
			take_answer();
			break;
		case TPC_EVENT_CHANNEL_CLOSED:
			channel_closed(window, &event->error);
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

	channel = 0;
	reopen_at = 0;
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

	channel = 0;
	if (window == NULL)
		return;
	if (is_refusal(error->reply_code) && nunsure > 0)
	{
		int			index = only_unsure();

		limit = 1;
		if (index >= 0)
		{
			int64		id = window->places[index].id;

			if (suspect == id)
				refuse(window, index, error->reply_code, error->text);
			suspect = id;
		}
	}
	recall(window);
}

const TpcMessengerPart tpc_publication_part = {connected, lost, serve};
