/*-------------------------------------------------------------------------
 *
 * channel.c
 *	  The other channels of the connection: what users do with the broker.
 *
 * The protocol between nodes has a channel of its own (broker.c), and when
 * the broker closes that one, the connection is lost.  What users ask for can
 * be refused, and AMQP refuses by closing the channel; so that nothing else
 * suffers, each thing that can be refused by itself has a channel.
 *
 * Nothing here waits.  A channel is opened and used in one go, for the broker
 * takes frames in their order; what it answers, refuses or delivers are
 * events (tpc_broker_next_event), which name the channel and its owner.
 *
 * A channel that we close is not free before the broker says so; what still
 * arrives on it until then is ignored.
 *
 * Properties and arguments pass as bytes (properties.h): what is in them is
 * nothing to the messenger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "broker_private.h"

typedef struct TpcChannel
{
	uint16		number;
	bool		closing;		/* by us: waits for the broker's word */
	void	   *owner;

	/* the message that is coming in */
	enum
	{
		WANT_METHOD,
		WANT_HEADER,
		WANT_BODY
	}			want;
	TpcBrokerEvent event;		/* … as it will be reported */
	bool		skip;			/* body is not stored */
	uint64		remaining;		/* of the body, bytes to come */
	StringInfoData properties;
	StringInfoData body;

	/* texts of the event */
	size_t		text_len;
	char		text[5 * SHORTSTR_MAX];
} TpcChannel;

static amqp_bytes_t
bytes_of_slice(const TpcSlice *slice)
{
	amqp_bytes_t bytes;

	bytes.bytes = unconstify(char *, slice->ptr);
	bytes.len = slice->ptr == NULL ? 0 : slice->len;
	return bytes;
}

/* Keeps a short string until the channel's next event. */
static TpcSlice
keep(TpcChannel *ch, amqp_bytes_t bytes)
{
	TpcSlice	slice;
	size_t		len = Min(bytes.len, sizeof(ch->text) - ch->text_len);

	slice.ptr = ch->text + ch->text_len;
	slice.len = len;
	if (len > 0)
		memcpy(ch->text + ch->text_len, bytes.bytes, len);
	ch->text_len += len;
	return slice;
}

static TpcChannel *
find(TpcBroker *b, uint16 number)
{
	return number < b->channels_size ? b->channels[number] : NULL;
}

static void
forget(TpcBroker *b, TpcChannel *ch)
{
	b->channels[ch->number] = NULL;
	pfree(ch->properties.data);
	pfree(ch->body.data);
	pfree(ch);
}

/*-------------------------------------------------------------------------
 * Opening and closing.
 *-------------------------------------------------------------------------
 */

/*
 * Opens a channel; owner comes with its events.  With confirms, the broker
 * confirms what is published, by numbers that begin with 1.  Returns its
 * number; 0 if all are in use, or the connection is lost.
 */
uint16
tpc_channel_open(TpcBroker *b, void *owner, bool confirms)
{
	MemoryContext old;
	TpcChannel *ch;
	int			number;
	amqp_channel_open_t open;

	if (b->lost)
		return 0;
	for (number = CHANNEL + 1; number <= b->nchannels; number++)
	{
		if (find(b, number) == NULL)
			break;
	}
	if (number > b->nchannels)
		return 0;

	old = MemoryContextSwitchTo(b->context);
	if (number >= b->channels_size)
	{
		int			size = Max(16, 2 * b->channels_size);
		TpcChannel **channels = palloc0(size * sizeof(TpcChannel *));

		if (b->channels != NULL)
		{
			memcpy(channels, b->channels,
				   b->channels_size * sizeof(TpcChannel *));
			pfree(b->channels);
		}
		b->channels = channels;
		b->channels_size = size;
	}
	ch = palloc0(sizeof(TpcChannel));
	ch->number = (uint16) number;
	ch->owner = owner;
	initStringInfo(&ch->properties);
	initStringInfo(&ch->body);
	b->channels[number] = ch;
	MemoryContextSwitchTo(old);

	memset(&open, 0, sizeof(open));
	if (!tpc_broker_put_method(b, ch->number, AMQP_CHANNEL_OPEN_METHOD, &open))
		return 0;
	if (confirms)
	{
		amqp_confirm_select_t select;

		memset(&select, 0, sizeof(select));
		if (!tpc_broker_put_method(b, ch->number, AMQP_CONFIRM_SELECT_METHOD,
								   &select))
			return 0;
	}
	return ch->number;
}

