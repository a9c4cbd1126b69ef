/*-------------------------------------------------------------------------
 *
 * message_test.c
 *	  Global ids and messages: round trips, and input that means harm.
 *
 * Every input is handed over in a chunk of exactly its size, so that an
 * address sanitizer sees the first byte read beyond it; and everything
 * decoded is freed, so that a leak checker sees what an error path forgot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "exact.h"
#include "json.h"
#include "gtid.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "tap.h"

#define UUID "01890a5d-ac96-8774-8cce-e2b87e0fa0c1"
#define GTID "blog/" UUID

/* format: into one of a few buffers, used in turn. */
static char *
format(const char *fmt,...)
{
	static char buffers[8][512];
	static int	next = 0;
	char	   *buffer = buffers[next++ % lengthof(buffers)];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(buffer, sizeof(buffers[0]), fmt, args);
	va_end(args);
	return buffer;
}

static TpcSlice
slice(const char *str)
{
	TpcSlice	result = {str, str == NULL ? 0 : strlen(str)};

	return result;
}

/* The envelope of a valid message of this type. */
static TpcWire
make_wire(const char *type)
{
	TpcWire		wire;

	memset(&wire, 0, sizeof(wire));
	wire.type = slice(type);
	wire.correlation_id = slice(GTID);
	wire.app_id = slice(TPC_APP_ID);
	wire.has_version = true;
	wire.version = TPC_PROTOCOL_VERSION;
	wire.from = slice("blog");
	wire.expiration = slice("10000");
	return wire;
}

/* decode_envelope, from chunks of exact size. */
static bool
decode_envelope(const TpcWire *wire, TpcMessage *msg, const char **why)
{
	TpcWire		copy = exact_wire(wire);
	bool		result;

	*why = NULL;
	result = tpc_message_decode_envelope(&copy, msg, why);
	tap_note = *why;
	exact_wire_free(&copy);
	return result;
}

/* decode_body, from a chunk of exact size. */
static bool
decode_len(TpcMessageType type, const char *body, size_t len,
		   TpcMessage *msg, const char **why)
{
	TpcSlice	given = {body, len};
	TpcSlice	chunk = exact_slice(given);
	bool		result;

	memset(msg, 0, sizeof(*msg));
	msg->type = type;
	*why = NULL;
	result = tpc_message_decode_body(chunk.ptr, chunk.len, msg, why);
	tap_note = *why;
	exact_free(chunk);
	return result;
}

/* A body that must be accepted, with the result freed. */
static void
accepts(TpcMessageType type, const char *body, const char *name)
{
	TpcMessage	msg;
	const char *why;

	ok(decode_len(type, body, strlen(body), &msg, &why), name);
	tpc_message_free_body(&msg);
}

/* A body that must be rejected, for this reason if one is given. */
static void
rejects_len(TpcMessageType type, const char *body, size_t len,
			const char *reason, const char *name)
{
	TpcMessage	msg;
	const char *why;
	bool		result = decode_len(type, body, len, &msg, &why);

	if (result)
		tap_note = "accepted";
	ok(!result && why != NULL && msg.calls == NULL && msg.ncalls == 0 &&
	   msg.error.message == NULL &&
	   (reason == NULL || strcmp(why, reason) == 0),
	   name);
	if (result)
		tpc_message_free_body(&msg);
}

static void
rejects(TpcMessageType type, const char *body, const char *reason,
		const char *name)
{
	rejects_len(type, body, strlen(body), reason, name);
}

/* An envelope that must be rejected, for this reason. */
static void
rejects_wire(const TpcWire *wire, const char *reason, const char *name)
{
	TpcMessage	msg;
	const char *why;
	bool		result = decode_envelope(wire, &msg, &why);

	if (result)
		tap_note = "accepted";
	ok(!result && why != NULL && strcmp(why, reason) == 0, name);
}

static bool
same_text(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return strcmp(a, b) == 0;
}


/*
 * Global ids
 */

static void
test_gtid(void)
{
	TpcGlobalId id;
	TpcGlobalId back;
	TpcGtid		gtid;
	unsigned char bytes[16];
	char		text[TPC_GTID_TEXT_SIZE];
	char		longest[TPC_GTID_TEXT_SIZE + 8];
	bool		passed;
	static const uint64 incarnations[] = {
		0, 1, 0xFFF, 0x1000, UINT64CONST(0x123456789ABCDEF),
		(UINT64CONST(1) << TPC_INCARNATION_BITS) - 1
	};
	static const uint64 sequences[] = {
		0, 1, UINT64CONST(0x123456789ABCDEF),
		(UINT64CONST(1) << TPC_SEQUENCE_BITS) - 1
	};
	TpcGtid		previous = {0, 0};
	unsigned char previous_bytes[16];
	bool		first = true;

	passed = true;
	for (size_t i = 0; i < lengthof(incarnations); i++)
		for (size_t j = 0; j < lengthof(sequences); j++)
		{
			memset(&id, 0, sizeof(id));
			strcpy(id.coordinator, "blog");
			id.gtid.incarnation = incarnations[i];
			id.gtid.sequence = sequences[j];
			tpc_gtid_to_text(&id, text);
			passed &= tpc_gtid_from_text(text, strlen(text), &back) &&
				memcmp(&id, &back, sizeof(id)) == 0;
			tpc_gtid_to_bytes(&id.gtid, bytes);
			passed &= tpc_gtid_from_bytes(bytes, &gtid) &&
				tpc_gtid_compare(&gtid, &id.gtid) == 0;
			if (!first)
				passed &= tpc_gtid_compare(&previous, &id.gtid) < 0 &&
					tpc_gtid_compare(&id.gtid, &previous) > 0 &&
					memcmp(previous_bytes, bytes, 16) < 0;
			first = false;
			previous = id.gtid;
			memcpy(previous_bytes, bytes, 16);
		}
	ok(passed, "gtid: round trip, and bytes sort as the numbers do");

	gtid.incarnation = UINT64CONST(0x123456789ABCDEF);
	gtid.sequence = UINT64CONST(0x0FEDCBA987654321);
	tpc_uuid_to_text(&gtid, text);
	ok(strcmp(text, "12345678-9abc-8def-8fed-cba987654321") == 0,
	   "gtid: the layout doc/protocol.md shows");

	passed = true;
	for (size_t len = 0; len < strlen(GTID); len++)
	{
		TpcSlice	cut = {GTID, len};

		cut = exact_slice(cut);
		passed &= !tpc_gtid_from_text(cut.ptr, cut.len, &back);
		exact_free(cut);
	}
	ok(passed, "gtid: every truncation is rejected");
	ok(!tpc_gtid_from_text(GTID "0", strlen(GTID) + 1, &back),
	   "gtid: a digit too many is rejected");

	passed = true;
	for (size_t i = 0; i < strlen(GTID); i++)
	{
		static const char bad[] = {'\0', ' ', '/', 'g', 'F', '\x80', '%'};

		strcpy(longest, GTID);
		for (size_t j = 0; j < lengthof(bad); j++)
		{
			/* The node may have a g or an F; the slash may stay one. */
			if (i < 4 && (bad[j] == 'g' || bad[j] == 'F'))
				continue;
			if (i == 4 && bad[j] == '/')
				continue;
			longest[i] = bad[j];
			passed &= !tpc_gtid_from_text(longest, strlen(GTID), &back);
		}
	}
	ok(passed, "gtid: a bad byte anywhere is rejected");

	ok(!tpc_uuid_from_text("01890a5d-ac96-7774-8cce-e2b87e0fa0c1", 36,
						   &gtid) &&
	   !tpc_uuid_from_text("01890a5d-ac96-8774-4cce-e2b87e0fa0c1", 36,
						   &gtid) &&
	   !tpc_uuid_from_text("01890a5d-ac96-8774-ccce-e2b87e0fa0c1", 36,
						   &gtid),
	   "gtid: another version or variant is rejected");

	memset(longest, 'n', TPC_NODE_MAXLEN);
	strcpy(longest + TPC_NODE_MAXLEN, "/" UUID);
	ok(tpc_gtid_from_text(longest, strlen(longest), &back) &&
	   strlen(back.coordinator) == TPC_NODE_MAXLEN,
	   "gtid: the longest node name");
	tpc_gtid_to_text(&back, text);
	ok(strcmp(text, longest) == 0, "gtid: the longest node name and back");
	memset(longest, 'n', TPC_NODE_MAXLEN + 1);
	strcpy(longest + TPC_NODE_MAXLEN + 1, "/" UUID);
	ok(!tpc_gtid_from_text(longest, strlen(longest), &back),
	   "gtid: a longer one is rejected");

	ok(tpc_node_name_valid("a", 1) && tpc_node_name_valid("A-b_c.9", 7),
	   "node name: valid ones");
	ok(!tpc_node_name_valid("", 0) && !tpc_node_name_valid("a/b", 3) &&
	   !tpc_node_name_valid("a b", 3) && !tpc_node_name_valid("a\0b", 3) &&
	   !tpc_node_name_valid("\xc3\xa9", 2) && !tpc_node_name_valid("a#", 2) &&
	   !tpc_node_name_valid("*", 1),
	   "node name: invalid ones");
}


