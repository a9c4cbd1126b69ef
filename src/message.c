/*-------------------------------------------------------------------------
 *
 * message.c
 *	  The messages nodes exchange, as structs, and their wire form.
 *
 * A body is read by what json.c has for that, field by field.
 *
 * What is not known is ignored (a field, an AMQP property), so that a later
 * version may add to a message; what is known has to be right.  A repeated
 * field is refused: two readers could take two meanings from one message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "json.h"
#include "message.h"

/* A body longer than this could not be copied in one chunk. */
#define BODY_MAXLEN 0x3ffffff0

/* The value of property type of several messages in one. */
#define BATCH_TYPE "batch"

static const char *const type_names[] = {
	[TPC_MSG_PREPARE] = "prepare",
	[TPC_MSG_COMMIT] = "commit",
	[TPC_MSG_ROLLBACK] = "rollback",
	[TPC_MSG_UNKNOWN] = "unknown",
	[TPC_MSG_VOTE] = "vote",
	[TPC_MSG_ACK] = "ack",
	[TPC_MSG_INQUIRY] = "inquiry",
	[TPC_MSG_REQUEST] = "request"
};

static const char *const vote_names[] = {
	[TPC_VOTE_YES] = "yes",
	[TPC_VOTE_NO] = "no",
	[TPC_VOTE_READ_ONLY] = "read-only"
};

static const char *const outcome_names[] = {
	[TPC_ACK_COMMITTED] = "committed",
	[TPC_ACK_ROLLED_BACK] = "rolled back",
	[TPC_ACK_LOST] = "lost"
};

/* What a request asks for, by wants_commit. */
static const char *const wish_names[] = {"rollback", "commit"};

/* tpc_message_type_name: the value of property type, a constant string. */
const char *
tpc_message_type_name(TpcMessageType type)
{
	Assert((size_t) type < lengthof(type_names));
	return type_names[type];
}

/* Does only a transaction's coordinator send this type? */
static bool
is_from_coordinator(TpcMessageType type)
{
	switch (type)
	{
		case TPC_MSG_PREPARE:
		case TPC_MSG_COMMIT:
		case TPC_MSG_ROLLBACK:
		case TPC_MSG_UNKNOWN:
			return true;
		case TPC_MSG_VOTE:
		case TPC_MSG_ACK:
		case TPC_MSG_INQUIRY:
		case TPC_MSG_REQUEST:
			break;
	}
	return false;
}

/* Five of 0-9 and A-Z, and not of the class that means success. */
static bool
is_error_sqlstate(const char *sqlstate)
{
	for (int i = 0; i < 5; i++)
	{
		char		c = sqlstate[i];

		if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z')))
			return false;
	}
	return sqlstate[5] == '\0' && strncmp(sqlstate, "00", 2) != 0;
}


/*
 * Encoding
 */

static void
append_json_string(StringInfo out, const char *str, size_t maxlen)
{
	tpc_json_append_string(out, str, strlen(str), maxlen);
}

/* append_text_field: ,"name":"text", or nothing if text is NULL. */
static void
append_text_field(StringInfo out, const char *name, const char *text,
				  size_t maxlen)
{
	if (text == NULL)
		return;
	if (out->data[out->len - 1] != '{')
		appendStringInfoChar(out, ',');
	append_json_string(out, name, TPC_JSON_WORD_SIZE);
	appendStringInfoChar(out, ':');
	append_json_string(out, text, maxlen);
}

static void
append_error(StringInfo out, const TpcRemoteError *error)
{
	appendStringInfoChar(out, '{');
	append_text_field(out, "sqlstate",
					  is_error_sqlstate(error->sqlstate) ?
					  error->sqlstate : "XX000", 5);
	append_text_field(out, "message", error->message,
					  TPC_ERROR_MESSAGE_MAXLEN);
	append_text_field(out, "detail", error->detail, TPC_ERROR_DETAIL_MAXLEN);
	append_text_field(out, "hint", error->hint, TPC_ERROR_HINT_MAXLEN);
	append_text_field(out, "context", error->context,
					  TPC_ERROR_CONTEXT_MAXLEN);
	appendStringInfoChar(out, '}');
}