/*
 * Closes a channel: no event comes of it any more.  What was delivered on it
 * and not settled goes back to its queue.
 */
void
tpc_channel_close(TpcBroker *b, uint16 channel)
{
	TpcChannel *ch = find(b, channel);
	amqp_channel_close_t m;

	if (ch == NULL || ch->closing || b->lost)
		return;
	ch->closing = true;
	memset(&m, 0, sizeof(m));
	m.reply_code = AMQP_REPLY_SUCCESS;
	(void) tpc_broker_put_method(b, channel, AMQP_CHANNEL_CLOSE_METHOD, &m);
}

/*-------------------------------------------------------------------------
 * Sending.
 *-------------------------------------------------------------------------
 */

static bool
fits(const TpcSlice *slice)
{
	return slice->ptr == NULL || slice->len <= TPC_NAME_MAX;
}

/*
 * Decodes arguments for the library, into its pool.  Ours have been encoded
 * here; what the library cannot take is refused.
 */
static bool
arguments_of(TpcBroker *b, const TpcSlice *arguments, amqp_table_t *table)
{
	amqp_bytes_t encoded;
	size_t		offset = 0;
	uint32		len_be = pg_hton32((uint32) arguments->len);
	int			status;

	memset(table, 0, sizeof(*table));
	if (arguments->ptr == NULL || arguments->len == 0)
		return true;
	if (arguments->len > HEADER_LIMIT)
		return false;
	recycle_amqp_pool(&b->pool);
	amqp_pool_alloc_bytes(&b->pool, arguments->len + sizeof(len_be), &encoded);
	if (encoded.bytes == NULL)
		return false;
	memcpy(encoded.bytes, &len_be, sizeof(len_be));
	memcpy((char *) encoded.bytes + sizeof(len_be), arguments->ptr,
		   arguments->len);
	status = amqp_decode_table(encoded, &b->pool, table, &offset);
	return status == AMQP_STATUS_OK && offset == encoded.len;
}

/*
 * Buffers a call; flush sends it, and its answer, or the end of the channel,
 * is an event.  Returns false if the connection is lost, or if the call is too
 * long to be sent (tpc_broker_error() tells which); nothing is sent then.
 */
