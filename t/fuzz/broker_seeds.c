/*-------------------------------------------------------------------------
 *
 * broker_seeds.c
 *	  Seeds of broker_fuzz: the samples as frames of deliveries and returns,
 *	  and what else a broker says, on users' channels as well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif

#include "lib/stringinfo.h"
#include "port/pg_bswap.h"

#include "fuzz.h"
#include "samples.h"

static FuzzEmit emit_seed;
static uint64 last_tag;

static amqp_bytes_t
bytes_of(TpcSlice slice)
{
	amqp_bytes_t bytes;

	bytes.len = slice.len;
	bytes.bytes = unconstify(char *, slice.ptr);
	return bytes;
}

static void
put_frame(StringInfo out, uint8 type, uint16 channel, const void *payload,
		  size_t size)
{
	uint16		channel_be = pg_hton16(channel);
	uint32		size_be = pg_hton32((uint32) size);

	appendStringInfoChar(out, (char) type);
	appendBinaryStringInfo(out, (char *) &channel_be, sizeof(channel_be));
	appendBinaryStringInfo(out, (char *) &size_be, sizeof(size_be));
	appendBinaryStringInfo(out, payload, (int) size);
	appendStringInfoChar(out, (char) AMQP_FRAME_END);
}

static void
put_method(StringInfo out, uint16 channel, uint32 id, void *decoded)
{
	char		payload[1024];
	uint32		id_be = pg_hton32(id);
	amqp_bytes_t encoded = {sizeof(payload) - 4, payload + 4};
	int			size = amqp_encode_method(id, decoded, encoded);

	if (size < 0)
		abort();
	memcpy(payload, &id_be, sizeof(id_be));
	put_frame(out, AMQP_FRAME_METHOD, channel, payload, size + 4);
}

/* Content header and body, in frames of no more than 300 bytes. */
static void
put_content(StringInfo out, uint16 channel, const TpcWire *wire)
{
	char		payload[4096];
	uint16		class_be = pg_hton16(AMQP_BASIC_CLASS);
	uint64		size_be = pg_hton64(wire->body.len);
	amqp_bytes_t encoded = {sizeof(payload) - 12, payload + 12};
	amqp_basic_properties_t props;
	amqp_table_entry_t headers[3];
	int			n = 0;
	int			size;

	memset(&props, 0, sizeof(props));
	props._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_HEADERS_FLAG;
	props.delivery_mode = 1;
#define PROPERTY(name, flag) \
	if (wire->name.ptr != NULL) \
	{ \
		props.name = bytes_of(wire->name); \
		props._flags |= flag; \
	}
	PROPERTY(type, AMQP_BASIC_TYPE_FLAG);
	PROPERTY(correlation_id, AMQP_BASIC_CORRELATION_ID_FLAG);
	PROPERTY(reply_to, AMQP_BASIC_REPLY_TO_FLAG);
	PROPERTY(app_id, AMQP_BASIC_APP_ID_FLAG);
	PROPERTY(user_id, AMQP_BASIC_USER_ID_FLAG);
	PROPERTY(expiration, AMQP_BASIC_EXPIRATION_FLAG);
	PROPERTY(content_type, AMQP_BASIC_CONTENT_TYPE_FLAG);
#undef PROPERTY
	headers[n].key = amqp_cstring_bytes("tpc-version");
	headers[n].value.kind = AMQP_FIELD_KIND_I32;
	headers[n++].value.value.i32 = 1;
	headers[n].key = amqp_cstring_bytes("tpc-from");
	headers[n].value.kind = AMQP_FIELD_KIND_UTF8;
	headers[n++].value.value.bytes = bytes_of(wire->from);
	if (wire->floor.ptr != NULL)
	{
		headers[n].key = amqp_cstring_bytes("tpc-floor");
		headers[n].value.kind = AMQP_FIELD_KIND_UTF8;
		headers[n++].value.value.bytes = bytes_of(wire->floor);
	}
	props.headers.num_entries = n;
	props.headers.entries = headers;
	size = amqp_encode_properties(AMQP_BASIC_CLASS, &props, encoded);
	if (size < 0)
		abort();
	memset(payload, 0, 12);
	memcpy(payload, &class_be, sizeof(class_be));
	memcpy(payload + 4, &size_be, sizeof(size_be));
	put_frame(out, AMQP_FRAME_HEADER, channel, payload, size + 12);
	for (size_t at = 0; at < wire->body.len; at += 300)
		put_frame(out, AMQP_FRAME_BODY, channel, wire->body.ptr + at,
				  Min((size_t) 300, wire->body.len - at));
}