/* What does not fit any more is left out, as if there were no result. */
static void
append_results(StringInfo body, const TpcMessage *msg)
{
	int			start = body->len;

	appendStringInfoString(body, ",\"results\":[");
	for (int i = 0; i < msg->nresults; i++)
	{
		int			before;

		if (i > 0)
			appendStringInfoChar(body, ',');
		before = body->len;
		if (msg->results[i] != NULL)
			append_json_string(body, msg->results[i], TPC_RESULT_MAXLEN);
		if (msg->results[i] == NULL || body->len - start > TPC_RESULTS_MAXLEN)
		{
			body->len = before;
			appendStringInfoString(body, "null");
		}
	}
	appendStringInfoChar(body, ']');
}

void
tpc_message_begin_calls(StringInfo body)
{
	appendStringInfoString(body, "{\"calls\":[");
}

/*
 * tpc_message_add_call: append one call to a body that was begun.
 *
 * arg is JSON in UTF-8 and copied as it is; the handler's name is not cut:
 * the caller has made sure that it has TPC_HANDLER_MAXLEN bytes at most.
 */
void
tpc_message_add_call(StringInfo body, const char *handler, const char *arg,
					 size_t arg_len)
{
	Assert(handler[0] != '\0' && strlen(handler) <= TPC_HANDLER_MAXLEN);
	Assert(arg_len > 0 && arg_len <= BODY_MAXLEN);

	if (body->data[body->len - 1] != '[')
		appendStringInfoChar(body, ',');
	appendStringInfoString(body, "{\"handler\":");
	append_json_string(body, handler, SIZE_MAX);
	appendStringInfoString(body, ",\"arg\":");
	appendBinaryStringInfo(body, arg, (int) arg_len);
	appendStringInfoChar(body, '}');
}

void
tpc_message_end_calls(StringInfo body, bool must_prepare)
{
	appendStringInfoChar(body, ']');
	if (must_prepare)
		appendStringInfoString(body, ",\"must_prepare\":true");
	appendStringInfoChar(body, '}');
}

/* tpc_message_encode_body: append the JSON that msg->type calls for. */
void
tpc_message_encode_body(const TpcMessage *msg, StringInfo body)
{
	switch (msg->type)
	{
		case TPC_MSG_PREPARE:
			tpc_message_begin_calls(body);
			for (int i = 0; i < msg->ncalls; i++)
				tpc_message_add_call(body, msg->calls[i].handler,
									 msg->calls[i].arg,
									 msg->calls[i].arg_len);
			tpc_message_end_calls(body, msg->must_prepare);
			return;

		case TPC_MSG_VOTE:
			appendStringInfoChar(body, '{');
			append_text_field(body, "vote", vote_names[msg->vote],
							  TPC_JSON_WORD_SIZE);
			if (msg->vote != TPC_VOTE_NO && msg->nresults > 0)
				append_results(body, msg);
			if (msg->vote == TPC_VOTE_NO)
			{
				appendStringInfoString(body, ",\"error\":");
				append_error(body, &msg->error);
			}
			break;

		case TPC_MSG_ACK:
			appendStringInfoChar(body, '{');
			append_text_field(body, "outcome", outcome_names[msg->outcome],
							  TPC_JSON_WORD_SIZE);
			appendStringInfo(body, ",\"forced\":%s",
							 msg->forced ? "true" : "false");
			append_text_field(body, "reason", msg->error.message,
							  TPC_ERROR_MESSAGE_MAXLEN);
			break;

		case TPC_MSG_UNKNOWN:
			appendStringInfoChar(body, '{');
			append_text_field(body, "reason", msg->error.message,
							  TPC_ERROR_MESSAGE_MAXLEN);
			break;

		case TPC_MSG_ROLLBACK:
			appendStringInfoChar(body, '{');
			if (msg->forgotten)
				appendStringInfoString(body, "\"forgotten\":true");
			break;

		case TPC_MSG_REQUEST:
			appendStringInfoChar(body, '{');
			append_text_field(body, "wish", wish_names[msg->wants_commit],
							  TPC_JSON_WORD_SIZE);
			break;

		case TPC_MSG_COMMIT:
		case TPC_MSG_INQUIRY:
			appendStringInfoChar(body, '{');
			break;
	}
	appendStringInfoChar(body, '}');
}

void
tpc_message_begin_batch(StringInfo batch)
{
	appendStringInfoChar(batch, '[');
}

/*
 * tpc_message_add_to_batch: append one message, whose body is given, to a
 * batch that was begun.  Returns where in batch->data the body now lies.
 */
