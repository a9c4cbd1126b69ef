/*-------------------------------------------------------------------------
 *
 * samples.c
 *	  Valid messages of each type, for seeds to be made of.
 *
 * They come from the encoder, but for those that only another program would
 * write.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"

#include "samples.h"

static TpcMessage
message(TpcMessageType type)
{
	TpcMessage	msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = type;
	strcpy(msg.id.coordinator, "blog");
	msg.id.gtid.incarnation = UINT64CONST(0x123456789abcdef);
	msg.id.gtid.sequence = UINT64CONST(0x0fedcba987654321);
	strcpy(msg.from, type == TPC_MSG_PREPARE || type == TPC_MSG_COMMIT ||
		   type == TPC_MSG_ROLLBACK || type == TPC_MSG_UNKNOWN ?
		   "blog" : "reviews");
	strcpy(msg.user_id, "guest");
	msg.floor.incarnation = msg.id.gtid.incarnation;
	msg.floor.sequence = 7;
	msg.has_floor = strcmp(msg.from, "blog") == 0;
	if (type == TPC_MSG_PREPARE)
		msg.timeout_ms = 10000;
	return msg;
}

static void
give(const char *name, const TpcMessage *msg,
	 void (*use) (const char *, const TpcWire *))
{
	TpcWire		wire;
	TpcWireScratch scratch;
	StringInfoData body;

	tpc_message_fill_wire(msg, &wire, &scratch);
	initStringInfo(&body);
	tpc_message_encode_body(msg, &body);
	wire.body.ptr = body.data;
	wire.body.len = body.len;
	use(name, &wire);
	pfree(body.data);
}

/* The envelope of such a message with another body. */
static void
give_body(const char *name, TpcMessageType type, const char *body,
		  void (*use) (const char *, const TpcWire *))
{
	TpcMessage	msg = message(type);
	TpcWire		wire;
	TpcWireScratch scratch;

	tpc_message_fill_wire(&msg, &wire, &scratch);
	wire.body.ptr = body;
	wire.body.len = strlen(body);
	use(name, &wire);
}

static void
give_batch(const char *name, TpcMessageType type, int n,
		   void (*use) (const char *, const TpcWire *))
{
	TpcMessage	msg = message(type);
	TpcWire		wire;
	TpcWireScratch scratch;
	StringInfoData batch;
	const char *body = type == TPC_MSG_PREPARE ?
	"{\"calls\":[{\"handler\":\"count\",\"arg\":null}]}" : "{}";

	initStringInfo(&batch);
	tpc_message_begin_batch(&batch);
	for (int i = 0; i < n; i++)
	{
		(void) tpc_message_add_to_batch(&batch, &msg, body, strlen(body));
		msg.id.gtid.sequence++;
	}
	tpc_message_fill_wire(&msg, &wire, &scratch);
	tpc_message_end_batch(&batch, &wire);
	wire.body.ptr = batch.data;
	wire.body.len = batch.len;
	use(name, &wire);
	pfree(batch.data);
}

void
for_each_sample(void (*use) (const char *name, const TpcWire *wire))
{
	TpcMessage	msg;
	TpcCallItem calls[2] = {
		{"add_review", "{\"blog_id\": 1, \"t\": [true, null, -1.5e3]}", 0},
		{"z\xc3\xa4hle \"\\", "\"\\u00e4\\ud83d\\ude00\\n\"", 0}
	};
	char	   *results[3] = {"{\"n\": 1}", NULL, "\xe2\x82\xac \t\x01"};

	for (size_t i = 0; i < lengthof(calls); i++)
		calls[i].arg_len = strlen(calls[i].arg);

	msg = message(TPC_MSG_PREPARE);
	give("prepare-empty", &msg, use);
	msg.calls = calls;
	msg.ncalls = lengthof(calls);
	msg.must_prepare = true;
	give("prepare", &msg, use);

	msg = message(TPC_MSG_COMMIT);
	give("commit", &msg, use);
	msg = message(TPC_MSG_ROLLBACK);
	give("rollback", &msg, use);
	msg.forgotten = true;
	give("rollback-forgotten", &msg, use);
	msg = message(TPC_MSG_UNKNOWN);
	msg.error.message = "restored";
	give("unknown", &msg, use);
	msg = message(TPC_MSG_INQUIRY);
	give("inquiry", &msg, use);
	msg = message(TPC_MSG_REQUEST);
	msg.wants_commit = true;
	give("request", &msg, use);

	msg = message(TPC_MSG_VOTE);
	msg.vote = TPC_VOTE_YES;
	give("vote-yes", &msg, use);
	msg.results = results;
	msg.nresults = lengthof(results);
	give("vote-results", &msg, use);
	msg.vote = TPC_VOTE_READ_ONLY;
	give("vote-read-only", &msg, use);
	msg = message(TPC_MSG_VOTE);
	msg.vote = TPC_VOTE_NO;
	strcpy(msg.error.sqlstate, "23505");
	msg.error.message = "duplicate key";
	msg.error.detail = "Key (id)=(1) already exists.";
	msg.error.hint = "none";
	msg.error.context = "SQL function \"f\" statement 1";
	give("vote-no", &msg, use);

	msg = message(TPC_MSG_ACK);
	msg.outcome = TPC_ACK_COMMITTED;
	give("ack", &msg, use);
	msg.outcome = TPC_ACK_ROLLED_BACK;
	msg.forced = true;
	msg.error.message = "by operator ann";
	give("ack-forced", &msg, use);

	give_body("unknown-fields", TPC_MSG_COMMIT,
			  "{\"x\":[[],{},{\"y\":[1,\"\\u0041\"]}],\"z\":\"\\\\\"}", use);
	give_body("escaped-name", TPC_MSG_VOTE,
			  "{ \"\\u0076ote\" :\n\"read-\\u006fnly\", \"error\":null }", use);
	give_body("error-cut", TPC_MSG_VOTE,
			  "{\"vote\":\"no\",\"error\":{\"sqlstate\":\"00000\",\"message\":null}}",
			  use);

	give_batch("batch-commit", TPC_MSG_COMMIT, 1, use);
	give_batch("batch-prepare", TPC_MSG_PREPARE, 3, use);
	give_batch("batch-full", TPC_MSG_INQUIRY, TPC_BATCH_MAX_ITEMS, use);
}