bool
tpc_channel_call(TpcBroker *b, uint16 channel, const TpcBrokerCall *call)
{
	union
	{
		amqp_queue_declare_t declare_queue;
		amqp_queue_delete_t delete_queue;
		amqp_queue_purge_t purge_queue;
		amqp_queue_bind_t bind_queue;
		amqp_queue_unbind_t unbind_queue;
		amqp_exchange_declare_t declare_exchange;
		amqp_exchange_delete_t delete_exchange;
		amqp_basic_consume_t consume;
		amqp_basic_cancel_t cancel;
		amqp_basic_get_t get;
	}			m;
	amqp_table_t arguments;
	uint32		id = 0;
	size_t		room = METHOD_MAX + call->arguments.len;

	if (b->lost || find(b, channel) == NULL ||
		!fits(&call->queue) || !fits(&call->exchange) ||
		!fits(&call->routing_key) || !fits(&call->type) ||
		!fits(&call->consumer_tag) ||
		room + FRAME_EXTRA > b->frame_max ||
		!arguments_of(b, &call->arguments, &arguments))
		return false;

	memset(&m, 0, sizeof(m));
	switch (call->kind)
	{
		case TPC_CALL_DECLARE_QUEUE:
			id = AMQP_QUEUE_DECLARE_METHOD;
			m.declare_queue.queue = bytes_of_slice(&call->queue);
			m.declare_queue.passive = call->passive;
			m.declare_queue.durable = call->durable;
			m.declare_queue.exclusive = call->exclusive;
			m.declare_queue.auto_delete = call->auto_delete;
			m.declare_queue.arguments = arguments;
			break;
		case TPC_CALL_DELETE_QUEUE:
			id = AMQP_QUEUE_DELETE_METHOD;
			m.delete_queue.queue = bytes_of_slice(&call->queue);
			m.delete_queue.if_unused = call->if_unused;
			m.delete_queue.if_empty = call->if_empty;
			break;
		case TPC_CALL_PURGE_QUEUE:
			id = AMQP_QUEUE_PURGE_METHOD;
			m.purge_queue.queue = bytes_of_slice(&call->queue);
			break;
		case TPC_CALL_BIND_QUEUE:
			id = AMQP_QUEUE_BIND_METHOD;
			m.bind_queue.queue = bytes_of_slice(&call->queue);
			m.bind_queue.exchange = bytes_of_slice(&call->exchange);
			m.bind_queue.routing_key = bytes_of_slice(&call->routing_key);
			m.bind_queue.arguments = arguments;
			break;
		case TPC_CALL_UNBIND_QUEUE:
			id = AMQP_QUEUE_UNBIND_METHOD;
			m.unbind_queue.queue = bytes_of_slice(&call->queue);
			m.unbind_queue.exchange = bytes_of_slice(&call->exchange);
			m.unbind_queue.routing_key = bytes_of_slice(&call->routing_key);
			m.unbind_queue.arguments = arguments;
			break;
		case TPC_CALL_DECLARE_EXCHANGE:
			id = AMQP_EXCHANGE_DECLARE_METHOD;
			m.declare_exchange.exchange = bytes_of_slice(&call->exchange);
			m.declare_exchange.type = bytes_of_slice(&call->type);
			m.declare_exchange.passive = call->passive;
			m.declare_exchange.durable = call->durable;
			m.declare_exchange.auto_delete = call->auto_delete;
			m.declare_exchange.internal = call->internal;
			m.declare_exchange.arguments = arguments;
			break;
		case TPC_CALL_DELETE_EXCHANGE:
			id = AMQP_EXCHANGE_DELETE_METHOD;
			m.delete_exchange.exchange = bytes_of_slice(&call->exchange);
			m.delete_exchange.if_unused = call->if_unused;
			break;
		case TPC_CALL_CONSUME:
			{
				amqp_basic_qos_t qos;

				memset(&qos, 0, sizeof(qos));
				qos.prefetch_count = (uint16) Min(Max(call->prefetch, 0),
												  PG_UINT16_MAX);
				if (!tpc_broker_put_method(b, channel, AMQP_BASIC_QOS_METHOD,
										   &qos))
					return false;
				id = AMQP_BASIC_CONSUME_METHOD;
				m.consume.queue = bytes_of_slice(&call->queue);
				m.consume.consumer_tag = bytes_of_slice(&call->consumer_tag);
				m.consume.no_ack = call->auto_ack;
				m.consume.exclusive = call->exclusive;
				m.consume.arguments = arguments;
				break;
			}
		case TPC_CALL_CANCEL:
			id = AMQP_BASIC_CANCEL_METHOD;
			m.cancel.consumer_tag = bytes_of_slice(&call->consumer_tag);
			break;
		case TPC_CALL_GET:
			id = AMQP_BASIC_GET_METHOD;
			m.get.queue = bytes_of_slice(&call->queue);
			m.get.no_ack = call->auto_ack;
			break;
	}
	return tpc_broker_put_long_method(b, channel, id, &m, room);
}

/*
 * Buffers a message; flush sends it.  Returns false if the connection is
 * lost, or if the properties are too long to be sent (tpc_broker_error() tells
 * which); nothing is sent then.
 */