int
tpc_message_add_to_batch(StringInfo batch, const TpcMessage *msg,
						 const char *body, size_t len)
{
	char		gtid[TPC_GTID_TEXT_SIZE];
	int			at;

	Assert(len <= TPC_BATCH_MAX_BYTES);
	if (batch->data[batch->len - 1] != '[')
		appendStringInfoChar(batch, ',');

	/* neither a type nor a gtid has anything to escape */
	tpc_gtid_to_text(&msg->id, gtid);
	appendStringInfoString(batch, "{\"type\":\"");
	appendStringInfoString(batch, tpc_message_type_name(msg->type));
	appendStringInfoString(batch, "\",\"gtid\":\"");
	appendStringInfoString(batch, gtid);
	if (msg->type == TPC_MSG_PREPARE)
		appendStringInfo(batch, "\",\"timeout\":%d,\"body\":",
						 msg->timeout_ms);
	else
		appendStringInfoString(batch, "\",\"body\":");
	at = batch->len;
	appendBinaryStringInfo(batch, body, (int) len);
	appendStringInfoChar(batch, '}');
	return at;
}

/* tpc_message_end_batch: wire is the envelope, but for its body. */
void
tpc_message_end_batch(StringInfo batch, TpcWire *wire)
{
	appendStringInfoChar(batch, ']');
	wire->type = tpc_slice(BATCH_TYPE);
	wire->correlation_id.ptr = NULL;
	wire->correlation_id.len = 0;
}

/*
 * tpc_message_fill_wire: the properties and headers of an outgoing message.
 *
 * The slices point into *msg, *scratch and constants, so both have to outlive
 * *wire.  The body is left empty.  user_id has to be the user of the
 * connection, or absent: the broker closes the channel otherwise.
 */
void
tpc_message_fill_wire(const TpcMessage *msg, TpcWire *wire,
					  TpcWireScratch *scratch)
{
	memset(wire, 0, sizeof(*wire));

	tpc_gtid_to_text(&msg->id, scratch->gtid);
	snprintf(scratch->reply_to, sizeof(scratch->reply_to),
			 "tpc_amqp.%s.vote", msg->from);

	wire->type = tpc_slice(tpc_message_type_name(msg->type));
	wire->correlation_id = tpc_slice(scratch->gtid);
	wire->reply_to = tpc_slice(scratch->reply_to);
	wire->app_id = tpc_slice(TPC_APP_ID);
	wire->content_type = tpc_slice("application/json");
	wire->has_version = true;
	wire->version = TPC_PROTOCOL_VERSION;
	wire->from = tpc_slice(msg->from);
	if (msg->user_id[0] != '\0')
		wire->user_id = tpc_slice(msg->user_id);
	if (msg->has_floor)
	{
		tpc_uuid_to_text(&msg->floor, scratch->floor);
		wire->floor = tpc_slice(scratch->floor);
	}
	if (msg->timeout_ms > 0)
	{
		snprintf(scratch->expiration, sizeof(scratch->expiration), "%d",
				 msg->timeout_ms);
		wire->expiration = tpc_slice(scratch->expiration);
	}
}


/*
 * Decoding the envelope
 */

static bool
slice_equals(TpcSlice slice, const char *str)
{
	size_t		len = strlen(str);

	return slice.ptr != NULL && slice.len == len &&
		memcmp(slice.ptr, str, len) == 0;
}

static bool
decode_type(TpcSlice slice, TpcMessageType *type)
{
	for (size_t i = 0; i < lengthof(type_names); i++)
	{
		if (slice_equals(slice, type_names[i]))
		{
			*type = (TpcMessageType) i;
			return true;
		}
	}
	return false;
}

/* decode_timeout: decimal digits and nothing else, 1 to TPC_TIMEOUT_MAX_MS. */
static bool
decode_timeout(TpcSlice slice, int *timeout_ms)
{
	int64		value = 0;

	if (slice.ptr == NULL)
		return false;
	for (size_t i = 0; i < slice.len; i++)
	{
		if (slice.ptr[i] < '0' || slice.ptr[i] > '9')
			return false;
		value = value * 10 + (slice.ptr[i] - '0');
		if (value > TPC_TIMEOUT_MAX_MS)
			return false;
	}
	*timeout_ms = (int) value;
	return value > 0;
}

/* The version comes before all that another version might change. */
static bool
check_version(const TpcWire *wire, const char **why)
{
	if (!slice_equals(wire->app_id, TPC_APP_ID))
	{
		*why = "property app_id is not \"" TPC_APP_ID "\"";
		return false;
	}
	if (!wire->has_version)
	{
		*why = "header tpc-version is missing";
		return false;
	}
	if (wire->version != TPC_PROTOCOL_VERSION)
	{
		*why = "protocol version is not supported";
		return false;
	}
	return true;
}

