/*-------------------------------------------------------------------------
 *
 * broker_fuzz.c
 *	  Fuzz target: bytes as what a broker sends after login, up to messages.
 *
 * broker.c is included rather than linked: the target makes a connection in
 * the state that login leaves it in, and stands for the system's socket and
 * clock, so that nothing is sent anywhere and nothing takes time.  What it
 * uses of the server is below, as far as it does.
 *
 * The first byte of the input says in what pieces the rest arrives.  What
 * comes out as an event goes on to the codec, as the messenger would have it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static ssize_t fuzz_recv(int fd, void *buf, size_t len, int flags);
static ssize_t fuzz_send(int fd, const void *buf, size_t len, int flags);
static int	fuzz_clock(clockid_t id, struct timespec *ts);

#define recv fuzz_recv
#define send fuzz_send
#define clock_gettime fuzz_clock
#include "broker.c"
#define keep keep_of_channel
#include "channel.c"
#undef keep
#undef recv
#undef send
#undef clock_gettime

#include "codec_check.h"
#include "fuzz.h"

#define MAX_BODY 20000			/* so that there are oversized ones, too */

static const uint8_t *input;
static size_t input_left;
static size_t piece;			/* so much arrives at a time; 0: all */
static bool paused;				/* between two pieces */
static int64 clock_ms;

/*
 * The system
 */

static ssize_t
fuzz_recv(int fd, void *buf, size_t len, int flags)
{
	size_t		n = Min(len, input_left);

	if (piece > 0 && input_left > 0)
	{
		paused = !paused;
		if (paused)
		{
			errno = EAGAIN;
			return -1;
		}
		n = Min(n, piece);
	}
	memcpy(buf, input, n);
	input += n;
	input_left -= n;
	return n;					/* 0: the broker has closed the connection */
}

static ssize_t
fuzz_send(int fd, const void *buf, size_t len, int flags)
{
	/* read all of it, for a sanitizer to see */
	for (size_t i = 0; i < len; i++)
		clock_ms += ((const char *) buf)[i] & 1;
	return len;
}

static int
fuzz_clock(clockid_t id, struct timespec *ts)
{
	clock_ms++;
	ts->tv_sec = clock_ms / 1000;
	ts->tv_nsec = clock_ms % 1000 * 1000000;
	return 0;
}

/*
 * The server.  There are two contexts: that of the connection, what is in it
 * goes with it; and the one around it, for the rest.
 */

typedef struct Chunk
{
	struct Chunk *next;
	struct Chunk *prev;
	MemoryContext context;
} Chunk;

static Chunk chunks = {&chunks, &chunks, NULL};
static int	top_context;
static int	connection_context;

MemoryContext CurrentMemoryContext = (MemoryContext) &top_context;
MemoryContext TopMemoryContext = (MemoryContext) &top_context;

static void *
link_chunk(Chunk *chunk, MemoryContext context)
{
	if (chunk == NULL)
		abort();
	chunk->context = context;
	chunk->next = &chunks;
	chunk->prev = chunks.prev;
	chunk->prev->next = chunk;
	chunks.prev = chunk;
	return chunk + 1;
}

static Chunk *
unlink_chunk(void *p)
{
	Chunk	   *chunk = (Chunk *) p - 1;

	chunk->next->prev = chunk->prev;
	chunk->prev->next = chunk->next;
	return chunk;
}

void *
palloc(Size size)
{
	return link_chunk(malloc(sizeof(Chunk) + size), CurrentMemoryContext);
}

void *
palloc0(Size size)
{
	return link_chunk(calloc(1, sizeof(Chunk) + size), CurrentMemoryContext);
}

void *
repalloc(void *p, Size size)
{
	Chunk	   *chunk = unlink_chunk(p);
	MemoryContext context = chunk->context;

	return link_chunk(realloc(chunk, sizeof(Chunk) + size), context);
}

void *
repalloc_huge(void *p, Size size)
{
	return repalloc(p, size);
}

void
pfree(void *p)
{
	free(unlink_chunk(p));
}

char *
pstrdup(const char *s)
{
	return strcpy(palloc(strlen(s) + 1), s);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name,
							  Size min, Size initial, Size max)
{
	return (MemoryContext) &connection_context;
}

void
MemoryContextDelete(MemoryContext context)
{
	Chunk	   *next;

	for (Chunk *chunk = chunks.next; chunk != &chunks; chunk = next)
	{
		next = chunk->next;
		if (chunk->context == context)
			pfree(chunk + 1);
	}
}