bool
tpc_channel_publish(TpcBroker *b, uint16 channel, const TpcSlice *exchange,
					const TpcSlice *routing_key, const TpcSlice *properties,
					const TpcSlice *body, bool mandatory)
{
	amqp_basic_publish_t m;
	uint16		class_be = pg_hton16(AMQP_BASIC_CLASS);
	uint64		body_be = pg_hton64((uint64) body->len);
	size_t		size = CONTENT_HEAD + properties->len;
	char	   *p;

	if (b->lost || find(b, channel) == NULL ||
		!fits(exchange) || !fits(routing_key) || properties->len < 2 ||
		size + FRAME_EXTRA > b->frame_max)
		return false;
	memset(&m, 0, sizeof(m));
	m.exchange = bytes_of_slice(exchange);
	m.routing_key = bytes_of_slice(routing_key);
	m.mandatory = mandatory;
	if (!tpc_broker_put_method(b, channel, AMQP_BASIC_PUBLISH_METHOD, &m))
		return false;

	p = tpc_broker_out_reserve(b, size + FRAME_EXTRA);
	memset(p + FRAME_HEAD, 0, CONTENT_HEAD);
	memcpy(p + FRAME_HEAD, &class_be, sizeof(class_be));
	memcpy(p + FRAME_HEAD + 4, &body_be, sizeof(body_be));
	memcpy(p + FRAME_HEAD + CONTENT_HEAD, properties->ptr, properties->len);
	tpc_broker_finish_frame(b, p, AMQP_FRAME_HEADER, channel, size);
	return tpc_broker_put_body(b, channel, body->ptr, body->len);
}

/*
 * Buffers what becomes of a delivery, or of it and all before it on the
 * channel.  Returns false if the connection is lost.
 */
bool
tpc_channel_settle(TpcBroker *b, uint16 channel, uint64 delivery_tag,
				   bool multiple, TpcSettlement how)
{
	TpcChannel *ch = find(b, channel);

	if (b->lost)
		return false;
	if (ch == NULL || ch->closing)
		return true;			/* they are back in their queue already */
	if (how == TPC_SETTLE_ACK)
	{
		amqp_basic_ack_t m;

		m.delivery_tag = delivery_tag;
		m.multiple = multiple;
		return tpc_broker_put_method(b, channel, AMQP_BASIC_ACK_METHOD, &m);
	}
	else
	{
		amqp_basic_nack_t m;

		m.delivery_tag = delivery_tag;
		m.multiple = multiple;
		m.requeue = how == TPC_SETTLE_REQUEUE;
		return tpc_broker_put_method(b, channel, AMQP_BASIC_NACK_METHOD, &m);
	}
}

/*-------------------------------------------------------------------------
 * Frames coming in.
 *-------------------------------------------------------------------------
 */

/* Begins an event of this channel. */
static TpcBrokerEvent *
begin_event(TpcChannel *ch, TpcBrokerEventKind kind)
{
	TpcBrokerEvent *event = &ch->event;

	memset(event, 0, sizeof(*event));
	event->kind = kind;
	event->channel = ch->number;
	event->owner = ch->owner;
	ch->text_len = 0;
	return event;
}

static bool
emit(TpcChannel *ch, TpcBrokerEvent *event)
{
	ch->want = WANT_METHOD;
	*event = ch->event;
	return true;
}

/* The message is complete. */
static bool
emit_message(TpcChannel *ch, TpcBrokerEvent *event)
{
	ch->event.properties.ptr = ch->properties.data;
	ch->event.properties.len = ch->properties.len;
	if (!ch->skip)
	{
		ch->event.body.ptr = ch->body.data;
		ch->event.body.len = ch->body.len;
	}
	return emit(ch, event);
}