/*
 * Whether an answer is wanted in the queues of the transaction itself: those
 * have its uuid in their names, so that no other queue can be named.
 */
static bool
names_own_queue(TpcSlice reply_to, const TpcGtid *gtid)
{
	char		prefix[TPC_UUID_TEXT_SIZE + 8];
	char		uuid[TPC_UUID_TEXT_SIZE];
	size_t		len;

	if (reply_to.ptr == NULL)
		return false;
	tpc_uuid_to_text(gtid, uuid);
	len = snprintf(prefix, sizeof(prefix), "txn_%s_", uuid);
	return reply_to.len > len && memcmp(reply_to.ptr, prefix, len) == 0;
}

/*
 * tpc_message_decode_envelope: properties and headers.
 *
 * Never raises, allocates nothing.
 */
bool
tpc_message_decode_envelope(const TpcWire *wire, TpcMessage *msg,
							const char **why)
{
	memset(msg, 0, sizeof(*msg));

	if (!check_version(wire, why))
		return false;
	if (!decode_type(wire->type, &msg->type))
	{
		*why = "property type is not a known message type";
		return false;
	}
	if (wire->correlation_id.ptr == NULL ||
		!tpc_gtid_from_text(wire->correlation_id.ptr,
							wire->correlation_id.len, &msg->id))
	{
		*why = "property correlation_id is not a global transaction id";
		return false;
	}
	if (wire->from.ptr == NULL ||
		!tpc_node_name_valid(wire->from.ptr, wire->from.len))
	{
		*why = "header tpc-from is not a node name";
		return false;
	}
	memcpy(msg->from, wire->from.ptr, wire->from.len);
	if (is_from_coordinator(msg->type) &&
		strcmp(msg->from, msg->id.coordinator) != 0)
	{
		*why = "sender is not the coordinator of the transaction";
		return false;
	}
	if (wire->user_id.ptr != NULL)
	{
		if (wire->user_id.len > TPC_USER_MAXLEN)
		{
			*why = "property user_id is too long";
			return false;
		}
		if (pg_encoding_verifymbstr(PG_UTF8, wire->user_id.ptr,
									(int) wire->user_id.len) !=
			(int) wire->user_id.len)
		{
			*why = "property user_id is not valid UTF-8";
			return false;
		}
		memcpy(msg->user_id, wire->user_id.ptr, wire->user_id.len);
	}
	msg->own_queues = names_own_queue(wire->reply_to, &msg->id.gtid);
	if (wire->floor.ptr != NULL)
	{
		if (!tpc_uuid_from_text(wire->floor.ptr, wire->floor.len,
								&msg->floor))
		{
			*why = "header tpc-floor is not a transaction's uuid";
			return false;
		}

		/*
		 * A floor is believed, and what is below it counts as done; so it is
		 * taken from nobody but the coordinator it speaks of.
		 */
		msg->has_floor = is_from_coordinator(msg->type);
	}
	if (msg->type == TPC_MSG_PREPARE &&
		!decode_timeout(wire->expiration, &msg->timeout_ms))
	{
		*why = "property expiration is not a valid timeout";
		return false;
	}
	return true;
}


/*
 * Decoding the body
 */

static bool
parse_handler(TpcJsonParser *parser, void *target)
{
	TpcCallItem *call = (TpcCallItem *) target;
	char		name[TPC_HANDLER_MAXLEN + 1];
	bool		clipped;

	if (parser->lex->token_type != JSON_TOKEN_STRING)
		return false;
	if (!tpc_json_read_token(parser, name, sizeof(name), &clipped))
		return false;
	if (clipped || name[0] == '\0')
		return tpc_json_fail(parser, "a handler's name is empty or too long");
	call->handler = pstrdup(name);
	return tpc_json_advance(parser);
}

/* The argument is kept as the sender wrote it. */
static bool
parse_arg(TpcJsonParser *parser, void *target)
{
	TpcCallItem *call = (TpcCallItem *) target;
	const char *start = parser->lex->token_start;

	if (!tpc_json_skip_value(parser))
		return false;
	call->arg_len = parser->lex->prev_token_terminator - start;
	call->arg = palloc(call->arg_len + 1);
	memcpy(call->arg, start, call->arg_len);
	call->arg[call->arg_len] = '\0';
	return true;
}

/*
 * make_room: for one more in an array of n that has *room; returns where it is
 * now.  Both are 0 at first, and the array NULL.
 */
