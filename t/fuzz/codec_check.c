/*-------------------------------------------------------------------------
 *
 * codec_check.c
 *	  What has to hold for whatever the broker layer hands over.
 *
 * What decodes is encoded and decoded again, and has to be the same then: two
 * nodes that pass a message on must not take two meanings from it.  Anything
 * else that is wrong is for the sanitizers to see, so bytes are handed over in
 * chunks of exactly their size, and everything is freed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "codec_check.h"
#include "exact.h"

/* Seen by whoever debugs what a fuzzer has found. */
#define REQUIRE(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not so: %s\n", \
					__FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

static bool
same_text(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return strcmp(a, b) == 0;
}

/* A text that came out of a message: UTF-8, and no longer than is promised. */
static void
check_text(const char *text, size_t maxlen)
{
	size_t		len;

	if (text == NULL)
		return;
	len = strlen(text);
	REQUIRE(len <= maxlen);
	REQUIRE(pg_encoding_verifymbstr(PG_UTF8, text, (int) len) == (int) len);
}

static void
check_message(const TpcMessage *msg)
{
	REQUIRE((msg->calls == NULL) == (msg->ncalls == 0));
	REQUIRE((msg->results == NULL) == (msg->nresults == 0));
	REQUIRE(msg->ncalls <= TPC_MAX_CALLS && msg->nresults <= TPC_MAX_CALLS);
	for (int i = 0; i < msg->ncalls; i++)
	{
		check_text(msg->calls[i].handler, TPC_HANDLER_MAXLEN);
		REQUIRE(msg->calls[i].handler[0] != '\0');
		REQUIRE(msg->calls[i].arg_len > 0);
		REQUIRE(strlen(msg->calls[i].arg) == msg->calls[i].arg_len);
		check_text(msg->calls[i].arg, msg->calls[i].arg_len);
	}
	for (int i = 0; i < msg->nresults; i++)
		check_text(msg->results[i], TPC_RESULT_MAXLEN);
	REQUIRE(msg->error.sqlstate[0] == '\0' ||
			strlen(msg->error.sqlstate) == 5);
	check_text(msg->error.message, TPC_ERROR_MESSAGE_MAXLEN);
	check_text(msg->error.detail, TPC_ERROR_DETAIL_MAXLEN);
	check_text(msg->error.hint, TPC_ERROR_HINT_MAXLEN);
	check_text(msg->error.context, TPC_ERROR_CONTEXT_MAXLEN);
	/* what a type does not have, no body of that type may set */
	REQUIRE(msg->type == TPC_MSG_PREPARE ||
			(msg->ncalls == 0 && !msg->must_prepare));
	REQUIRE(msg->type == TPC_MSG_VOTE || msg->nresults == 0);
	REQUIRE(msg->type == TPC_MSG_ROLLBACK || !msg->forgotten);
	REQUIRE(msg->type == TPC_MSG_REQUEST || !msg->wants_commit);
}

/*
 * The bodies are those of one message.  Results may have been left out for
 * their length.
 */
static void
check_same_body(const TpcMessage *a, const TpcMessage *b)
{
	REQUIRE(a->ncalls == b->ncalls);
	for (int i = 0; i < a->ncalls; i++)
		REQUIRE(same_text(a->calls[i].handler, b->calls[i].handler) &&
				same_text(a->calls[i].arg, b->calls[i].arg));
	REQUIRE(a->must_prepare == b->must_prepare);
	REQUIRE(a->vote == b->vote);
	if (a->type == TPC_MSG_VOTE && a->vote != TPC_VOTE_NO)
	{
		REQUIRE(a->nresults == b->nresults);
		for (int i = 0; i < a->nresults; i++)
			REQUIRE(b->results[i] == NULL ||
					same_text(a->results[i], b->results[i]));
	}
	REQUIRE(strcmp(a->error.sqlstate, b->error.sqlstate) == 0);
	REQUIRE(same_text(a->error.message, b->error.message));
	REQUIRE(same_text(a->error.detail, b->error.detail));
	REQUIRE(same_text(a->error.hint, b->error.hint));
	REQUIRE(same_text(a->error.context, b->error.context));
	REQUIRE(a->forgotten == b->forgotten);
	REQUIRE(a->outcome == b->outcome && a->forced == b->forced);
	REQUIRE(a->wants_commit == b->wants_commit);
}

/* Decode a body; if it is one, encode it, and so on twice. */
static bool
round_trip(TpcMessage *msg, TpcSlice body)
{
	TpcSlice	copy = exact_slice(body);
	const char *why = NULL;
	TpcMessage	again = *msg;
	StringInfoData first;
	StringInfoData second;

	if (!tpc_message_decode_body(copy.ptr, copy.len, msg, &why))
	{
		REQUIRE(why != NULL);
		REQUIRE(msg->calls == NULL && msg->results == NULL &&
				msg->error.message == NULL);
		exact_free(copy);
		return false;
	}
	exact_free(copy);
	check_message(msg);

	initStringInfo(&first);
	initStringInfo(&second);
	tpc_message_encode_body(msg, &first);
	REQUIRE(tpc_message_decode_body(first.data, first.len, &again, &why));
	check_message(&again);
	check_same_body(msg, &again);
	tpc_message_encode_body(&again, &second);
	REQUIRE(first.len == second.len &&
			memcmp(first.data, second.data, first.len) == 0);
	tpc_message_free_body(&again);
	pfree(first.data);
	pfree(second.data);
	return true;
}