/*
 * Envelopes
 */

static void
test_envelope(void)
{
	static const char *const types[] = {
		"prepare", "commit", "rollback", "unknown", "vote", "ack", "inquiry",
		"request"
	};
	static const char *const timeouts[] = {
		"", "0", "00", "-1", "+1", " 1", "1 ", "1.0", "1e3", "0x10",
		"1073741824", "2147483648", "18446744073709551617",
		"99999999999999999999999999999999999999999999", "ten"
	};
	TpcWire		wire;
	TpcMessage	msg;
	const char *why;
	char		longname[TPC_USER_MAXLEN + 2];
	bool		passed;

	for (size_t i = 0; i < lengthof(types); i++)
	{
		wire = make_wire(types[i]);
		ok(decode_envelope(&wire, &msg, &why) && msg.type == i &&
		   strcmp(tpc_message_type_name(msg.type), types[i]) == 0 &&
		   strcmp(msg.from, "blog") == 0 &&
		   strcmp(msg.id.coordinator, "blog") == 0 &&
		   msg.user_id[0] == '\0' && !msg.has_floor &&
		   msg.timeout_ms == (i == TPC_MSG_PREPARE ? 10000 : 0),
		   format("envelope: %s", types[i]));

		wire.from = slice("reviews");
		ok(decode_envelope(&wire, &msg, &why) == (i >= TPC_MSG_VOTE),
		   format("envelope: %s from another node", types[i]));
	}

	wire = make_wire("prepare");
	for (size_t i = 0; i <= 7; i++)
	{
		wire.type = slice("prepare ");
		wire.type.len = (i == 7) ? 8 : i;
		rejects_wire(&wire, "property type is not a known message type",
					 format("envelope: type of %d bytes",
							(int) wire.type.len));
	}
	wire.type = slice(NULL);
	rejects_wire(&wire, "property type is not a known message type",
				 "envelope: no type");
	wire.type = slice("Commit");
	rejects_wire(&wire, "property type is not a known message type",
				 "envelope: type in another case");

	wire = make_wire("commit");
	wire.app_id = slice(NULL);
	rejects_wire(&wire, "property app_id is not \"tpc_amqp\"",
				 "envelope: no app_id");
	wire.app_id = slice("tpc_amq");
	rejects_wire(&wire, "property app_id is not \"tpc_amqp\"",
				 "envelope: short app_id");
	wire.app_id = slice("tpc_amqp2");
	rejects_wire(&wire, "property app_id is not \"tpc_amqp\"",
				 "envelope: long app_id");

	wire = make_wire("commit");
	wire.has_version = false;
	rejects_wire(&wire, "header tpc-version is missing",
				 "envelope: no version");
	wire.has_version = true;
	passed = true;
	for (int i = 0; i < 5; i++)
	{
		static const int64 versions[] = {
			0, -1, TPC_PROTOCOL_VERSION + 1, PG_INT64_MAX,
			(INT64CONST(1) << 32) + TPC_PROTOCOL_VERSION
		};

		wire.version = versions[i];
		passed &= !decode_envelope(&wire, &msg, &why) &&
			strcmp(why, "protocol version is not supported") == 0;
	}
	ok(passed, "envelope: other versions");
	wire.type = slice("promote");
	rejects_wire(&wire, "protocol version is not supported",
				 "envelope: the version is looked at before the type");

	wire = make_wire("commit");
	wire.correlation_id = slice(NULL);
	rejects_wire(&wire,
				 "property correlation_id is not a global transaction id",
				 "envelope: no gtid");
	wire.correlation_id = slice(UUID);
	rejects_wire(&wire,
				 "property correlation_id is not a global transaction id",
				 "envelope: gtid without a node");
	passed = true;
	for (size_t len = 0; len < strlen(GTID); len++)
	{
		wire.correlation_id.ptr = GTID;
		wire.correlation_id.len = len;
		passed &= !decode_envelope(&wire, &msg, &why);
	}
	ok(passed, "envelope: every truncation of the gtid");

	wire = make_wire("vote");
	wire.from = slice(NULL);
	rejects_wire(&wire, "header tpc-from is not a node name",
				 "envelope: no sender");
	wire.from = slice("");
	rejects_wire(&wire, "header tpc-from is not a node name",
				 "envelope: empty sender");
	wire.from = slice("re\\views");
	rejects_wire(&wire, "header tpc-from is not a node name",
				 "envelope: bad sender");
	wire.from.ptr = "re\0iews";
	wire.from.len = 7;
	rejects_wire(&wire, "header tpc-from is not a node name",
				 "envelope: sender with a NUL");
	memset(longname, 'n', sizeof(longname));
	wire.from.ptr = longname;
	wire.from.len = TPC_NODE_MAXLEN + 1;
	rejects_wire(&wire, "header tpc-from is not a node name",
				 "envelope: over-long sender");
	wire.from.len = TPC_NODE_MAXLEN;
	ok(decode_envelope(&wire, &msg, &why) &&
	   strlen(msg.from) == TPC_NODE_MAXLEN,
	   "envelope: longest sender");

	wire = make_wire("vote");
	wire.user_id.ptr = longname;
	wire.user_id.len = TPC_USER_MAXLEN;
	ok(decode_envelope(&wire, &msg, &why) &&
	   strlen(msg.user_id) == TPC_USER_MAXLEN,
	   "envelope: longest user_id");
	wire.user_id.len = TPC_USER_MAXLEN + 1;
	rejects_wire(&wire, "property user_id is too long",
				 "envelope: over-long user_id");
	wire.user_id.ptr = "gu\0est";
	wire.user_id.len = 6;
	rejects_wire(&wire, "property user_id is not valid UTF-8",
				 "envelope: user_id with a NUL");
	wire.user_id = slice("gu\xff");
	rejects_wire(&wire, "property user_id is not valid UTF-8",
				 "envelope: user_id not in UTF-8");

	wire = make_wire("commit");
	wire.floor = slice(UUID);
	ok(decode_envelope(&wire, &msg, &why) && msg.has_floor &&
	   tpc_gtid_compare(&msg.floor, &msg.id.gtid) == 0,
	   "envelope: floor");
	wire = make_wire("vote");
	wire.floor = slice(UUID);
	ok(decode_envelope(&wire, &msg, &why) && !msg.has_floor,
	   "envelope: a participant's floor is not taken");
	wire.floor = slice("01890a5d-ac96-7774-8cce-e2b87e0fa0c1");
	rejects_wire(&wire, "header tpc-floor is not a transaction's uuid",
				 "envelope: malformed floor");
	wire.floor = slice("");
	rejects_wire(&wire, "header tpc-floor is not a transaction's uuid",
				 "envelope: empty floor");

	wire = make_wire("prepare");
	wire.expiration = slice(NULL);
	rejects_wire(&wire, "property expiration is not a valid timeout",
				 "envelope: prepare without a timeout");
	for (size_t i = 0; i < lengthof(timeouts); i++)
	{
		wire.expiration = slice(timeouts[i]);
		rejects_wire(&wire, "property expiration is not a valid timeout",
					 format("envelope: timeout \"%s\"", timeouts[i]));
	}
	wire.expiration = slice("1");
	ok(decode_envelope(&wire, &msg, &why) && msg.timeout_ms == 1,
	   "envelope: shortest timeout");
	wire.expiration = slice("1073741823");
	ok(decode_envelope(&wire, &msg, &why) && msg.timeout_ms == INT_MAX / 2,
	   "envelope: longest timeout");
}


/*
 * Round trips
 */