static void *
make_room(void *array, int n, int *room, Size size)
{
	if (n < *room)
		return array;
	*room = *room == 0 ? 8 : *room * 2;
	return array == NULL ? palloc(*room * size) :
		repalloc(array, *room * size);
}

static const TpcJsonField call_fields[] = {
	TPC_JSON_FIELD("handler", true, parse_handler),
	TPC_JSON_FIELD("arg", true, parse_arg)
};

static bool
parse_calls(TpcJsonParser *parser, void *target)
{
	TpcMessage *msg = (TpcMessage *) target;
	int			room = 0;

	if (parser->lex->token_type != JSON_TOKEN_ARRAY_START)
		return false;
	if (!tpc_json_advance(parser))
		return false;
	if (parser->lex->token_type == JSON_TOKEN_ARRAY_END)
		return tpc_json_advance(parser);

	for (;;)
	{
		TpcCallItem *call;

		if (msg->ncalls == TPC_MAX_CALLS)
			return tpc_json_fail(parser, "too many calls in one prepare");
		msg->calls = make_room(msg->calls, msg->ncalls, &room,
							   sizeof(TpcCallItem));
		call = &msg->calls[msg->ncalls++];
		memset(call, 0, sizeof(*call));
		if (!tpc_json_parse_object(parser, call_fields, lengthof(call_fields),
								   call))
			return false;
		if (parser->lex->token_type != JSON_TOKEN_COMMA)
			break;
		if (!tpc_json_advance(parser))
			return false;
	}
	return tpc_json_expect(parser, JSON_TOKEN_ARRAY_END);
}

/* A code that is none becomes "", which the caller replaces. */
static bool
parse_sqlstate(TpcJsonParser *parser, void *target)
{
	TpcRemoteError *error = (TpcRemoteError *) target;
	bool		clipped;

	if (parser->lex->token_type != JSON_TOKEN_STRING)
		return false;
	if (!tpc_json_read_token(parser, error->sqlstate, sizeof(error->sqlstate),
							 &clipped))
		return false;
	if (clipped || !is_error_sqlstate(error->sqlstate))
		error->sqlstate[0] = '\0';
	return tpc_json_advance(parser);
}

static bool
parse_error_message(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_text(parser, TPC_ERROR_MESSAGE_MAXLEN,
							   &((TpcRemoteError *) target)->message);
}

static bool
parse_error_detail(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_text(parser, TPC_ERROR_DETAIL_MAXLEN,
							   &((TpcRemoteError *) target)->detail);
}

static bool
parse_error_hint(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_text(parser, TPC_ERROR_HINT_MAXLEN,
							   &((TpcRemoteError *) target)->hint);
}

static bool
parse_error_context(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_text(parser, TPC_ERROR_CONTEXT_MAXLEN,
							   &((TpcRemoteError *) target)->context);
}

static const TpcJsonField error_fields[] = {
	TPC_JSON_FIELD("sqlstate", false, parse_sqlstate),
	TPC_JSON_FIELD("message", false, parse_error_message),
	TPC_JSON_FIELD("detail", false, parse_error_detail),
	TPC_JSON_FIELD("hint", false, parse_error_hint),
	TPC_JSON_FIELD("context", false, parse_error_context)
};

static bool
parse_error(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_object(parser, error_fields, lengthof(error_fields),
								 &((TpcMessage *) target)->error);
}

static bool
parse_vote(TpcJsonParser *parser, void *target)
{
	int			index;

	if (!tpc_json_parse_word(parser, vote_names, lengthof(vote_names), &index))
		return false;
	((TpcMessage *) target)->vote = (TpcVote) index;
	return true;
}

static bool
parse_results(TpcJsonParser *parser, void *target)
{
	TpcMessage *msg = (TpcMessage *) target;
	int			room = 0;

	if (parser->lex->token_type != JSON_TOKEN_ARRAY_START)
		return false;
	if (!tpc_json_advance(parser))
		return false;
	if (parser->lex->token_type == JSON_TOKEN_ARRAY_END)
		return tpc_json_advance(parser);

	for (;;)
	{
		if (msg->nresults == TPC_MAX_CALLS)
			return tpc_json_fail(parser, "too many results in one vote");
		msg->results = make_room(msg->results, msg->nresults, &room,
								 sizeof(char *));
		msg->results[msg->nresults++] = NULL;
		if (parser->lex->token_type == JSON_TOKEN_NULL)
		{
			if (!tpc_json_advance(parser))
				return false;
		}
		else if (!tpc_json_parse_text(parser, TPC_RESULT_MAXLEN,
									  &msg->results[msg->nresults - 1]))
			return false;
		if (parser->lex->token_type != JSON_TOKEN_COMMA)
			break;
		if (!tpc_json_advance(parser))
			return false;
	}
	return tpc_json_expect(parser, JSON_TOKEN_ARRAY_END);
}