static bool
take_header(TpcBroker *b, TpcChannel *ch, const Frame *f,
			TpcBrokerEvent *event)
{
	uint64		size;
	MemoryContext old;

	if (ch->want != WANT_HEADER || f->size < CONTENT_HEAD)
	{
		tpc_broker_lose_protocol(b, "unexpected content header");
		return false;
	}
	memcpy(&size, f->payload + 4, sizeof(size));
	ch->remaining = pg_ntoh64(size);
	ch->skip = ch->remaining > b->max_body;

	/* one large message must not cost its memory for ever */
	old = MemoryContextSwitchTo(b->context);
	if (ch->body.maxlen > KEEP_SIZE)
	{
		pfree(ch->body.data);
		initStringInfo(&ch->body);
	}
	MemoryContextSwitchTo(old);
	resetStringInfo(&ch->body);
	resetStringInfo(&ch->properties);
	appendBinaryStringInfo(&ch->properties, f->payload + CONTENT_HEAD,
						   (int) (f->size - CONTENT_HEAD));
	ch->want = WANT_BODY;
	return ch->remaining == 0 ? emit_message(ch, event) : false;
}

static bool
take_body(TpcBroker *b, TpcChannel *ch, const Frame *f, TpcBrokerEvent *event)
{
	if (ch->want != WANT_BODY || f->size > ch->remaining)
	{
		tpc_broker_lose_protocol(b, "unexpected content body");
		return false;
	}
	if (!ch->skip)
		appendBinaryStringInfo(&ch->body, f->payload, (int) f->size);
	ch->remaining -= f->size;
	return ch->remaining == 0 ? emit_message(ch, event) : false;
}

/* The broker has closed the channel. */
static bool
take_close(TpcBroker *b, TpcChannel *ch, amqp_channel_close_t *m,
		   TpcBrokerEvent *event)
{
	amqp_channel_close_ok_t ok;
	TpcBrokerEvent *e = begin_event(ch, TPC_EVENT_CHANNEL_CLOSED);
	bool		report = !ch->closing;

	e->error.reply_code = m->reply_code;
	tpc_broker_copy_text(e->error.text, sizeof(e->error.text), m->reply_text);
	e->error.sqlstate = tpc_broker_reply_sqlstate(b, m->reply_code,
												  e->error.text);
	strlcpy(e->error.phase, "channel", sizeof(e->error.phase));
	*event = *e;

	memset(&ok, 0, sizeof(ok));
	(void) tpc_broker_put_method(b, ch->number, AMQP_CHANNEL_CLOSE_OK_METHOD,
								 &ok);
	/* if we have closed it at the same time, its close-ok is yet to come */
	if (report)
		forget(b, ch);
	return report;
}

/*
 * A frame of one of these channels; true if it completes an event.  May lose
 * the connection.
 */
