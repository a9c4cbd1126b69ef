/*-------------------------------------------------------------------------
 *
 * broker_private.h
 *	  What broker.c and channel.c share: a connection from the inside.
 *
 * Nobody else includes this, nor librabbitmq's headers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_BROKER_PRIVATE_H
#define TPC_BROKER_PRIVATE_H

#include <openssl/ssl.h>

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#include "broker.h"

#define CHANNEL 1				/* that of the protocol between nodes */

/* A frame: type, channel, size of payload, payload, end. */
#define FRAME_HEAD 7
#define FRAME_TAIL 1
#define FRAME_EXTRA (FRAME_HEAD + FRAME_TAIL)
#define FRAME_MAX 131072		/* what we ask for; RabbitMQ's default */
#define FRAME_MIN_MAX 4096		/* what the protocol guarantees */

/* Content header: class, weight, size of body; then the properties. */
#define CONTENT_HEAD 12

/*
 * Headers longer than this are not looked at.  Ours are below 2 kB; decoding
 * recurses once per five bytes of nested tables, which in a full frame is
 * megabytes of stack.
 */
#define HEADER_LIMIT 16384

/* No method sent from here is longer, nor are our properties. */
#define METHOD_MAX 1024
#define PROPERTIES_MAX 3072
#define SHORTSTR_MAX 255

#define IN_SIZE (2 * FRAME_MAX)
#define IN_LIMIT (64 * 1024 * 1024) /* a flush stops reading here */
#define READ_MIN 16384
#define OUT_SIZE (64 * 1024)
#define OUT_FLUSH (256 * 1024)	/* publish flushes from here on */
#define KEEP_SIZE (1024 * 1024) /* larger buffers are shrunk when empty */

#define EVENT_BUDGET (4 * 1024 * 1024)	/* read without an event to show */

#define CLOSE_TIMEOUT_MS 500
#define SEND_TIMEOUT_S 5		/* at least; or the heartbeat */
#define SEND_TIMEOUT_INTERRUPTED_MS 1000
#define SEND_RATE 64			/* bytes per ms a broker must take at least */
#define KEEPALIVE_S 60
#define IDLE_WAIT_MS 60000
#define RETRY_WAIT_MS 100

#define TPC_CHANNEL_MAX 1023	/* what we ask for */

/* A frame within the input buffer. */
typedef struct Frame
{
	uint8		type;
	uint16		channel;
	const char *payload;
	size_t		size;
} Frame;

/* A message that is coming in, frame by frame. */
typedef struct Content
{
	enum
	{
		EXPECT_METHOD,
		EXPECT_HEADER,
		EXPECT_BODY
	}			expect;
	bool		returned;		/* basic.return, else basic.deliver */
	bool		skip;			/* body is not stored */
	TpcQueueKind queue;
	TpcSlice	call_kind;
	uint64		delivery_tag;
	bool		redelivered;
	TpcSlice	routing_key;
	TpcSlice	reply_text;
	TpcWire		wire;			/* slices point to text */
	uint64		remaining;		/* of the body, bytes to come */
	StringInfoData body;
	size_t		text_len;
	char		text[12 * SHORTSTR_MAX];
} Content;

struct TpcBroker
{
	MemoryContext context;
	amqp_connection_state_t conn;
	int			fd;				/* the library's; -1 before it is known */
	SSL		   *ssl;			/* the library's; NULL without TLS */
	long		verify_result;	/* of the broker's certificate */
	char		node[TPC_NODE_SIZE];
	size_t		frame_max;
	size_t		max_body;
	int64		heartbeat_ms;	/* 0: none */

	const char *phase;			/* for errors */
	bool		opened;			/* tpc_broker_open() has succeeded */
	bool		lost;			/* error is set; no further use */
	bool		dead;			/* nor is the socket good for a goodbye */
	TpcBrokerError error;
	char		io_text[256];	/* why sock_recv() or sock_send() failed */

	char	   *in;
	size_t		in_size;
	size_t		in_start;		/* first byte not yet dispatched */
	size_t		in_end;
	bool		drained;		/* nothing to dispatch, nothing to read */
	bool		emptied;		/* the last read left nothing in the socket */
	int			read_needs;		/* WL_SOCKET_*: TLS may have to write in */
	int			write_needs;	/* order to read, and the reverse */

	char	   *out;
	size_t		out_size;
	size_t		out_start;		/* first byte not yet sent */
	size_t		out_end;

	int64		last_recv;		/* ms */
	int64		next_beat;		/* ms; when to send a heartbeat */

	amqp_pool_t pool;			/* of what is being decoded */
	Content		content;		/* on the protocol's channel */
	bool		only_channels;	/* others have the protocol */
	int			nchannels;		/* highest number there may be */
	struct TpcChannel **channels;	/* by number; see channel.c */
	int			channels_size;
	char		kinds[TPC_MAX_KINDS][TPC_KIND_SIZE];	/* "": none */
	bool		blocked_held;	/* a BLOCKED to report first */
	char		blocked_text[SHORTSTR_MAX + 1];

	uint64		published;
	uint64		writes;
};

/* broker.c */
extern void tpc_broker_lose(TpcBroker *b, int sqlstate, int reply_code,
							const char *fmt,...) pg_attribute_printf(4, 5);
extern void tpc_broker_lose_protocol(TpcBroker *b, const char *what);
extern void tpc_broker_copy_text(char *dst, size_t size, amqp_bytes_t src);
extern int	tpc_broker_reply_sqlstate(TpcBroker *b, int code,
									  const char *text);
extern uint32 tpc_broker_method_id(const Frame *f);
extern void *tpc_broker_decode_method(TpcBroker *b, const Frame *f);
extern char *tpc_broker_out_reserve(TpcBroker *b, size_t n);
extern void tpc_broker_finish_frame(TpcBroker *b, char *p, uint8 type,
									uint16 channel, size_t size);
extern bool tpc_broker_put_method(TpcBroker *b, uint16 channel, uint32 id,
								  void *decoded);
extern bool tpc_broker_put_long_method(TpcBroker *b, uint16 channel,
									   uint32 id, void *decoded, size_t room);
extern bool tpc_broker_put_body(TpcBroker *b, uint16 channel,
								const char *body, size_t len);

/* channel.c */
extern bool tpc_channel_dispatch(TpcBroker *b, const Frame *f,
								 TpcBrokerEvent *event);

#endif							/* TPC_BROKER_PRIVATE_H */