static bool
parse_outcome(TpcJsonParser *parser, void *target)
{
	int			index;

	if (!tpc_json_parse_word(parser, outcome_names, lengthof(outcome_names),
							 &index))
		return false;
	((TpcMessage *) target)->outcome = (TpcAckOutcome) index;
	return true;
}

static bool
parse_bool(TpcJsonParser *parser, bool *value)
{
	JsonTokenType token = parser->lex->token_type;

	if (token != JSON_TOKEN_TRUE && token != JSON_TOKEN_FALSE)
		return false;
	*value = (token == JSON_TOKEN_TRUE);
	return tpc_json_advance(parser);
}

static bool
parse_forced(TpcJsonParser *parser, void *target)
{
	return parse_bool(parser, &((TpcMessage *) target)->forced);
}

static bool
parse_forgotten(TpcJsonParser *parser, void *target)
{
	return parse_bool(parser, &((TpcMessage *) target)->forgotten);
}

static bool
parse_must_prepare(TpcJsonParser *parser, void *target)
{
	return parse_bool(parser, &((TpcMessage *) target)->must_prepare);
}

static bool
parse_wish(TpcJsonParser *parser, void *target)
{
	int			index;

	if (!tpc_json_parse_word(parser, wish_names, lengthof(wish_names), &index))
		return false;
	((TpcMessage *) target)->wants_commit = index == 1;
	return true;
}

static bool
parse_reason(TpcJsonParser *parser, void *target)
{
	return tpc_json_parse_text(parser, TPC_ERROR_MESSAGE_MAXLEN,
							   &((TpcMessage *) target)->error.message);
}

static const TpcJsonField prepare_fields[] = {
	TPC_JSON_FIELD("calls", true, parse_calls),
	TPC_JSON_FIELD("must_prepare", false, parse_must_prepare)
};

static const TpcJsonField vote_fields[] = {
	TPC_JSON_FIELD("vote", true, parse_vote),
	TPC_JSON_FIELD("results", false, parse_results),
	TPC_JSON_FIELD("error", false, parse_error)
};

static const TpcJsonField ack_fields[] = {
	TPC_JSON_FIELD("outcome", true, parse_outcome),
	TPC_JSON_FIELD("forced", false, parse_forced),
	TPC_JSON_FIELD("reason", false, parse_reason)
};

static const TpcJsonField rollback_fields[] = {
	TPC_JSON_FIELD("forgotten", false, parse_forgotten)
};

static const TpcJsonField request_fields[] = {
	TPC_JSON_FIELD("wish", true, parse_wish)
};

static const TpcJsonField unknown_fields[] = {
	TPC_JSON_FIELD("reason", false, parse_reason)
};

static bool
parse_body(TpcJsonParser *parser, TpcMessage *msg)
{
	const TpcJsonField *fields = NULL;
	int			nfields = 0;

	switch (msg->type)
	{
		case TPC_MSG_PREPARE:
			fields = prepare_fields;
			nfields = lengthof(prepare_fields);
			break;
		case TPC_MSG_VOTE:
			fields = vote_fields;
			nfields = lengthof(vote_fields);
			break;
		case TPC_MSG_ACK:
			fields = ack_fields;
			nfields = lengthof(ack_fields);
			break;
		case TPC_MSG_UNKNOWN:
			fields = unknown_fields;
			nfields = lengthof(unknown_fields);
			break;
		case TPC_MSG_ROLLBACK:
			fields = rollback_fields;
			nfields = lengthof(rollback_fields);
			break;
		case TPC_MSG_REQUEST:
			fields = request_fields;
			nfields = lengthof(request_fields);
			break;
		case TPC_MSG_COMMIT:
		case TPC_MSG_INQUIRY:
			break;
	}

	if (!tpc_json_advance(parser))	/* to the first token */
		return false;
	if (!tpc_json_parse_object(parser, fields, nfields, msg))
		return tpc_json_fail(parser, "body is not a JSON object");
	if (parser->lex->token_type != JSON_TOKEN_END)
		return tpc_json_fail(parser, "body is not valid JSON");
	return true;
}

