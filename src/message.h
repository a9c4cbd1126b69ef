/*-------------------------------------------------------------------------
 *
 * message.h
 *	  The messages nodes exchange, as structs, and their wire form.
 *
 * Pure: bytes in, struct out, and back.  It does no I/O and touches no shared
 * memory.  Everything decoded is hostile until it has been through here.
 * doc/protocol.md describes the same format field by field.
 *
 * The wire is UTF-8, and so is every string here, whatever the database's
 * encoding: converting is the caller's concern.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_MESSAGE_H
#define TPC_MESSAGE_H

#include <limits.h>

#include "lib/stringinfo.h"

#include "gtid.h"

#define TPC_PROTOCOL_VERSION 1
#define TPC_APP_ID "tpc_amqp"
#define TPC_HANDLER_MAXLEN 63
#define TPC_USER_MAXLEN 127		/* a broker user's name */
#define TPC_MAX_CALLS 10000		/* in one prepare */
#define TPC_TIMEOUT_MAX_MS (INT_MAX / 2)	/* of a prepare */

/* Of a batch: how many messages, and the length of its body. */
#define TPC_BATCH_MAX_ITEMS 64
#define TPC_BATCH_MAX_BYTES 65536
/* What each takes besides its body, at most. */
#define TPC_BATCH_ITEM_OVERHEAD (TPC_GTID_TEXT_SIZE + 80)

/* Where the texts of an error are cut, in bytes, without the final zero. */
#define TPC_ERROR_MESSAGE_MAXLEN 1024
#define TPC_ERROR_DETAIL_MAXLEN 4096
#define TPC_ERROR_HINT_MAXLEN 1024
#define TPC_ERROR_CONTEXT_MAXLEN 4096

/* Of what a handler returns, so much of each call travels, and of all. */
#define TPC_RESULT_MAXLEN 1024
#define TPC_RESULTS_MAXLEN 8192

/* A piece of text that is not zero-terminated; ptr NULL when absent. */
typedef struct TpcSlice
{
	const char *ptr;
	size_t		len;
} TpcSlice;

/* tpc_slice: all of a zero-terminated text. */
static inline TpcSlice
tpc_slice(const char *text)
{
	TpcSlice	slice = {text, strlen(text)};

	return slice;
}

/*
 * What the broker layer hands over: the AMQP properties and headers this
 * protocol uses, and the body.  Slices point into memory of the broker layer
 * (incoming) or of the caller (outgoing).
 */
typedef struct TpcWire
{
	TpcSlice	type;			/* property type */
	TpcSlice	correlation_id; /* property correlation_id: the gtid */
	TpcSlice	reply_to;		/* property reply_to: a queue */
	TpcSlice	app_id;			/* property app_id */
	TpcSlice	user_id;		/* property user_id, checked by the broker */
	TpcSlice	expiration;		/* property expiration: milliseconds */
	TpcSlice	content_type;	/* property content_type */
	bool		has_version;
	int64		version;		/* header tpc-version, any integer type */
	TpcSlice	from;			/* header tpc-from: sending node */
	TpcSlice	floor;			/* header tpc-floor: uuid */
	TpcSlice	body;
} TpcWire;

typedef enum TpcMessageType
{
	TPC_MSG_PREPARE,			/* C1: coordinator -> participant.prepare */
	TPC_MSG_COMMIT,				/* C5: coordinator -> participant.decision */
	TPC_MSG_ROLLBACK,			/* coordinator -> participant.decision */
	TPC_MSG_UNKNOWN,			/* coordinator -> participant.decision: the
								 * coordinator cannot tell; a person must */
	TPC_MSG_VOTE,				/* P4: participant -> coordinator.vote */
	TPC_MSG_ACK,				/* P7: participant -> coordinator.vote */
	TPC_MSG_INQUIRY,			/* participant -> coordinator.vote: prepared,
								 * what became of it?  Counts as a yes. */
	TPC_MSG_REQUEST				/* enlisted participant -> coordinator.vote:
								 * the application asks, here, for commit or
								 * rollback.  Counts as an inquiry, too. */
} TpcMessageType;

typedef enum TpcVote
{
	TPC_VOTE_YES,
	TPC_VOTE_NO,
	TPC_VOTE_READ_ONLY
} TpcVote;

/* What an acknowledgement says happened to the branch. */
typedef enum TpcAckOutcome
{
	TPC_ACK_COMMITTED,
	TPC_ACK_ROLLED_BACK,		/* heuristic: rolled back by force */
	TPC_ACK_LOST				/* no branch, no record of one */
} TpcAckOutcome;

/* One call of a prepare; strings are zero-terminated. */
typedef struct TpcCallItem
{
	char	   *handler;
	char	   *arg;			/* JSON text */
	size_t		arg_len;
} TpcCallItem;