/* msg through its wire form and back. */
static void
test_round_trip(const TpcMessage *msg, const char *name)
{
	TpcWire		wire;
	TpcWireScratch scratch;
	TpcMessage	back;
	StringInfoData body;
	const char *why;
	bool		result;
	bool		truncated = true;

	initStringInfo(&body);
	tpc_message_fill_wire(msg, &wire, &scratch);
	tpc_message_encode_body(msg, &body);

	result = wire.body.ptr == NULL &&
		decode_envelope(&wire, &back, &why) &&
		back.type == msg->type &&
		memcmp(&back.id, &msg->id, sizeof(back.id)) == 0 &&
		strcmp(back.from, msg->from) == 0 &&
		strcmp(back.user_id, msg->user_id) == 0 &&
		back.has_floor == msg->has_floor &&
		(!msg->has_floor ||
		 tpc_gtid_compare(&back.floor, &msg->floor) == 0) &&
		back.timeout_ms == msg->timeout_ms &&
		wire.reply_to.len == strlen("tpc_amqp..vote") + strlen(msg->from) &&
		wire.content_type.len == strlen("application/json");
	ok(result, format("%s: properties and headers", name));

	result = decode_len(msg->type, body.data, body.len, &back, &why) &&
		back.ncalls == msg->ncalls &&
		back.must_prepare == msg->must_prepare &&
		back.wants_commit == msg->wants_commit &&
		back.nresults == msg->nresults &&
		back.vote == (msg->type == TPC_MSG_VOTE ? msg->vote : TPC_VOTE_NO) &&
		strcmp(back.error.sqlstate, msg->error.sqlstate) == 0 &&
		same_text(back.error.message, msg->error.message) &&
		same_text(back.error.detail, msg->error.detail) &&
		same_text(back.error.hint, msg->error.hint) &&
		same_text(back.error.context, msg->error.context) &&
		(msg->type != TPC_MSG_ACK ||
		 (back.outcome == msg->outcome && back.forced == msg->forced));
	for (int i = 0; result && i < msg->nresults; i++)
		result = same_text(back.results[i], msg->results[i]);
	for (int i = 0; result && i < msg->ncalls; i++)
		result = strcmp(back.calls[i].handler, msg->calls[i].handler) == 0 &&
			back.calls[i].arg_len == msg->calls[i].arg_len &&
			strcmp(back.calls[i].arg, msg->calls[i].arg) == 0;
	ok(result, format("%s: body", name));
	tpc_message_free_body(&back);

	/* Nothing, not even of a message without fields, is one when cut. */
	for (int len = 1; len < body.len; len++)
	{
		if (decode_len(msg->type, body.data, len, &back, &why))
		{
			truncated = false;
			tpc_message_free_body(&back);
		}
	}
	ok(truncated, format("%s: every truncation is rejected", name));

	/* And no byte, replaced, makes it read what it must not. */
	for (int i = 0; i < body.len; i++)
	{
		static const char bytes[] = "\0\"\\{}[]:,0ut\x80\xf0\xff";
		char		saved = body.data[i];

		for (size_t j = 0; j < sizeof(bytes) - 1; j++)
		{
			body.data[i] = bytes[j];
			if (decode_len(msg->type, body.data, body.len, &back, &why))
				tpc_message_free_body(&back);
		}
		body.data[i] = saved;
	}
	ok(true, format("%s: every byte replaced", name));
	pfree(body.data);
}

static void
test_round_trips(void)
{
	static char every[] =
	"\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f\x10\x11\x12"
	"\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f \"\\/'\x7f"
	"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98";
	TpcCallItem calls[5] = {
		{"add_review", "{\"blog_id\": 1}", 14},
		{"na\"me\\ \n\xc3\xa9", "[ 1 , \"]\\\"\\\\\" , {\"a\":{}} ]", 0},
		{"n", "null", 4},
		{"s", "\"\\ud83d\\udc18\\u00e9\"", 0},
		{"e", "-0.5e+10", 8}
	};
	char	   *results[] = {NULL, "[1, \"\\u0000\"]", every, ""};
	TpcMessage	msg;

	for (size_t i = 0; i < lengthof(calls); i++)
		calls[i].arg_len = strlen(calls[i].arg);

	memset(&msg, 0, sizeof(msg));
	strcpy(msg.id.coordinator, "blog");
	msg.id.gtid.incarnation = 7;
	msg.id.gtid.sequence = 42;
	strcpy(msg.from, "blog");
	strcpy(msg.user_id, "guest");
	msg.vote = TPC_VOTE_NO;

	msg.type = TPC_MSG_PREPARE;
	msg.has_floor = true;
	msg.floor.incarnation = 7;
	msg.floor.sequence = 40;
	msg.timeout_ms = INT_MAX / 2;
	msg.ncalls = lengthof(calls);
	msg.calls = calls;
	test_round_trip(&msg, "prepare");
	msg.ncalls = 0;
	test_round_trip(&msg, "prepare without calls");
	msg.must_prepare = true;
	test_round_trip(&msg, "prepare that must be prepared");
	msg.must_prepare = false;
	msg.timeout_ms = 0;

	msg.type = TPC_MSG_COMMIT;
	test_round_trip(&msg, "commit");
	msg.type = TPC_MSG_ROLLBACK;
	msg.user_id[0] = '\0';
	test_round_trip(&msg, "rollback");
	msg.has_floor = false;
	msg.type = TPC_MSG_UNKNOWN;
	test_round_trip(&msg, "unknown without a reason");
	msg.error.message = every;
	test_round_trip(&msg, "unknown");

	memset(msg.from, 'n', TPC_NODE_MAXLEN);
	msg.type = TPC_MSG_INQUIRY;
	msg.error.message = NULL;
	test_round_trip(&msg, "inquiry");

	msg.type = TPC_MSG_REQUEST;
	test_round_trip(&msg, "request to roll back");
	msg.wants_commit = true;
	test_round_trip(&msg, "request to commit");
	msg.wants_commit = false;

	msg.type = TPC_MSG_VOTE;
	msg.vote = TPC_VOTE_YES;
	test_round_trip(&msg, "vote yes");
	msg.vote = TPC_VOTE_READ_ONLY;
	test_round_trip(&msg, "vote read-only");
	msg.nresults = lengthof(results);
	msg.results = results;
	test_round_trip(&msg, "vote with results");
	msg.nresults = 0;
	msg.vote = TPC_VOTE_NO;
	strcpy(msg.error.sqlstate, "23505");
	msg.error.message = every;
	msg.error.detail = "Key (id)=(1) already exists.";
	msg.error.context = "";
	test_round_trip(&msg, "vote no");
	msg.error.hint = "h";
	test_round_trip(&msg, "vote no with everything");

	memset(&msg.error, 0, sizeof(msg.error));
	msg.type = TPC_MSG_ACK;
	for (int outcome = 0; outcome <= TPC_ACK_LOST; outcome++)
	{
		msg.outcome = (TpcAckOutcome) outcome;
		test_round_trip(&msg, format("ack %d", outcome));
	}
	msg.forced = true;
	msg.error.message = "an operator \"did\"";
	test_round_trip(&msg, "ack forced, with a reason");
}


/*
 * What encoding does with text that does not fit, or is none
 */