static void
free_error(TpcRemoteError *error)
{
	if (error->message)
		pfree(error->message);
	if (error->detail)
		pfree(error->detail);
	if (error->hint)
		pfree(error->hint);
	if (error->context)
		pfree(error->context);
	memset(error, 0, sizeof(*error));
}

/* tpc_message_decode_body: an empty body counts as {}. */
bool
tpc_message_decode_body(const char *body, size_t len, TpcMessage *msg,
						const char **why)
{
	TpcJsonParser parser = {0};
	bool		ok;

	msg->ncalls = 0;
	msg->calls = NULL;
	msg->vote = TPC_VOTE_NO;
	msg->nresults = 0;
	msg->results = NULL;
	memset(&msg->error, 0, sizeof(msg->error));
	msg->outcome = TPC_ACK_LOST;
	msg->forced = false;
	msg->forgotten = false;
	msg->must_prepare = false;
	msg->wants_commit = false;

	if (len == 0)
	{
		body = "{}";
		len = 2;
	}
	if (len > BODY_MAXLEN)
	{
		*why = "body is too long";
		return false;
	}
	if (pg_encoding_verifymbstr(PG_UTF8, body, (int) len) != (int) len)
	{
		*why = "body is not valid UTF-8";
		return false;
	}

	parser.lex = tpc_json_lexer_make(body, len);
	ok = parse_body(&parser, msg);
	tpc_json_lexer_free(parser.lex);

	if (!ok)
	{
		tpc_message_free_body(msg);
		*why = parser.why;
		return false;
	}
	if (msg->type == TPC_MSG_VOTE)
	{
		if (msg->vote != TPC_VOTE_NO)
			free_error(&msg->error);
		else if (msg->error.sqlstate[0] == '\0')
			strcpy(msg->error.sqlstate, "XX000");
	}
	return true;
}

/* tpc_message_free_body: free what decode_body allocated; may be repeated. */
void
tpc_message_free_body(TpcMessage *msg)
{
	for (int i = 0; i < msg->ncalls; i++)
	{
		if (msg->calls[i].handler)
			pfree(msg->calls[i].handler);
		if (msg->calls[i].arg)
			pfree(msg->calls[i].arg);
	}
	if (msg->calls)
		pfree(msg->calls);
	msg->ncalls = 0;
	msg->calls = NULL;
	for (int i = 0; i < msg->nresults; i++)
	{
		if (msg->results[i])
			pfree(msg->results[i]);
	}
	if (msg->results)
		pfree(msg->results);
	msg->nresults = 0;
	msg->results = NULL;
	free_error(&msg->error);
}


/*
 * Batches
 */

/* tpc_message_is_batch: is it to be taken apart?  It may be a bad one. */
bool
tpc_message_is_batch(const TpcWire *wire)
{
	return slice_equals(wire->type, BATCH_TYPE);
}

/* A string that is too long to mean anything becomes "". */
static bool
parse_short(TpcJsonParser *parser, char *out, size_t size)
{
	bool		clipped;

	if (parser->lex->token_type != JSON_TOKEN_STRING ||
		!tpc_json_read_token(parser, out, size, &clipped))
		return false;
	if (clipped)
		out[0] = '\0';
	return tpc_json_advance(parser);
}

static bool
parse_item_type(TpcJsonParser *parser, void *target)
{
	TpcBatchItem *item = (TpcBatchItem *) target;

	return parse_short(parser, item->type, sizeof(item->type));
}

static bool
parse_item_gtid(TpcJsonParser *parser, void *target)
{
	TpcBatchItem *item = (TpcBatchItem *) target;

	return parse_short(parser, item->gtid, sizeof(item->gtid));
}

/* The digits are looked at where those of property expiration are. */
static bool
parse_item_timeout(TpcJsonParser *parser, void *target)
{
	const JsonLexContext *lex = parser->lex;
	TpcWire    *wire = &((TpcBatchItem *) target)->wire;

	if (lex->token_type != JSON_TOKEN_NUMBER)
		return false;
	wire->expiration.ptr = lex->token_start;
	wire->expiration.len = lex->token_terminator - lex->token_start;
	return tpc_json_advance(parser);
}

/*
 * parse_item_body: an object, whatever is in it.
 *
 * Only its end is looked for, by counting brackets: whether they match, and
 * all the rest, is found out when it is decoded, so that a body that is
 * wrong or nested too deeply spoils one message and not those beside it.
 */