/* Time passes instead. */
int
WaitLatchOrSocket(Latch *latch, int events, pgsocket sock, long timeout,
				  uint32 wait_event)
{
	clock_ms += timeout;
	return 0;
}

/* For connecting, which is not fuzzed. */
TimeoutId
RegisterTimeout(TimeoutId id, timeout_handler_proc handler)
{
	return id;
}

void
enable_timeout_after(TimeoutId id, int ms)
{
}

void
disable_timeout(TimeoutId id, bool keep_indicator)
{
}

/* For assertions of the server's headers, if they are on. */
void
#if PG_VERSION_NUM >= 160000
ExceptionalCondition(const char *condition, const char *file, int line)
#else
ExceptionalCondition(const char *condition, const char *type,
					 const char *file, int line)
#endif
{
	fprintf(stderr, "%s:%d: %s\n", file, line, condition);
	abort();
}

/* A connection in the state in which tpc_broker_open() returns it. */
static TpcBroker *
connected(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "broker",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TpcBroker  *b = palloc0(sizeof(TpcBroker));

	b->context = context;
	b->fd = 1000000;			/* none */
	b->phase = "connection";
	b->opened = true;
	b->frame_max = FRAME_MAX;
	b->nchannels = 5;
	b->heartbeat_ms = 60000;
	tpc_broker_set_max_body(b, MAX_BODY);
	b->read_needs = WL_SOCKET_READABLE;
	b->write_needs = WL_SOCKET_WRITEABLE;
	b->in_size = IN_SIZE;
	b->in = palloc(b->in_size);
	b->out_size = OUT_SIZE;
	b->out = palloc(b->out_size);
	strlcpy(b->node, "blog", sizeof(b->node));
	initStringInfo(&b->content.body);
	MemoryContextSwitchTo(old);
	init_amqp_pool(&b->pool, 4096);
	b->last_recv = now_ms();
	b->next_beat = b->last_recv + b->heartbeat_ms / 2;
	return b;
}

/* What the owner of one of the other channels would do. */
static void
user_event(TpcBroker *b, const TpcBrokerEvent *event)
{
	if (event->owner != &input && event->owner != &piece)
		abort();
	if (event->body.ptr != NULL && event->body.len > MAX_BODY)
		abort();
	switch (event->kind)
	{
		case TPC_EVENT_MESSAGE:
			(void) tpc_channel_settle(b, event->channel, event->delivery_tag,
									  event->multiple, TPC_SETTLE_ACK);
			break;
		case TPC_EVENT_RETURNED:
			if (event->body.ptr != NULL)
				(void) tpc_channel_publish(b, event->channel,
										   &event->exchange,
										   &event->routing_key,
										   &event->properties, &event->body,
										   true);
			break;
		case TPC_EVENT_CANCELLED:
			tpc_channel_close(b, event->channel);
			break;
		case TPC_EVENT_CHANNEL_CLOSED:
			(void) tpc_channel_open(b, event->owner, true);
			break;
		default:
			break;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const size_t pieces[] = {0, 1, 7, 4096};
	TpcBroker  *b;
	TpcBrokerEvent event;

	if (size == 0)
		return 0;
	piece = pieces[data[0] % lengthof(pieces)];
	input = data + 1;
	input_left = size - 1;
	paused = false;
	clock_ms = 1;

	b = connected();
	(void) tpc_channel_open(b, &input, true);
	(void) tpc_channel_open(b, &piece, false);
	for (;;)
	{
		/* it may have nothing now, but never for ever */
		if (!tpc_broker_next_event(b, &event))
			continue;
		if (event.kind == TPC_EVENT_CLOSED)
			break;
		if (event.kind == TPC_EVENT_DELIVERY)
		{
			if (event.wire.body.len > MAX_BODY)
				abort();
			codec_check(&event.wire);
			(void) tpc_broker_ack(b, event.queue, event.delivery_tag, false);
		}
		else if (event.kind == TPC_EVENT_OVERSIZED)
		{
			if (event.wire.body.ptr != NULL)
				abort();
		}
		else if (event.kind == TPC_EVENT_RETURN)
		{
			/* what was ours may be sent again as it is */
			(void) tpc_broker_publish(b, "tpc_amqp.blog.vote", &event.wire,
									  true);
			codec_check(&event.wire);
		}
		else if (event.kind >= TPC_EVENT_MESSAGE)
			user_event(b, &event);
		(void) tpc_broker_flush(b);
	}
	if (event.error.sqlstate == 0 || tpc_broker_error(b) == NULL ||
		!tpc_broker_next_event(b, &event) ||
		event.kind != TPC_EVENT_CLOSED)
		abort();
	tpc_broker_close(b);
	return 0;
}