static void
test_encoding(void)
{
	TpcMessage	msg;
	TpcMessage	back;
	StringInfoData body;
	StringInfoData text;
	const char *why;
	bool		passed;

	initStringInfo(&body);
	initStringInfo(&text);
	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_VOTE;
	msg.vote = TPC_VOTE_NO;

	/* A character across each limit, by 0 to 3 bytes. */
	passed = true;
	for (size_t shift = 0; shift < 4; shift++)
	{
		resetStringInfo(&text);
		for (size_t i = 0; i < shift; i++)
			appendStringInfoChar(&text, '\n');
		while (text.len < 5000)
			appendStringInfoString(&text, "\xf0\x9f\x90\x98");
		msg.error.message = msg.error.detail = text.data;
		msg.error.hint = msg.error.context = text.data;
		resetStringInfo(&body);
		tpc_message_encode_body(&msg, &body);
		/* The reader cuts too, so look at what is sent. */
		passed &= pg_encoding_verifymbstr(PG_UTF8, body.data, body.len) ==
			body.len && body.len <= 2 * (1024 + 4096) + 100;
		passed &= decode_len(TPC_MSG_VOTE, body.data, body.len, &back, &why);
		passed &= strlen(back.error.message) == 1024 - (4 - shift) % 4;
		passed &= strlen(back.error.detail) == 4096 - (4 - shift) % 4;
		passed &= strlen(back.error.hint) == 1024 - (4 - shift) % 4;
		passed &= strlen(back.error.context) == 4096 - (4 - shift) % 4;
		passed &= strncmp(back.error.detail, text.data,
						  strlen(back.error.detail)) == 0;
		tpc_message_free_body(&back);
	}
	ok(passed, "encoding: long texts are cut between characters");

	/* The same cut in what somebody else sends, whatever its escapes. */
	passed = true;
	for (size_t shift = 0; shift < 4; shift++)
	{
		resetStringInfo(&body);
		appendStringInfoString(&body, "{\"vote\":\"no\",\"error\":{"
							   "\"message\":\"");
		for (size_t i = 0; i < shift; i++)
			appendStringInfoString(&body, "\\n");
		for (int i = 0; i < 2000; i++)
			appendStringInfoString(&body, "\\uD83d\\uDC18");
		appendStringInfoString(&body, "\"}}");
		passed &= decode_len(TPC_MSG_VOTE, body.data, body.len, &back, &why);
		passed &= strlen(back.error.message) == 1024 - (4 - shift) % 4;
		passed &= pg_encoding_verifymbstr(PG_UTF8, back.error.message,
										  strlen(back.error.message)) ==
			(int) strlen(back.error.message);
		tpc_message_free_body(&back);
	}
	ok(passed, "decoding: long texts are cut between characters");

	msg.error.message = "a\xff\xc3(\xe2\x82\xed\xa0\x80z\xf0";
	msg.error.detail = msg.error.hint = msg.error.context = NULL;
	resetStringInfo(&body);
	tpc_message_encode_body(&msg, &body);
	ok(decode_len(TPC_MSG_VOTE, body.data, body.len, &back, &why) &&
	   strcmp(back.error.message, "a?" "?(?" "????z?") == 0,
	   "encoding: bytes that are not UTF-8");
	tpc_message_free_body(&back);

	passed = true;
	for (int i = 0; i < 5; i++)
	{
		static const char *const states[] = {
			"", "00000", "2350", "2350a", "23 05"
		};

		strcpy(msg.error.sqlstate, states[i]);
		resetStringInfo(&body);
		tpc_message_encode_body(&msg, &body);
		passed &= strstr(body.data, "\"sqlstate\":\"XX000\"") != NULL;
	}
	ok(passed, "encoding: codes that are no error's become XX000");

	pfree(body.data);
	pfree(text.data);
}


/*
 * Bodies
 */

static void
test_votes(void)
{
	static const char *const states[] = {
		"", "0", "00000", "00001", "2350", "235055", "2350a", "2350 ",
		"2350\\n", "\xc3\xa9\xc3\xa9\x31", "\\u0032\\u0033\\u0035\\u0030"
	};
	TpcMessage	msg;
	const char *why;
	const char *body;
	bool		passed;

	passed = true;
	for (size_t i = 0; i < lengthof(states); i++)
	{
		char	   *text = format("{\"vote\":\"no\",\"error\":"
								  "{\"sqlstate\":\"%s\"}}", states[i]);

		passed &= decode_len(TPC_MSG_VOTE, text, strlen(text), &msg, &why) &&
			strcmp(msg.error.sqlstate, "XX000") == 0;
	}
	ok(passed, "vote no: codes that are no error's become XX000");

	body = "{\"vote\":\"no\"}";
	ok(decode_len(TPC_MSG_VOTE, body, strlen(body), &msg, &why) &&
	   strcmp(msg.error.sqlstate, "XX000") == 0 && msg.error.message == NULL,
	   "vote no: without an error");

	body = "{\"vote\":\"no\",\"error\":{\"sqlstate\":\"\\u00323505\"}}";
	ok(decode_len(TPC_MSG_VOTE, body, strlen(body), &msg, &why) &&
	   strcmp(msg.error.sqlstate, "23505") == 0,
	   "vote no: escapes in a code");

	body = "{\"error\":{\"sqlstate\":\"23505\",\"message\":\"m\"},"
		"\"vote\":\"yes\"}";
	ok(decode_len(TPC_MSG_VOTE, body, strlen(body), &msg, &why) &&
	   msg.vote == TPC_VOTE_YES && msg.error.sqlstate[0] == '\0' &&
	   msg.error.message == NULL,
	   "vote yes: an error is not taken");

	accepts(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":null}",
			"vote no: null for an error");
	accepts(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":{\"sqlstate\":null,"
			"\"message\":null,\"detail\":null}}",
			"vote no: null for an error's fields");
	accepts(TPC_MSG_VOTE, "{\"vote\":\"yes\",\"x\":{\"vote\":\"no\"},"
			"\"\":[],\"voter\":1}",
			"vote: unknown fields are ignored");
	accepts(TPC_MSG_VOTE, " \t\r\n{ \"vote\" : \"read-only\" } \n",
			"vote: white space");
	accepts(TPC_MSG_VOTE, "{\"\\u0076ote\":\"y\\u0065s\"}",
			"vote: escapes in names and words");

	rejects(TPC_MSG_VOTE, "", "field \"vote\" is missing", "vote: empty");
	rejects(TPC_MSG_VOTE, "{}", "field \"vote\" is missing", "vote: {}");
	rejects(TPC_MSG_VOTE, "{\"error\":{}}", "field \"vote\" is missing",
			"vote: only an error");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"yes\",\"vote\":\"no\"}",
			"field \"vote\" is repeated", "vote: two votes");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"yes\",\"\\u0076ote\":\"no\"}",
			"field \"vote\" is repeated", "vote: two votes, one in disguise");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":null,\"error\":{}}",
			"field \"error\" is repeated", "vote: two errors");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":"
			"{\"message\":\"a\",\"message\":\"b\"}}",
			"field \"message\" is repeated", "vote: two messages");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"Yes\"}",
			"field \"vote\" is malformed", "vote: Yes");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"\"}", "field \"vote\" is malformed",
			"vote: empty word");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"yesyesyesyesyesyesyesyesyesyesyes\"}",
			"field \"vote\" is malformed", "vote: long word");
	rejects(TPC_MSG_VOTE, "{\"vote\":true}", "field \"vote\" is malformed",
			"vote: a boolean");
	rejects(TPC_MSG_VOTE, "{\"vote\":null}", "field \"vote\" is malformed",
			"vote: null");
	rejects(TPC_MSG_VOTE, "{\"vote\":[\"yes\"]}",
			"field \"vote\" is malformed", "vote: an array");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":\"e\"}",
			"field \"error\" is malformed", "vote: error is a string");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":[]}",
			"field \"error\" is malformed", "vote: error is an array");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":{\"sqlstate\":23505}}",
			"field \"sqlstate\" is malformed", "vote: sqlstate is a number");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":{\"message\":"
			"\"kept until here\",\"detail\":{}}}",
			"field \"detail\" is malformed", "vote: detail is an object");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"yes\",\"error\":{\"hint\":1e999}}",
			"field \"hint\" is malformed",
			"vote: an error that is not taken is checked");
}

static void
test_acks(void)
{
	TpcMessage	msg;
	const char *why;
	const char *body;

	body = "{\"outcome\":\"rolled back\",\"reason\":\"r\",\"forced\":true}";
	ok(decode_len(TPC_MSG_ACK, body, strlen(body), &msg, &why) &&
	   msg.outcome == TPC_ACK_ROLLED_BACK && msg.forced &&
	   strcmp(msg.error.message, "r") == 0,
	   "ack: all fields");
	tpc_message_free_body(&msg);

	body = "{\"outcome\":\"committed\",\"reason\":null,\"forced\":null}";
	ok(decode_len(TPC_MSG_ACK, body, strlen(body), &msg, &why) &&
	   msg.outcome == TPC_ACK_COMMITTED && !msg.forced &&
	   msg.error.message == NULL,
	   "ack: null is absent");

	rejects(TPC_MSG_ACK, "", "field \"outcome\" is missing", "ack: empty");
	rejects(TPC_MSG_ACK, "{\"forced\":true}", "field \"outcome\" is missing",
			"ack: no outcome");
	rejects(TPC_MSG_ACK, "{\"outcome\":\"rolled-back\"}",
			"field \"outcome\" is malformed", "ack: another word");
	rejects(TPC_MSG_ACK, "{\"outcome\":1}",
			"field \"outcome\" is malformed", "ack: outcome is a number");
	rejects(TPC_MSG_ACK, "{\"outcome\":\"lost\",\"forced\":\"true\"}",
			"field \"forced\" is malformed", "ack: forced is a string");
	rejects(TPC_MSG_ACK, "{\"outcome\":\"lost\",\"forced\":1}",
			"field \"forced\" is malformed", "ack: forced is a number");
	rejects(TPC_MSG_ACK, "{\"outcome\":\"lost\",\"reason\":false}",
			"field \"reason\" is malformed", "ack: reason is a boolean");
	rejects(TPC_MSG_ACK, "{\"outcome\":\"lost\",\"outcome\":\"lost\"}",
			"field \"outcome\" is repeated", "ack: outcome twice");
}