static void
begin(StringInfo out, uint8 pieces)
{
	initStringInfo(out);
	appendStringInfoChar(out, (char) pieces);
}

static void
end(StringInfo out, const char *name)
{
	emit_seed(name, (const uint8_t *) out->data, out->len);
	pfree(out->data);
}

static void
delivery(const char *name, const TpcWire *wire)
{
	static const char *const queues[] = {"prepare", "decision", "vote"};
	amqp_basic_deliver_t m;
	StringInfoData out;

	memset(&m, 0, sizeof(m));
	m.delivery_tag = ++last_tag;
	m.consumer_tag = amqp_cstring_bytes(queues[last_tag % lengthof(queues)]);
	m.exchange = amqp_cstring_bytes("tpc_amqp");
	m.routing_key = amqp_cstring_bytes("tpc_amqp.blog.vote");
	begin(&out, last_tag % 4);
	put_method(&out, 1, AMQP_BASIC_DELIVER_METHOD, &m);
	put_content(&out, 1, wire);
	if (last_tag % 5 == 0)		/* two in one */
	{
		put_method(&out, 1, AMQP_BASIC_DELIVER_METHOD, &m);
		put_content(&out, 1, wire);
	}
	end(&out, name);
}

static void
returned(const char *name, const TpcWire *wire)
{
	amqp_basic_return_t m;
	StringInfoData out;

	/* one type will do */
	if (strncmp(name, "prepare", 7) != 0)
		return;
	memset(&m, 0, sizeof(m));
	m.reply_code = 312;
	m.reply_text = amqp_cstring_bytes("NO_ROUTE");
	m.exchange = amqp_cstring_bytes("tpc_amqp");
	m.routing_key = amqp_cstring_bytes("tpc_amqp.nowhere.prepare");
	begin(&out, 0);
	put_method(&out, 1, AMQP_BASIC_RETURN_METHOD, &m);
	put_content(&out, 1, wire);
	end(&out, strcmp(name, "prepare") == 0 ? "returned" : "returned-empty");
}

/*
 * What users' channels (2 and 3 are open) have: a message consumed, one taken,
 * one that came back, confirms, answers, the end of a consumer and of a
 * channel; frames of two channels mixed.
 */