/* An error as it travels; strings NULL when absent, sqlstate "" when so. */
typedef struct TpcRemoteError
{
	char		sqlstate[6];
	char	   *message;
	char	   *detail;
	char	   *hint;
	char	   *context;
} TpcRemoteError;

typedef struct TpcMessage
{
	TpcMessageType type;
	TpcGlobalId id;
	char		from[TPC_NODE_SIZE];
	char		user_id[TPC_USER_MAXLEN + 1];	/* "" if absent */
	bool		has_floor;		/* never in what a participant sends */
	TpcGtid		floor;			/* the coordinator's */
	bool		own_queues;		/* vote, ack, inquiry, request: wants what
								 * follows in the transaction's own queues */
	/* prepare */
	int			timeout_ms;
	int			ncalls;
	TpcCallItem *calls;
	bool		must_prepare;	/* also if it wrote nothing */
	/* vote */
	TpcVote		vote;
	int			nresults;		/* yes, read-only: of the calls, in their */
	char	  **results;		/* order; NULL for one without a result */
	TpcRemoteError error;		/* no-vote; also ack and unknown: reason in
								 * message */
	/* rollback */
	bool		forgotten;		/* there is no record of it, but there may
								 * have been one, which all have acknowledged */
	/* ack */
	TpcAckOutcome outcome;
	bool		forced;			/* a person forced it */
	/* request */
	bool		wants_commit;	/* else rollback */
} TpcMessage;

/* Where tpc_message_fill_wire() writes the text forms it makes. */
typedef struct TpcWireScratch
{
	char		gtid[TPC_GTID_TEXT_SIZE];
	char		floor[TPC_UUID_TEXT_SIZE];
	char		expiration[12];
	char		reply_to[TPC_NODE_SIZE + 32];
} TpcWireScratch;

/*
 * One message of a batch, as the message of its own that it stands for: what
 * all of a batch have in common is copied from the batch.  Slices point there,
 * or into this.
 */
typedef struct TpcBatchItem
{
	TpcWire		wire;
	char		type[16];		/* "" if longer, which no type is */
	char		gtid[TPC_GTID_TEXT_SIZE];	/* the same */
} TpcBatchItem;

typedef struct TpcBatch
{
	int			nitems;
	TpcBatchItem *items;
} TpcBatch;

/*
 * Encoding: tpc_message_fill_wire() for the properties and headers, and for
 * the body, which it leaves empty, either tpc_message_encode_body() or, where
 * a prepare grows call by call, begin_calls/add_call/end_calls.  The bodies
 * are appended.
 *
 * Strings should be UTF-8; bytes that are not become '?', so that what is
 * sent can always be decoded.  Only an argument is copied as it is: it has to
 * be JSON in UTF-8 already.
 */
extern void tpc_message_fill_wire(const TpcMessage *msg, TpcWire *wire,
								  TpcWireScratch *scratch);
extern void tpc_message_begin_calls(StringInfo body);
extern void tpc_message_add_call(StringInfo body, const char *handler,
								 const char *arg, size_t arg_len);
extern void tpc_message_end_calls(StringInfo body, bool must_prepare);
extern void tpc_message_encode_body(const TpcMessage *msg, StringInfo body);

/*
 * Several messages in one: begin_batch, add_to_batch for each, end_batch.  The
 * wire is that of one of them, filled as above; the timeout and the floor in
 * it count for the batch.
 */
extern void tpc_message_begin_batch(StringInfo batch);
extern int	tpc_message_add_to_batch(StringInfo batch, const TpcMessage *msg,
									 const char *body, size_t len);
extern void tpc_message_end_batch(StringInfo batch, TpcWire *wire);

extern const char *tpc_message_type_name(TpcMessageType type);

/*
 * Decoding in two steps, so that the messenger can route a prepare by its
 * envelope without parsing its body: the envelope sets msg->type and clears
 * the fields of the body; the body is parsed as msg->type says.  Both return
 * true, or false with *why set to a constant string and *msg in an
 * unspecified state that owns nothing; neither raises an error of its own
 * (out of memory is not its own).  palloc'd results live in the current
 * context; tpc_message_free_body() is for who has no context to reset.
 */
extern bool tpc_message_decode_envelope(const TpcWire *wire, TpcMessage *msg,
										const char **why);
extern bool tpc_message_decode_body(const char *body, size_t len,
									TpcMessage *msg, const char **why);
extern void tpc_message_free_body(TpcMessage *msg);

/*
 * A batch is taken apart first; then each item's wire is decoded as any other
 * message is, and one that is bad does not spoil the rest.  A batch within a
 * batch is bad: its type is none a message of its own can have.
 */
extern bool tpc_message_is_batch(const TpcWire *wire);
extern bool tpc_message_decode_batch(const TpcWire *wire, TpcBatch *batch,
									 const char **why);
extern void tpc_message_free_batch(TpcBatch *batch);

#endif							/* TPC_MESSAGE_H */