/* codec_check_body: a body, whatever its envelope may have been. */
void
codec_check_body(TpcMessageType type, TpcSlice body)
{
	TpcMessage	msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = type;
	(void) round_trip(&msg, body);
	tpc_message_free_body(&msg);
}

/* The envelope of what was decoded says the same when it is decoded again. */
static void
check_envelope(const TpcMessage *msg)
{
	TpcWire		wire;
	TpcWireScratch scratch;
	TpcMessage	again;
	const char *why;

	tpc_message_fill_wire(msg, &wire, &scratch);
	REQUIRE(tpc_message_decode_envelope(&wire, &again, &why));
	REQUIRE(again.type == msg->type);
	REQUIRE(memcmp(&again.id, &msg->id, sizeof(msg->id)) == 0);
	REQUIRE(strcmp(again.from, msg->from) == 0);
	REQUIRE(strcmp(again.user_id, msg->user_id) == 0);
	REQUIRE(again.has_floor == msg->has_floor);
	REQUIRE(!msg->has_floor ||
			tpc_gtid_compare(&again.floor, &msg->floor) == 0);
	REQUIRE(again.timeout_ms == msg->timeout_ms);
}

/* One that came alone or in a batch; its body goes on to *batch if it fits. */
static void
check_one(const TpcWire *wire, StringInfo batch, int *nbatch)
{
	TpcMessage	msg;
	const char *why = NULL;

	if (!tpc_message_decode_envelope(wire, &msg, &why))
	{
		REQUIRE(why != NULL);
		return;
	}
	REQUIRE(tpc_node_name_valid(msg.from, strlen(msg.from)));
	REQUIRE(strlen(msg.user_id) <= TPC_USER_MAXLEN);
	check_envelope(&msg);
	if (round_trip(&msg, wire->body) && batch != NULL)
	{
		StringInfoData body;

		initStringInfo(&body);
		tpc_message_encode_body(&msg, &body);
		if (*nbatch < TPC_BATCH_MAX_ITEMS &&
			batch->len + body.len + TPC_BATCH_ITEM_OVERHEAD <=
			TPC_BATCH_MAX_BYTES)
		{
			int			before = batch->len;

			(void) tpc_message_add_to_batch(batch, &msg, body.data, body.len);
			REQUIRE(batch->len - before - body.len <=
					TPC_BATCH_ITEM_OVERHEAD);
			(*nbatch)++;
		}
		pfree(body.data);
	}
	tpc_message_free_body(&msg);
}

/* Take a batch apart, and make one again of what is good in it. */
static void
check_batch(const TpcWire *wire)
{
	TpcBatch	batch;
	TpcBatch	again;
	TpcWire		rewired = *wire;
	const char *why = NULL;
	StringInfoData made;
	int			n = 0;

	if (!tpc_message_decode_batch(wire, &batch, &why))
	{
		REQUIRE(why != NULL && batch.items == NULL);
		return;
	}
	REQUIRE(batch.nitems >= 1 && batch.nitems <= TPC_BATCH_MAX_ITEMS);
	initStringInfo(&made);
	tpc_message_begin_batch(&made);
	for (int i = 0; i < batch.nitems; i++)
		check_one(&batch.items[i].wire, &made, &n);
	tpc_message_free_batch(&batch);

	if (n > 0)
	{
		tpc_message_end_batch(&made, &rewired);
		rewired.body.ptr = made.data;
		rewired.body.len = made.len;
		REQUIRE(tpc_message_is_batch(&rewired));
		REQUIRE(tpc_message_decode_batch(&rewired, &again, &why));
		REQUIRE(again.nitems == n);
		for (int i = 0; i < again.nitems; i++)
		{
			TpcMessage	msg;

			REQUIRE(tpc_message_decode_envelope(&again.items[i].wire, &msg,
												&why));
			REQUIRE(tpc_message_decode_body(again.items[i].wire.body.ptr,
											again.items[i].wire.body.len,
											&msg, &why));
			tpc_message_free_body(&msg);
		}
		tpc_message_free_batch(&again);
	}
	pfree(made.data);
}

/* codec_check: a message as it came, properties and all. */
void
codec_check(const TpcWire *wire)
{
	TpcWire		copy = exact_wire(wire);

	if (tpc_message_is_batch(&copy))
		check_batch(&copy);
	else
		check_one(&copy, NULL, NULL);

	exact_wire_free(&copy);
}