static void
users(const char *name, const TpcWire *wire)
{
	amqp_basic_deliver_t deliver;
	amqp_basic_get_ok_t got;
	amqp_basic_return_t back;
	amqp_basic_ack_t ack;
	amqp_basic_nack_t nack;
	amqp_queue_declare_ok_t declared;
	amqp_queue_purge_ok_t purged;
	amqp_basic_cancel_t cancel;
	amqp_channel_close_t close;
	amqp_channel_close_ok_t close_ok;
	amqp_basic_get_empty_t empty;
	StringInfoData out;

	if (strcmp(name, "prepare") != 0)
		return;
	begin(&out, 1);
	memset(&deliver, 0, sizeof(deliver));
	deliver.delivery_tag = 1;
	deliver.consumer_tag = amqp_cstring_bytes("mine");
	deliver.exchange = amqp_cstring_bytes("amq.topic");
	deliver.routing_key = amqp_cstring_bytes("a.b");
	put_method(&out, 2, AMQP_BASIC_DELIVER_METHOD, &deliver);
	memset(&got, 0, sizeof(got));
	got.delivery_tag = 7;
	got.exchange = amqp_cstring_bytes("");
	got.routing_key = amqp_cstring_bytes("queue");
	got.message_count = 3;
	put_method(&out, 3, AMQP_BASIC_GET_OK_METHOD, &got);
	put_content(&out, 3, wire);
	put_content(&out, 2, wire);
	end(&out, "users-messages");

	begin(&out, 2);
	memset(&back, 0, sizeof(back));
	back.reply_code = 312;
	back.reply_text = amqp_cstring_bytes("NO_ROUTE");
	back.exchange = amqp_cstring_bytes("amq.direct");
	back.routing_key = amqp_cstring_bytes("nowhere");
	put_method(&out, 2, AMQP_BASIC_RETURN_METHOD, &back);
	put_content(&out, 2, wire);
	memset(&ack, 0, sizeof(ack));
	ack.delivery_tag = 1;
	put_method(&out, 2, AMQP_BASIC_ACK_METHOD, &ack);
	memset(&nack, 0, sizeof(nack));
	nack.delivery_tag = 9;
	nack.multiple = 1;
	put_method(&out, 2, AMQP_BASIC_NACK_METHOD, &nack);
	end(&out, "users-confirms");

	begin(&out, 0);
	memset(&declared, 0, sizeof(declared));
	declared.queue = amqp_cstring_bytes("amq.gen-x");
	declared.message_count = 5;
	put_method(&out, 3, AMQP_QUEUE_DECLARE_OK_METHOD, &declared);
	memset(&purged, 0, sizeof(purged));
	put_method(&out, 3, AMQP_QUEUE_PURGE_OK_METHOD, &purged);
	memset(&empty, 0, sizeof(empty));
	put_method(&out, 3, AMQP_BASIC_GET_EMPTY_METHOD, &empty);
	memset(&cancel, 0, sizeof(cancel));
	cancel.consumer_tag = amqp_cstring_bytes("mine");
	put_method(&out, 3, AMQP_BASIC_CANCEL_METHOD, &cancel);
	put_method(&out, 3, AMQP_BASIC_DELIVER_METHOD, &deliver);
	memset(&close_ok, 0, sizeof(close_ok));
	put_method(&out, 3, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
	memset(&close, 0, sizeof(close));
	close.reply_code = 404;
	close.reply_text = amqp_cstring_bytes("NOT_FOUND - no queue");
	put_method(&out, 2, AMQP_CHANNEL_CLOSE_METHOD, &close);
	put_method(&out, 2, AMQP_CHANNEL_CLOSE_METHOD, &close);
	end(&out, "users-answers");
}

void
fuzz_seeds(FuzzEmit emit)
{
	amqp_connection_blocked_t blocked;
	amqp_connection_unblocked_t unblocked;
	amqp_connection_close_t close;
	amqp_channel_close_t channel_close;
	amqp_basic_cancel_t cancel;
	StringInfoData out;

	emit_seed = emit;
	last_tag = 0;
	for_each_sample(delivery);
	for_each_sample(returned);
	for_each_sample(users);

	memset(&blocked, 0, sizeof(blocked));
	blocked.reason = amqp_cstring_bytes("low on memory");
	memset(&unblocked, 0, sizeof(unblocked));
	begin(&out, 2);
	put_method(&out, 0, AMQP_CONNECTION_BLOCKED_METHOD, &blocked);
	put_frame(&out, AMQP_FRAME_HEARTBEAT, 0, "", 0);
	put_method(&out, 0, AMQP_CONNECTION_UNBLOCKED_METHOD, &unblocked);
	end(&out, "blocked");

	memset(&close, 0, sizeof(close));
	close.reply_code = 320;
	close.reply_text = amqp_cstring_bytes("CONNECTION_FORCED");
	begin(&out, 0);
	put_method(&out, 0, AMQP_CONNECTION_CLOSE_METHOD, &close);
	end(&out, "close");

	memset(&channel_close, 0, sizeof(channel_close));
	channel_close.reply_code = 406;
	channel_close.reply_text = amqp_cstring_bytes("PRECONDITION_FAILED");
	begin(&out, 0);
	put_method(&out, 1, AMQP_CHANNEL_CLOSE_METHOD, &channel_close);
	end(&out, "channel-close");

	memset(&cancel, 0, sizeof(cancel));
	cancel.consumer_tag = amqp_cstring_bytes("vote");
	cancel.nowait = 1;
	begin(&out, 0);
	put_method(&out, 1, AMQP_BASIC_CANCEL_METHOD, &cancel);
	end(&out, "cancel");
}