static void
test_empty_bodies(void)
{
	static const TpcMessageType types[] = {
		TPC_MSG_COMMIT, TPC_MSG_ROLLBACK, TPC_MSG_INQUIRY, TPC_MSG_UNKNOWN
	};

	for (size_t i = 0; i < lengthof(types); i++)
	{
		const char *name = tpc_message_type_name(types[i]);

		accepts(types[i], "", format("%s: empty", name));
		accepts(types[i], "{}", format("%s: {}", name));
		accepts(types[i], "{\"calls\":3,\"x\":[{},[],\"\\n\",-1.5E-7]}",
				format("%s: unknown fields", name));
		rejects(types[i], "[]", "body is not a JSON object",
				format("%s: an array", name));
		rejects(types[i], "null", "body is not a JSON object",
				format("%s: null", name));
		rejects(types[i], "\"{}\"", "body is not a JSON object",
				format("%s: a string", name));
		rejects(types[i], " ", "body is not a JSON object",
				format("%s: a blank", name));
		rejects(types[i], "{}{}", "body is not valid JSON",
				format("%s: two objects", name));
		rejects(types[i], "{},", "body is not valid JSON",
				format("%s: a comma after it", name));
	}
	rejects(TPC_MSG_UNKNOWN, "{\"reason\":7}", "field \"reason\" is malformed",
			"unknown: reason is a number");
}

static void
test_grammar(void)
{
	/* Each is tried as a value that is an argument and one that is ignored. */
	static const char *const bad[] = {
		"", "}", "]", ",", ":", "tru", "nul", "Null", "True", "undefined",
		"NaN", "Infinity", "01", "1.", ".5", "1e", "1e+", "+1", "--1", "0x1",
		"1 2", "'a'", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"",
		"\"\\\"", "\"a\nb\"", "\"a\tb\"", "\"\x01\"", "[", "[1", "[1,",
		"[1,]", "[,1]", "[1 2]", "[1}", "[1:2]", "{", "{]", "{1}", "{\"a\"}",
		"{\"a\":}", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{,}",
		"{\"a\" 1}", "{\"a\":1 \"b\":2}", "{\"a\":1]", "{\"a\",1}",
		"{\"a\":1:2}", "{a:1}", "{1:1}", "{null:1}", "[[[[]]]", "[{]}",
		"[[]]]", "{\"a\":[}", "/**/1", "#", "\\", "\"\\ud83d\"",
		"\"\\udc18\"", "\"\\udc18\\ud83d\"", "\"\\ud83d\\ud83d\"",
		"\"\\ud83dx\\udc18\"", "\"\\ud83d\\n\"", "\"\\ud83d\\u0041\"",
		"\"\\u0000\"", "\"a\\u0000b\"", "[\"\\u0000\"]", "{\"\\u0000\":1}",
		"{\"\\ud83d\":1}", "{\"a\":1,\"\\u0000\":2}",
		"\"\\\\\\u0000\""
	};
	static const char *const good[] = {
		"null", "true", "false", "0", "-0", "1.5", "1e400", "-1E-400", "\"\"",
		"\"\\\\u0000\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u20AC\"",
		"\"\\ud83d\\udc18\"", "\"\\uffff\\uD7FF\\ue000\"", "[]", "{}",
		"[[],{},[{}]]", "{\"a\":{\"a\":[]},\"a\":[1,[2,[3]]]}",
		"[ ]", "{ }", "\n[\n1\t,\r2 ]\n", "\"\xf4\x8f\xbf\xbf\"", "\"\x7f\"",
		"123456789012345678901234567890123456789012345678901234567890",
		"{\"\":\"\",\"handler\":\"x\"}", "\"{[\\\"}]\""
	};
	TpcMessage	msg;
	const char *why;

	for (size_t i = 0; i < lengthof(bad); i++)
	{
		rejects(TPC_MSG_PREPARE,
				format("{\"calls\":[{\"handler\":\"h\",\"arg\":%s}]}",
					   bad[i]),
				NULL, format("bad argument %d", (int) i));
		rejects(TPC_MSG_COMMIT, format("{\"x\":%s}", bad[i]),
				NULL, format("bad unknown field %d", (int) i));
	}
	for (size_t i = 0; i < lengthof(good); i++)
	{
		char	   *body = format("{\"calls\":[{\"arg\": %s\n,"
								  "\"handler\":\"h\"}]}", good[i]);
		const char *start = good[i] + strspn(good[i], " \n");
		size_t		len = strlen(start);

		while (start[len - 1] == '\n')
			len--;
		ok(decode_len(TPC_MSG_PREPARE, body, strlen(body), &msg, &why) &&
		   msg.ncalls == 1 && msg.calls[0].arg_len == len &&
		   memcmp(msg.calls[0].arg, start, len) == 0 &&
		   msg.calls[0].arg[len] == '\0',
		   format("argument %d is kept as it is", (int) i));
		tpc_message_free_body(&msg);
		accepts(TPC_MSG_COMMIT, format("{\"x\":%s}", good[i]),
				format("unknown field %d", (int) i));
	}
}