static bool
parse_item_body(TpcJsonParser *parser, void *target)
{
	const JsonLexContext *lex = parser->lex;
	TpcSlice   *body = &((TpcBatchItem *) target)->wire.body;
	size_t		depth = 0;

	if (lex->token_type != JSON_TOKEN_OBJECT_START)
		return false;
	body->ptr = lex->token_start;
	do
	{
		switch (lex->token_type)
		{
			case JSON_TOKEN_OBJECT_START:
			case JSON_TOKEN_ARRAY_START:
				depth++;
				break;
			case JSON_TOKEN_OBJECT_END:
			case JSON_TOKEN_ARRAY_END:
				depth--;
				break;
			case JSON_TOKEN_END:
				return false;
			default:
				break;
		}
		if (!tpc_json_advance(parser))
			return false;
	} while (depth > 0);
	body->len = lex->prev_token_terminator - body->ptr;
	return true;
}

static const TpcJsonField item_fields[] = {
	TPC_JSON_FIELD("type", true, parse_item_type),
	TPC_JSON_FIELD("gtid", true, parse_item_gtid),
	TPC_JSON_FIELD("timeout", false, parse_item_timeout),
	TPC_JSON_FIELD("body", false, parse_item_body)
};

static bool
parse_batch(TpcJsonParser *parser, const TpcWire *wire, TpcBatch *batch)
{
	int			room = 0;

	if (!tpc_json_advance(parser))	/* to the first token */
		return false;
	if (parser->lex->token_type != JSON_TOKEN_ARRAY_START)
		return tpc_json_fail(parser, "body is not a JSON array");
	if (!tpc_json_advance(parser))
		return false;
	if (parser->lex->token_type == JSON_TOKEN_ARRAY_END)
		return tpc_json_fail(parser, "a batch is empty");
	for (;;)
	{
		TpcBatchItem *item;

		if (batch->nitems == TPC_BATCH_MAX_ITEMS)
			return tpc_json_fail(parser, "too many messages in one batch");
		batch->items = make_room(batch->items, batch->nitems, &room,
								 sizeof(TpcBatchItem));
		item = &batch->items[batch->nitems++];
		memset(item, 0, sizeof(*item));
		item->wire = *wire;
		item->wire.expiration.ptr = NULL;
		item->wire.body.ptr = NULL;
		item->wire.body.len = 0;
		if (!tpc_json_parse_object(parser, item_fields, lengthof(item_fields),
								   item))
			return tpc_json_fail(parser,
								 "a message of a batch is not a JSON object");
		if (parser->lex->token_type != JSON_TOKEN_COMMA)
			break;
		if (!tpc_json_advance(parser))
			return false;
	}
	if (!tpc_json_expect(parser, JSON_TOKEN_ARRAY_END))
		return false;
	if (parser->lex->token_type != JSON_TOKEN_END)
		return tpc_json_fail(parser, "body is not valid JSON");
	return true;
}

/*
 * tpc_message_decode_batch: what is in it, palloc'd, for
 * tpc_message_free_batch(); nothing if it returns false.  The items point
 * into what *wire points to.
 */
bool
tpc_message_decode_batch(const TpcWire *wire, TpcBatch *batch,
						 const char **why)
{
	TpcJsonParser parser = {0};
	TpcSlice	body = wire->body;
	bool		ok;

	batch->nitems = 0;
	batch->items = NULL;
	if (!check_version(wire, why))
		return false;
	if (body.len > TPC_BATCH_MAX_BYTES)
	{
		*why = "body is too long";
		return false;
	}
	if (body.len == 0 ||
		pg_encoding_verifymbstr(PG_UTF8, body.ptr, (int) body.len) !=
		(int) body.len)
	{
		*why = body.len == 0 ? "body is empty" : "body is not valid UTF-8";
		return false;
	}

	parser.lex = tpc_json_lexer_make(body.ptr, body.len);
	ok = parse_batch(&parser, wire, batch);
	tpc_json_lexer_free(parser.lex);
	if (!ok)
	{
		tpc_message_free_batch(batch);
		*why = parser.why;
		return false;
	}

	/* now that the items stay where they are */
	for (int i = 0; i < batch->nitems; i++)
	{
		TpcBatchItem *item = &batch->items[i];

		item->wire.type = tpc_slice(item->type);
		item->wire.correlation_id = tpc_slice(item->gtid);
	}
	return true;
}

/* tpc_message_free_batch: free what decode_batch allocated; may be repeated. */
void
tpc_message_free_batch(TpcBatch *batch)
{
	if (batch->items)
		pfree(batch->items);
	batch->nitems = 0;
	batch->items = NULL;
}