bool
tpc_channel_dispatch(TpcBroker *b, const Frame *f, TpcBrokerEvent *event)
{
	TpcChannel *ch = find(b, f->channel);
	uint32		id = tpc_broker_method_id(f);
	void	   *decoded;
	TpcBrokerEvent *e;

	if (ch == NULL)
	{
		tpc_broker_lose_protocol(b, "frame for a channel that is not open");
		return false;
	}
	if (id == AMQP_CHANNEL_CLOSE_OK_METHOD)
	{
		if (ch->closing)
			forget(b, ch);
		else
			tpc_broker_lose_protocol(b, "unexpected channel.close-ok");
		return false;
	}
	if (ch->closing && id != AMQP_CHANNEL_CLOSE_METHOD)
		return false;
	if (f->type == AMQP_FRAME_HEADER)
		return take_header(b, ch, f, event);
	if (f->type == AMQP_FRAME_BODY)
		return take_body(b, ch, f, event);
	if (f->type != AMQP_FRAME_METHOD)
		return false;
	/* A message's frames follow each other, within its channel. */
	if (ch->want != WANT_METHOD && id != AMQP_CHANNEL_CLOSE_METHOD)
	{
		tpc_broker_lose_protocol(b, "unexpected method");
		return false;
	}
	switch (id)
	{
		case AMQP_CHANNEL_CLOSE_METHOD:
		case AMQP_BASIC_DELIVER_METHOD:
		case AMQP_BASIC_GET_OK_METHOD:
		case AMQP_BASIC_RETURN_METHOD:
		case AMQP_BASIC_ACK_METHOD:
		case AMQP_BASIC_NACK_METHOD:
		case AMQP_BASIC_CANCEL_METHOD:
		case AMQP_QUEUE_DECLARE_OK_METHOD:
		case AMQP_QUEUE_DELETE_OK_METHOD:
		case AMQP_QUEUE_PURGE_OK_METHOD:
			decoded = tpc_broker_decode_method(b, f);
			if (decoded == NULL)
				return false;
			break;
		case AMQP_QUEUE_BIND_OK_METHOD:
		case AMQP_QUEUE_UNBIND_OK_METHOD:
		case AMQP_EXCHANGE_DECLARE_OK_METHOD:
		case AMQP_EXCHANGE_DELETE_OK_METHOD:
		case AMQP_BASIC_CONSUME_OK_METHOD:
		case AMQP_BASIC_CANCEL_OK_METHOD:
		case AMQP_BASIC_GET_EMPTY_METHOD:
			decoded = NULL;
			break;
		default:				/* open-ok, qos-ok, select-ok: expected */
			return false;
	}

	switch (id)
	{
		case AMQP_CHANNEL_CLOSE_METHOD:
			return take_close(b, ch, decoded, event);

		case AMQP_BASIC_DELIVER_METHOD:
			{
				amqp_basic_deliver_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_MESSAGE);
				e->consumer_tag = keep(ch, m->consumer_tag);
				e->exchange = keep(ch, m->exchange);
				e->routing_key = keep(ch, m->routing_key);
				e->delivery_tag = m->delivery_tag;
				e->redelivered = m->redelivered;
				ch->want = WANT_HEADER;
				return false;
			}
		case AMQP_BASIC_GET_OK_METHOD:
			{
				amqp_basic_get_ok_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_MESSAGE);
				e->exchange = keep(ch, m->exchange);
				e->routing_key = keep(ch, m->routing_key);
				e->delivery_tag = m->delivery_tag;
				e->redelivered = m->redelivered;
				e->messages = m->message_count;
				ch->want = WANT_HEADER;
				return false;
			}
		case AMQP_BASIC_RETURN_METHOD:
			{
				amqp_basic_return_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_RETURNED);
				e->exchange = keep(ch, m->exchange);
				e->routing_key = keep(ch, m->routing_key);
				e->text = keep(ch, m->reply_text);
				e->reply_code = m->reply_code;
				ch->want = WANT_HEADER;
				return false;
			}
		case AMQP_BASIC_ACK_METHOD:
			{
				amqp_basic_ack_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_CONFIRM);
				e->delivery_tag = m->delivery_tag;
				e->multiple = m->multiple;
				return emit(ch, event);
			}
		case AMQP_BASIC_NACK_METHOD:
			{
				amqp_basic_nack_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_CONFIRM);
				e->delivery_tag = m->delivery_tag;
				e->multiple = m->multiple;
				e->refused = true;
				return emit(ch, event);
			}
		case AMQP_BASIC_CANCEL_METHOD:
			e = begin_event(ch, TPC_EVENT_CANCELLED);
			e->consumer_tag =
				keep(ch, ((amqp_basic_cancel_t *) decoded)->consumer_tag);
			return emit(ch, event);

		case AMQP_QUEUE_DECLARE_OK_METHOD:
			{
				amqp_queue_declare_ok_t *m = decoded;

				e = begin_event(ch, TPC_EVENT_ANSWER);
				e->name = keep(ch, m->queue);
				e->messages = m->message_count;
				e->consumers = m->consumer_count;
				return emit(ch, event);
			}
		case AMQP_QUEUE_DELETE_OK_METHOD:
			e = begin_event(ch, TPC_EVENT_ANSWER);
			e->messages = ((amqp_queue_delete_ok_t *) decoded)->message_count;
			return emit(ch, event);

		case AMQP_QUEUE_PURGE_OK_METHOD:
			e = begin_event(ch, TPC_EVENT_ANSWER);
			e->messages = ((amqp_queue_purge_ok_t *) decoded)->message_count;
			return emit(ch, event);

		default:
			e = begin_event(ch, TPC_EVENT_ANSWER);
			e->empty = id == AMQP_BASIC_GET_EMPTY_METHOD;
			return emit(ch, event);
	}
}