static void
test_prepares(void)
{
	char		name[TPC_HANDLER_MAXLEN + 2];
	TpcMessage	msg;
	const char *why;
	char	   *body;

	accepts(TPC_MSG_PREPARE, "{\"calls\":[]}", "prepare: no calls");
	accepts(TPC_MSG_PREPARE,
			"{\"x\":1,\"calls\":[{\"x\":[],\"handler\":\"h\",\"y\":{},"
			"\"arg\":1,\"z\":null}],\"y\":2}",
			"prepare: unknown fields");
	rejects(TPC_MSG_PREPARE, "", "field \"calls\" is missing",
			"prepare: empty");
	rejects(TPC_MSG_PREPARE, "{\"calls\":null}",
			"field \"calls\" is malformed", "prepare: calls is null");
	rejects(TPC_MSG_PREPARE, "{\"calls\":{}}",
			"field \"calls\" is malformed", "prepare: calls is an object");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[1]}",
			"field \"calls\" is malformed", "prepare: a call is a number");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[null]}",
			"field \"calls\" is malformed", "prepare: a call is null");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[],\"calls\":[]}",
			"field \"calls\" is repeated", "prepare: calls twice");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[{\"handler\":\"h\"}]}",
			"field \"arg\" is missing", "prepare: no argument");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[{\"arg\":1}]}",
			"field \"handler\" is missing", "prepare: no handler");
	rejects(TPC_MSG_PREPARE,
			"{\"calls\":[{\"handler\":\"h\",\"arg\":1,\"arg\":2}]}",
			"field \"arg\" is repeated", "prepare: two arguments");
	rejects(TPC_MSG_PREPARE,
			"{\"calls\":[{\"handler\":\"h\",\"handler\":\"i\",\"arg\":1}]}",
			"field \"handler\" is repeated", "prepare: two handlers");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[{\"handler\":7,\"arg\":1}]}",
			"field \"handler\" is malformed", "prepare: handler is a number");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[{\"handler\":null,\"arg\":1}]}",
			"field \"handler\" is malformed", "prepare: handler is null");
	rejects(TPC_MSG_PREPARE, "{\"calls\":[{\"handler\":\"\",\"arg\":1}]}",
			"a handler's name is empty or too long",
			"prepare: empty handler");
	rejects(TPC_MSG_PREPARE,
			"{\"calls\":[{\"handler\":\"h\",\"arg\":1},]}",
			"field \"calls\" is malformed", "prepare: a comma too many");
	rejects(TPC_MSG_PREPARE,
			"{\"calls\":[{\"handler\":\"h\",\"arg\":1},"
			"{\"handler\":\"h\",\"arg\":2},{\"handler\":\"h\"}]}",
			"field \"arg\" is missing",
			"prepare: good calls before a bad one");

	memset(name, 'n', sizeof(name));
	name[TPC_HANDLER_MAXLEN + 1] = '\0';
	rejects(TPC_MSG_PREPARE,
			format("{\"calls\":[{\"handler\":\"%s\",\"arg\":1}]}", name),
			"a handler's name is empty or too long",
			"prepare: over-long handler");
	name[TPC_HANDLER_MAXLEN] = '\0';
	body = format("{\"calls\":[{\"handler\":\"%s\",\"arg\":1}]}", name);
	ok(decode_len(TPC_MSG_PREPARE, body, strlen(body), &msg, &why) &&
	   strcmp(msg.calls[0].handler, name) == 0,
	   "prepare: longest handler");
	tpc_message_free_body(&msg);

	/* The limit is in bytes of what is meant, not of how it is written. */
	for (int n = TPC_HANDLER_MAXLEN / 2; n <= TPC_HANDLER_MAXLEN / 2 + 1; n++)
	{
		StringInfoData text;

		initStringInfo(&text);
		appendStringInfoString(&text, "{\"calls\":[{\"arg\":1,\"handler\":\"");
		for (int i = 0; i < n; i++)
			appendStringInfoString(&text, "\\u00e9");
		appendStringInfoString(&text, "\"}]}");
		ok(decode_len(TPC_MSG_PREPARE, text.data, text.len, &msg, &why) ==
		   (n * 2 <= TPC_HANDLER_MAXLEN),
		   format("prepare: handler of %d escapes", n));
		tpc_message_free_body(&msg);
		pfree(text.data);
	}
}

static void
test_sizes(void)
{
	StringInfoData body;
	TpcMessage	msg;
	const char *why;

	initStringInfo(&body);

	for (int n = TPC_MAX_CALLS; n <= TPC_MAX_CALLS + 1; n++)
	{
		resetStringInfo(&body);
		tpc_message_begin_calls(&body);
		for (int i = 0; i < n; i++)
			tpc_message_add_call(&body, "h", "1", 1);
		tpc_message_end_calls(&body, false);
		if (n == TPC_MAX_CALLS)
		{
			ok(decode_len(TPC_MSG_PREPARE, body.data, body.len, &msg,
						  &why) && msg.ncalls == n,
			   "size: as many calls as allowed");
			tpc_message_free_body(&msg);
		}
		else
			rejects_len(TPC_MSG_PREPARE, body.data, body.len,
						"too many calls in one prepare",
						"size: one call too many");
	}

	/* Nested: closed and not, at the limit, beyond it, far beyond it. */
	for (int kind = 0; kind < 3; kind++)
	{
		static const int depths[] = {
			TPC_JSON_MAX_DEPTH, TPC_JSON_MAX_DEPTH + 1, 100000, 1000000
		};
		static const char *const open[] = {
			"[", "{\"a\":", "[{\"a\":[0],\"b\":"
		};
		static const char *const close[] = {"]", "}", "}]"};
		static const int levels[] = {1, 1, 2};

		for (size_t i = 0; i < lengthof(depths); i++)
		{
			bool		fits = (i == 0);
			int			n = depths[i] / levels[kind];

			/* In kind 2 the [0] is one deeper still. */
			if (kind == 2 && fits)
				n--;
			resetStringInfo(&body);
			appendStringInfoString(&body, "{\"calls\":[{\"handler\":\"h\","
								   "\"arg\":");
			for (int j = 0; j < n; j++)
				appendStringInfoString(&body, open[kind]);
			rejects_len(TPC_MSG_PREPARE, body.data, body.len, NULL,
						format("nested: kind %d, %d deep, not closed",
							   kind, depths[i]));
			appendStringInfoString(&body, "0");
			for (int j = 0; j < n; j++)
				appendStringInfoString(&body, close[kind]);
			appendStringInfoString(&body, "}]}");
			if (fits)
			{
				ok(decode_len(TPC_MSG_PREPARE, body.data, body.len, &msg,
							  &why),
				   format("nested: kind %d, %d deep", kind, depths[i]));
				tpc_message_free_body(&msg);
			}
			else
				rejects_len(TPC_MSG_PREPARE, body.data, body.len,
							"body is nested too deeply",
							format("nested: kind %d, %d deep", kind,
								   depths[i]));
		}
	}

	resetStringInfo(&body);
	for (int i = 0; i < 100000; i++)
		appendStringInfoChar(&body, '[');
	rejects_len(TPC_MSG_COMMIT, body.data, body.len,
				"body is not a JSON object", "nested: nothing but brackets");

	resetStringInfo(&body);
	appendStringInfoString(&body, "{\"vote\":\"yes\",\"");
	for (int i = 0; i < 1000000; i++)
		appendStringInfoString(&body, "\\u0041");
	appendStringInfoString(&body, "\":[");
	for (int i = 0; i < 1000000; i++)
		appendStringInfoString(&body, "1,");
	appendStringInfoString(&body, "1]}");
	ok(decode_len(TPC_MSG_VOTE, body.data, body.len, &msg, &why),
	   "size: a long name and a long array");

	resetStringInfo(&body);
	appendStringInfoString(&body, "{\"outcome\":\"lost\",\"x\":");
	for (int i = 0; i < 1000000; i++)
		appendStringInfoChar(&body, '9');
	appendStringInfoString(&body, "e99999999999999999999}");
	ok(decode_len(TPC_MSG_ACK, body.data, body.len, &msg, &why),
	   "size: a number of a million digits");

	pfree(body.data);
}

static void
test_bytes(void)
{
	static const char *const bad[] = {
		"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(",
		"\xe0\x80\x80",
		"\xe2\x82", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x80\x80\x80",
		"\xf0\x9f\x90", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xfe", "\xff",
		"\xf8\x88\x80\x80\x80"
	};
	const char *nul = "{\"vote\":\"yes\",\"x\":\"\\";
	char		body[64];

	for (size_t i = 0; i < lengthof(bad); i++)
	{
		rejects(TPC_MSG_ACK,
				format("{\"outcome\":\"lost\",\"reason\":\"%s\"}", bad[i]),
				"body is not valid UTF-8",
				format("bytes: not UTF-8, in a text, %d", (int) i));
		rejects(TPC_MSG_PREPARE,
				format("{\"calls\":[{\"handler\":\"h\",\"arg\":\"%s\"}]}",
					   bad[i]),
				"body is not valid UTF-8",
				format("bytes: not UTF-8, in an argument, %d", (int) i));
		rejects(TPC_MSG_COMMIT, format("{}%s", bad[i]),
				"body is not valid UTF-8",
				format("bytes: not UTF-8, after the body, %d", (int) i));
	}
	rejects(TPC_MSG_COMMIT, "\xef\xbb\xbf{}", NULL,
			"bytes: a byte order mark");

	rejects_len(TPC_MSG_COMMIT, "{}", 3, "body is not valid UTF-8",
				"bytes: a NUL after the body");
	rejects_len(TPC_MSG_COMMIT, "\0{}", 3, "body is not valid UTF-8",
				"bytes: a NUL before the body");
	rejects_len(TPC_MSG_VOTE, "{\"vote\":\"yes\0\"}", 15,
				"body is not valid UTF-8", "bytes: a NUL in a word");
	rejects_len(TPC_MSG_COMMIT, "\0\0\0\0", 4, "body is not valid UTF-8",
				"bytes: nothing but NULs");

	/* To strchr() the end of the string is a character like any other. */
	strcpy(body, nul);
	memcpy(body + strlen(nul), "\0\"}", 3);
	rejects_len(TPC_MSG_VOTE, body, strlen(nul) + 3,
				"body is not valid UTF-8", "bytes: a NUL after a backslash");

	rejects(TPC_MSG_VOTE, "{\"vote\":\"y\\u0000es\"}",
			"a string has U+0000 or half a surrogate pair",
			"bytes: an escaped NUL in a word");
	rejects(TPC_MSG_PREPARE,
			"{\"calls\":[{\"handler\":\"h\\u0000\",\"arg\":1}]}",
			"a string has U+0000 or half a surrogate pair",
			"bytes: an escaped NUL in a handler's name");
	rejects(TPC_MSG_VOTE, "{\"vote\\u0000\":\"yes\"}",
			"a string has U+0000 or half a surrogate pair",
			"bytes: an escaped NUL in a field's name");
	rejects(TPC_MSG_VOTE, "{\"vote\":\"no\",\"error\":{\"message\":"
			"\"\\ud83d\"}}",
			"a string has U+0000 or half a surrogate pair",
			"bytes: half a surrogate pair in a text");
}

/*
 * Batches
 */

/* decode_batch, from a chunk of exact size, which the items point into. */
static bool
decode_batch(const char *body, size_t len, TpcBatch *batch, char **chunk,
			 const char **why)
{
	TpcWire		wire = make_wire("batch");

	wire.correlation_id = slice(NULL);
	*chunk = malloc(len);
	if (len > 0)
		memcpy(*chunk, body, len);
	wire.body.ptr = *chunk;
	wire.body.len = len;
	*why = NULL;
	tap_note = NULL;
	if (tpc_message_decode_batch(&wire, batch, why))
		return true;
	tap_note = *why;
	return false;
}

/* A batch that must be refused as a whole, for this reason (NULL: any). */
static void
rejects_batch_len(const char *body, size_t len, const char *reason,
				  const char *name)
{
	TpcBatch	batch;
	char	   *chunk;
	const char *why;
	bool		result = decode_batch(body, len, &batch, &chunk, &why);

	ok(!result && why != NULL && batch.nitems == 0 && batch.items == NULL &&
	   (reason == NULL || strcmp(why, reason) == 0), name);
	if (result)
		tpc_message_free_batch(&batch);
	free(chunk);
}

static void
rejects_batch(const char *body, const char *reason, const char *name)
{
	rejects_batch_len(body, strlen(body), reason, name);
}

/*
 * A batch that must be taken apart, and which of its messages must then be
 * good: "+" or "-" for each.
 */
static void
splits_batch(const char *body, const char *goods, const char *name)
{
	TpcBatch	batch;
	char	   *chunk;
	const char *why;
	bool		result = decode_batch(body, strlen(body), &batch, &chunk,
									  &why) &&
	batch.nitems == (int) strlen(goods);

	for (int i = 0; result && i < batch.nitems; i++)
	{
		TpcMessage	msg;
		const TpcWire *wire = &batch.items[i].wire;
		bool		good = tpc_message_decode_envelope(wire, &msg, &why) &&
		tpc_message_decode_body(wire->body.ptr, wire->body.len, &msg,
								&why);

		if (good)
			tpc_message_free_body(&msg);
		result = good == (goods[i] == '+');
	}
	ok(result, name);
	tpc_message_free_batch(&batch);
	tpc_message_free_batch(&batch);
	free(chunk);
}

#define COMMIT_ITEM "{\"type\":\"commit\",\"gtid\":\"" GTID "\",\"body\":{}}"

/* One of each type: built, taken apart, and no byte of it does harm. */
static void
test_batch_round_trip(void)
{
	TpcCallItem call = {"add", "[1,{\"a\":\"]}\"}]", 14};
	TpcMessage	msgs[TPC_MSG_INQUIRY + 1];
	StringInfoData batch_text;
	StringInfoData body;
	TpcWire		wire;
	TpcWireScratch scratch;
	TpcBatch	batch;
	char	   *chunk;
	const char *why;
	TpcMessage	none;
	bool		result = true;
	bool		truncated = true;

	initStringInfo(&batch_text);
	initStringInfo(&body);
	tpc_message_begin_batch(&batch_text);
	for (int i = 0; i < (int) lengthof(msgs); i++)
	{
		TpcMessage *msg = &msgs[i];
		int			at;

		memset(msg, 0, sizeof(*msg));
		msg->type = (TpcMessageType) i;
		memset(msg->id.coordinator, 'n', TPC_NODE_MAXLEN);
		memset(msg->from, 'n', TPC_NODE_MAXLEN);
		msg->id.gtid.incarnation = 7;
		msg->id.gtid.sequence = i;
		msg->timeout_ms = TPC_TIMEOUT_MAX_MS;
		msg->vote = TPC_VOTE_READ_ONLY;
		msg->calls = &call;
		msg->ncalls = 1;
		resetStringInfo(&body);
		tpc_message_encode_body(msg, &body);
		at = tpc_message_add_to_batch(&batch_text, msg, body.data, body.len);
		result = result &&
			memcmp(batch_text.data + at, body.data, body.len) == 0 &&
			batch_text.len <= (i + 1) * (body.len + TPC_BATCH_ITEM_OVERHEAD);
	}
	ok(result, "batch: where the bodies lie, and what is around them");
	tpc_message_fill_wire(&msgs[0], &wire, &scratch);
	ok(!tpc_message_is_batch(&wire), "batch: one message is none");
	tpc_message_end_batch(&batch_text, &wire);
	ok(tpc_message_is_batch(&wire) && wire.correlation_id.ptr == NULL &&
	   !tpc_message_decode_envelope(&wire, &none, &why),
	   "batch: its envelope is not that of a message");

	result = decode_batch(batch_text.data, batch_text.len, &batch, &chunk,
						  &why) && batch.nitems == (int) lengthof(msgs);
	for (int i = 0; result && i < batch.nitems; i++)
	{
		TpcWire    *item = &batch.items[i].wire;
		TpcMessage	back;

		/* decode_batch() lets them come from another node */
		item->from = wire.from;
		result = tpc_message_decode_envelope(item, &back, &why) &&
			back.type == (TpcMessageType) i &&
			strcmp(back.id.coordinator, msgs[1].id.coordinator) == 0 &&
			back.id.gtid.sequence == (uint64) i &&
			back.timeout_ms ==
			(i == TPC_MSG_PREPARE ? TPC_TIMEOUT_MAX_MS : 0) &&
			tpc_message_decode_body(item->body.ptr, item->body.len, &back,
									&why) &&
			back.ncalls == (i == TPC_MSG_PREPARE ? 1 : 0);
		tpc_message_free_body(&back);
	}
	ok(result, "batch: round trip");
	tpc_message_free_batch(&batch);
	free(chunk);

	for (int len = 0; len < batch_text.len; len++)
	{
		if (decode_batch(batch_text.data, len, &batch, &chunk, &why))
		{
			truncated = false;
			tpc_message_free_batch(&batch);
		}
		free(chunk);
	}
	ok(truncated, "batch: every truncation is rejected");

	for (int i = 0; i < batch_text.len; i++)
	{
		static const char bytes[] = "\0\"\\{}[]:,0ut\x80\xf0\xff";
		char		saved = batch_text.data[i];

		for (size_t j = 0; j < sizeof(bytes) - 1; j++)
		{
			batch_text.data[i] = bytes[j];
			if (decode_batch(batch_text.data, batch_text.len, &batch, &chunk,
							 &why))
			{
				for (int k = 0; k < batch.nitems; k++)
				{
					TpcWire    *item = &batch.items[k].wire;
					TpcMessage	back;

					if (tpc_message_decode_envelope(item, &back, &why) &&
						tpc_message_decode_body(item->body.ptr,
												item->body.len, &back, &why))
						tpc_message_free_body(&back);
				}
				tpc_message_free_batch(&batch);
			}
			free(chunk);
		}
		batch_text.data[i] = saved;
	}
	ok(true, "batch: every byte replaced");
	pfree(batch_text.data);
	pfree(body.data);
}

static void
test_batches(void)
{
	TpcBatch	batch;
	TpcWire		wire = make_wire("batch");
	StringInfoData text;
	const char *why;

	/* The whole of it is wrong. */
	wire.body = slice("[" COMMIT_ITEM "]");
	wire.app_id = slice("another");
	ok(!tpc_message_decode_batch(&wire, &batch, &why) && batch.nitems == 0,
	   "batch: of another application");
	wire = make_wire("batch");
	wire.body = slice("[" COMMIT_ITEM "]");
	wire.version = TPC_PROTOCOL_VERSION + 1;
	ok(!tpc_message_decode_batch(&wire, &batch, &why) && batch.nitems == 0,
	   "batch: of another version");
	rejects_batch("", "body is empty", "batch: no body");
	rejects_batch("[]", "a batch is empty", "batch: nothing in it");
	rejects_batch("{}", "body is not a JSON array", "batch: an object");
	rejects_batch(COMMIT_ITEM, "body is not a JSON array",
				  "batch: a message that is in no array");
	rejects_batch("null", "body is not a JSON array", "batch: null");
	rejects_batch("[null]", NULL, "batch: of null");
	rejects_batch("[" COMMIT_ITEM ",]", NULL, "batch: a comma too many");
	rejects_batch("[" COMMIT_ITEM " " COMMIT_ITEM "]", NULL,
				  "batch: a comma too few");
	rejects_batch("[" COMMIT_ITEM "]]", NULL, "batch: something after it");
	rejects_batch("[" COMMIT_ITEM, NULL, "batch: not closed");
	rejects_batch("[[" COMMIT_ITEM "]]", NULL, "batch: an array in it");
	rejects_batch("[{\"gtid\":\"" GTID "\",\"body\":{}}]",
				  "field \"type\" is missing", "batch: no type");
	rejects_batch("[{\"type\":\"commit\",\"body\":{}}]",
				  "field \"gtid\" is missing", "batch: no gtid");
	rejects_batch("[{\"type\":\"commit\",\"type\":\"commit\",\"gtid\":\""
				  GTID "\"}]",
				  "field \"type\" is repeated", "batch: two types");
	rejects_batch("[{\"type\":1,\"gtid\":\"" GTID "\"}]",
				  "field \"type\" is malformed", "batch: type is a number");
	rejects_batch("[{\"type\":\"commit\",\"gtid\":[\"" GTID "\"]}]",
				  "field \"gtid\" is malformed", "batch: gtid is an array");
	rejects_batch("[{\"type\":\"prepare\",\"gtid\":\"" GTID "\","
				  "\"timeout\":\"10\",\"body\":{\"calls\":[]}}]",
				  "field \"timeout\" is malformed",
				  "batch: timeout is a string");
	rejects_batch("[{\"type\":\"commit\",\"gtid\":\"" GTID "\","
				  "\"body\":[]}]",
				  "field \"body\" is malformed", "batch: body is an array");
	rejects_batch("[{\"type\":\"commit\",\"gtid\":\"" GTID "\","
				  "\"body\":{}{}}]", NULL, "batch: two bodies");
	rejects_batch("[{\"type\":\"commit\",\"gtid\":\"" GTID "\","
				  "\"body\":{\"a\":nothing}}]", NULL,
				  "batch: a body with a word that is none");
	rejects_batch_len("[" COMMIT_ITEM "]", strlen(COMMIT_ITEM) + 3,
					  "body is not valid UTF-8", "batch: a NUL after it");
	rejects_batch("[{\"type\":\"\\u0000\",\"gtid\":\"" GTID "\"}]", NULL,
				  "batch: an escaped NUL in the type");

	/* One of its messages is wrong. */
	splits_batch("[" COMMIT_ITEM "]", "+", "batch: of one");
	splits_batch(" [ " COMMIT_ITEM " , " COMMIT_ITEM " ] ", "++",
				 "batch: of two that are the same");
	splits_batch("[{\"gtid\":\"" GTID "\",\"x\":[1,{}],\"type\":\"rollback\"},"
				 "{\"type\":\"unknown\",\"gtid\":\"" GTID "\",\"body\":null}]",
				 "++", "batch: without bodies, with an unknown field");
	splits_batch("[{\"type\":\"comm\\u0069t\",\"gtid\":\"" GTID "\"}]", "+",
				 "batch: an escape in the type");
	splits_batch("[{\"type\":\"batch\",\"gtid\":\"" GTID "\",\"body\":{}},"
				 COMMIT_ITEM "]", "-+", "batch: a batch in it");
	splits_batch("[" COMMIT_ITEM ",{\"type\":\"a type that is none at all\","
				 "\"gtid\":\"" GTID "\"}," COMMIT_ITEM "]", "+-+",
				 "batch: an unknown type in it");
	splits_batch("[{\"type\":\"commit\",\"gtid\":\"glob/" UUID "\"},"
				 "{\"type\":\"commit\",\"gtid\":\"\"},"
				 COMMIT_ITEM "]", "--+", "batch: gtids that are not good");
	splits_batch("[{\"type\":\"vote\",\"gtid\":\"" GTID "\","
				 "\"body\":{\"vote\":\"maybe\"}},"
				 "{\"type\":\"vote\",\"gtid\":\"" GTID "\","
				 "\"body\":{\"vote\":\"\\ud800\"}},"
				 "{\"type\":\"vote\",\"gtid\":\"" GTID "\","
				 "\"body\":{\"vote\":\"yes\",\"x\":[}]},"
				 "{\"type\":\"vote\",\"gtid\":\"" GTID "\","
				 "\"body\":{\"vote\":\"yes\"}}]", "---+",
				 "batch: bodies that are not good");
	for (int i = 0; i < 6; i++)
	{
		static const char *const timeouts[] = {
			"1", "1073741823", "0", "-1", "1e3", "1073741824"
		};

		splits_batch(format("[{\"type\":\"prepare\",\"gtid\":\"" GTID "\","
							"\"timeout\":%s,\"body\":{\"calls\":[]}}]",
							timeouts[i]), i < 2 ? "+" : "-",
					 format("batch: a timeout of %s", timeouts[i]));
	}
	splits_batch("[{\"type\":\"prepare\",\"gtid\":\"" GTID "\","
				 "\"body\":{\"calls\":[]}}]", "-",
				 "batch: a prepare without a timeout");

	/* Too much of it. */
	initStringInfo(&text);
	for (int n = TPC_BATCH_MAX_ITEMS; n <= TPC_BATCH_MAX_ITEMS + 1; n++)
	{
		char		goods[TPC_BATCH_MAX_ITEMS + 1];

		memset(goods, '+', TPC_BATCH_MAX_ITEMS);
		goods[TPC_BATCH_MAX_ITEMS] = '\0';
		resetStringInfo(&text);
		for (int i = 0; i < n; i++)
			appendStringInfoString(&text, i == 0 ? "[" COMMIT_ITEM :
								   "," COMMIT_ITEM);
		appendStringInfoChar(&text, ']');
		if (n == TPC_BATCH_MAX_ITEMS)
			splits_batch(text.data, goods,
						 "batch: as many messages as allowed");
		else
			rejects_batch(text.data, "too many messages in one batch",
						  "batch: one message too many");
	}
	for (int extra = 0; extra <= 1; extra++)
	{
		resetStringInfo(&text);
		appendStringInfoString(&text, "[" COMMIT_ITEM "]");
		while (text.len < TPC_BATCH_MAX_BYTES + extra)
			appendStringInfoChar(&text, ' ');
		if (extra == 0)
			splits_batch(text.data, "+", "batch: as long as allowed");
		else
			rejects_batch(text.data, "body is too long",
						  "batch: one byte too long");
	}

	/* What is nested too deeply in one message is its own concern. */
	for (int extra = 0; extra <= 1; extra++)
	{
		resetStringInfo(&text);
		appendStringInfoString(&text, "[{\"type\":\"prepare\",\"gtid\":\"" GTID
							   "\",\"timeout\":1,\"body\":{\"calls\":["
							   "{\"handler\":\"h\",\"arg\":");
		for (int i = 0; i < TPC_JSON_MAX_DEPTH + extra; i++)
			appendStringInfoChar(&text, '[');
		for (int i = 0; i < TPC_JSON_MAX_DEPTH + extra; i++)
			appendStringInfoChar(&text, ']');
		appendStringInfoString(&text, "}]}}," COMMIT_ITEM "]");
		splits_batch(text.data, extra == 0 ? "++" : "-+",
					 format("batch: an argument nested %d deep",
							TPC_JSON_MAX_DEPTH + extra));
	}
	resetStringInfo(&text);
	appendStringInfoString(&text, "[{\"type\":\"commit\",\"gtid\":\"" GTID
						   "\",\"body\":{\"a\":");
	while (text.len < TPC_BATCH_MAX_BYTES)
		appendStringInfoChar(&text, '[');
	rejects_batch(text.data, "field \"body\" is malformed",
				  "batch: a body of nothing but brackets");
	pfree(text.data);
}

int
main(void)
{
	test_gtid();
	test_envelope();
	test_round_trips();
	test_encoding();
	test_votes();
	test_acks();
	test_empty_bodies();
	test_grammar();
	test_prepares();
	test_sizes();
	test_bytes();
	test_batch_round_trip();
	test_batches();
	return done_testing();
}
