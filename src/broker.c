/*-------------------------------------------------------------------------
 *
 * broker.c
 *	  One connection to RabbitMQ, as the messenger uses it.
 *
 * The idea: librabbitmq is used for what it does well, which is to connect,
 * to log in, and to encode and decode.  Once logged in, all input and output
 * on the socket is done here, on two buffers:
 *
 *	in	  recv -> whole frames -> dispatch() -> events
 *	out	  publish, ack, heartbeat -> flush -> send
 *
 * The reasons:
 *
 * - Nothing may hang.  The library sends without a bound, some versions also
 *	 receive without one, and it retries when a signal interrupts it.  Here
 *	 every wait is in wait_socket() with a deadline.  The library's own
 *	 waiting (TLS handshake and login) is bounded by its timeouts and, as it
 *	 looks at those only when there is nothing to read, by a watchdog that
 *	 shuts the socket down.
 * - Few system calls.  Whatever is published and acknowledged between two
 *	 flushes leaves in one write, over TLS in one per full record.
 * - No deadlock with the broker.  While a flush cannot write it reads, so two
 *	 full buffers never wait for each other.
 * - Messages are hostile.  To the library, content that it cannot decode is
 *	 the end of the connection (and again when it is redelivered), and nested
 *	 headers take as much stack as a frame can ask for.  Seen here first, both
 *	 are only a message without properties, which the caller drops.
 *
 * The library does no I/O after login, so it never writes into the middle of
 * a frame of ours, and sends no heartbeats: service_heartbeat() does.
 *
 * For TLS the library offers no way to its SSL object.  OpenSSL does: it
 * hands it to the info callback of the context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include "port/pg_bswap.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#include "broker_private.h"

/* Consumer tags of kinds: this and the kind. */
#define KIND_TAG_PREFIX "prepare:"

static const char *const queue_suffix[TPC_QUEUE_KINDS] = {
	"prepare", "decision", "vote"
};

/*
 * What a signal handler may shut down: the socket that is being waited on.
 * While the library connects, only the library knows it.  Written outside of
 * handlers only, by whoever waits.
 */
static volatile int wait_fd = -1;
static amqp_connection_state_t volatile wait_conn = NULL;

/* Written by handlers only, but for watchdog_hit, which open resets. */
static volatile sig_atomic_t interrupted = false;	/* stays */
static volatile sig_atomic_t interrupt_hit = false; /* shut a socket down */
static volatile sig_atomic_t watchdog_hit = false;

/* The connection whose TLS handshake runs, for tls_info(). */
static TpcBroker *handshaking = NULL;

static TimeoutId watchdog_timeout;
static bool watchdog_registered = false;

static int64
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static amqp_bytes_t
bytes_of(const char *s)
{
	amqp_bytes_t bytes;

	bytes.len = strlen(s);
	bytes.bytes = unconstify(char *, s);
	return bytes;
}

void
tpc_broker_queue_name(char out[TPC_QUEUE_NAME_SIZE], const char *node,
					  TpcQueueKind kind)
{
	snprintf(out, TPC_QUEUE_NAME_SIZE, "tpc_amqp.%s.%s", node,
			 queue_suffix[kind]);
}

/* The same for prepares of a kind; "" is the general queue. */
void
tpc_broker_prepare_queue_name(char out[TPC_QUEUE_NAME_SIZE], const char *node,
							  const char *call_kind)
{
	snprintf(out, TPC_QUEUE_NAME_SIZE, "tpc_amqp.%s.prepare%s%s", node,
			 call_kind[0] != '\0' ? ":" : "", call_kind);
}

/*-------------------------------------------------------------------------
 * Interruption.
 *-------------------------------------------------------------------------
 */

/* Ends whatever waits for the socket.  Async-signal-safe. */
static bool
shut_down_waiting(void)
{
	int			fd = wait_fd;

	if (fd < 0 && wait_conn != NULL)
		fd = amqp_get_sockfd(wait_conn);	/* reads two fields */
	if (fd < 0)
		return false;
	shutdown(fd, SHUT_RDWR);
	return true;
}

/*
 * For the handler of SIGTERM.  Async-signal-safe.
 *
 * A wait in this file ends at once, and its connection is lost; only the first
 * step of connecting with TLS, in the library, runs to its timeout.  Otherwise
 * the connection stays good, so that the caller can still flush (which then
 * waits a second at most) and close.  tpc_broker_open() fails from now on.
 */
void
tpc_broker_interrupt(void)
{
	int			save_errno = errno;

	interrupted = true;
	if (shut_down_waiting())
		interrupt_hit = true;
	errno = save_errno;
}

static void
watchdog_handler(void)
{
	watchdog_hit = true;
	shut_down_waiting();
}

static void
watchdog_start(int64 ms)
{
	if (!watchdog_registered)
	{
		watchdog_timeout = RegisterTimeout(USER_TIMEOUT, watchdog_handler);
		watchdog_registered = true;
	}
	watchdog_hit = false;
	enable_timeout_after(watchdog_timeout, (int) ms);
}

static void
watchdog_stop(void)
{
	disable_timeout(watchdog_timeout, false);
}

/*
 * Waits until the socket is ready for any of events (WL_SOCKET_*), or until
 * the deadline.  Returns what it is ready for, 0 at the deadline.  Exits if
 * the postmaster has died; raises an error if no descriptor is left to wait
 * with.
 */
static int
wait_socket(int fd, int events, int64 deadline)
{
	int64		left = deadline - now_ms();
	int			rc;

	if (left <= 0)
		return 0;
	rc = WaitLatchOrSocket(NULL,
						   events | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   fd, (long) left, PG_WAIT_EXTENSION);
	return rc & events;
}

/*-------------------------------------------------------------------------
 * Errors.
 *-------------------------------------------------------------------------
 */

/* Records why the connection is lost; the first reason stays. */
void
tpc_broker_lose(TpcBroker *b, int sqlstate, int reply_code,
				const char *fmt,...)
{
	TpcBrokerError *e = &b->error;
	va_list		args;

	if (b->lost)
		return;
	b->lost = true;
	strlcpy(e->phase, b->phase, sizeof(e->phase));
	if (interrupt_hit)
	{
		e->sqlstate = ERRCODE_ADMIN_SHUTDOWN;
		strlcpy(e->text, "interrupted by a signal", sizeof(e->text));
		return;
	}
	if (watchdog_hit)
	{
		e->sqlstate = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
		strlcpy(e->text, "timed out", sizeof(e->text));
		return;
	}
	e->sqlstate = sqlstate;
	e->reply_code = reply_code;
	va_start(args, fmt);
	vsnprintf(e->text, sizeof(e->text), fmt, args);
	va_end(args);
}

/* The connection failed: which SQLSTATE of class 08 it is. */
static int
connection_sqlstate(TpcBroker *b)
{
	return b->opened ? ERRCODE_CONNECTION_FAILURE :
		ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
}

void
tpc_broker_lose_protocol(TpcBroker *b, const char *what)
{
	b->dead = true;
	tpc_broker_lose(b, ERRCODE_PROTOCOL_VIOLATION, 0, "protocol violation: %s", what);
}

/*
 * tpc_broker_abandon: who uses the connection finds that it is of no use any
 * more.  It is lost then, as if it had ended.
 */
void
tpc_broker_abandon(TpcBroker *b, const char *why)
{
	if (b->lost)
		return;
	b->dead = true;
	tpc_broker_lose(b, ERRCODE_CONNECTION_FAILURE, 0, "%s", why);
}

/* Copies text from the broker, as something that can be logged anywhere. */
void
tpc_broker_copy_text(char *dst, size_t size, amqp_bytes_t src)
{
	size_t		n = Min(src.len, size - 1);

	for (size_t i = 0; i < n; i++)
	{
		unsigned char c = ((unsigned char *) src.bytes)[i];

		dst[i] = (c >= 0x20 && c < 0x7f) ? (char) c : '?';
	}
	dst[n] = '\0';
}

/* The SQLSTATE for a reason the broker gave. */
int
tpc_broker_reply_sqlstate(TpcBroker *b, int code, const char *text)
{
	switch (code)
	{
		case 403:				/* ACCESS_REFUSED */
			if (strstr(text, "exclusive") != NULL)
				return ERRCODE_OBJECT_IN_USE;
			if (b->frame_max == 0)	/* not logged in yet */
				return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case 404:				/* NOT_FOUND */
			return ERRCODE_UNDEFINED_OBJECT;
		case 405:				/* RESOURCE_LOCKED */
			return ERRCODE_OBJECT_IN_USE;
		case 406:				/* PRECONDITION_FAILED */
			return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
		case 540:				/* NOT_IMPLEMENTED, by this kind of queue */
			return ERRCODE_FEATURE_NOT_SUPPORTED;
		case 530:				/* NOT_ALLOWED: virtual host, limits */
			return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		case 320:				/* CONNECTION_FORCED */
			return connection_sqlstate(b);
		default:
			return ERRCODE_SYSTEM_ERROR;
	}
}

/* Loses the connection for a reason the broker gave. */
static void
lose_reply(TpcBroker *b, int code, amqp_bytes_t reply_text)
{
	char		text[sizeof(b->error.text)];

	tpc_broker_copy_text(text, sizeof(text), reply_text);
	tpc_broker_lose(b, tpc_broker_reply_sqlstate(b, code, text), code, "%s",
					text);
}

/*-------------------------------------------------------------------------
 * Frames coming in.
 *-------------------------------------------------------------------------
 */

/*
 * Looks at the frame at *offset of the input buffer.  Returns 1 and moves
 * *offset behind it, 0 if it is not complete, -1 if it cannot be a frame.
 */
static int
peek_frame(TpcBroker *b, size_t *offset, Frame *f)
{
	const char *p = b->in + *offset;
	size_t		have = b->in_end - *offset;
	uint16		channel;
	uint32		size;

	if (have < FRAME_HEAD)
		return 0;
	memcpy(&channel, p + 1, sizeof(channel));
	memcpy(&size, p + 3, sizeof(size));
	f->type = (uint8) p[0];
	f->channel = pg_ntoh16(channel);
	f->size = pg_ntoh32(size);
	f->payload = p + FRAME_HEAD;
	if (f->size + FRAME_EXTRA > b->frame_max)
		return -1;
	if (have < f->size + FRAME_EXTRA)
		return 0;
	if ((uint8) f->payload[f->size] != AMQP_FRAME_END)
		return -1;
	*offset += f->size + FRAME_EXTRA;
	return 1;
}

/* The method's id, 0 if the frame is none. */
uint32
tpc_broker_method_id(const Frame *f)
{
	uint32		id;

	if (f->type != AMQP_FRAME_METHOD || f->size < sizeof(id))
		return 0;
	memcpy(&id, f->payload, sizeof(id));
	return pg_ntoh32(id);
}

/*
 * Decodes a method.  The result lives in the pool, until the next call, and
 * points into the frame.  NULL, and the connection lost, if it is malformed.
 */
void *
tpc_broker_decode_method(TpcBroker *b, const Frame *f)
{
	amqp_bytes_t encoded;
	void	   *decoded;
	int			status;

	encoded.bytes = unconstify(char *, f->payload) + sizeof(uint32);
	encoded.len = f->size - sizeof(uint32);
	recycle_amqp_pool(&b->pool);
	status = amqp_decode_method(tpc_broker_method_id(f), &b->pool, encoded, &decoded);
	if (status < 0)
	{
		tpc_broker_lose_protocol(b, amqp_error_string2(status));
		return NULL;
	}
	return decoded;
}

/*
 * Is it connection.close, or channel.close of our own channel? Then loses the
 * connection.
 */
static bool
lose_if_close(TpcBroker *b, const Frame *f)
{
	uint32		id = tpc_broker_method_id(f);
	void	   *decoded;

	if (id != AMQP_CONNECTION_CLOSE_METHOD &&
		(id != AMQP_CHANNEL_CLOSE_METHOD || f->channel != CHANNEL))
		return false;
	decoded = tpc_broker_decode_method(b, f);
	if (decoded == NULL)
		return true;
	if (id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *m = decoded;

		b->dead = true;
		lose_reply(b, m->reply_code, m->reply_text);
	}
	else
	{
		amqp_channel_close_t *m = decoded;

		lose_reply(b, m->reply_code, m->reply_text);
	}
	return true;
}

/* The socket failed: loses the connection, if it can for the true reason. */
static void
lose_socket(TpcBroker *b)
{
	size_t		offset = b->in_start;
	Frame		f;

	b->dead = true;
	while (peek_frame(b, &offset, &f) == 1)
	{
		if (lose_if_close(b, &f))
			return;
	}
	tpc_broker_lose(b, connection_sqlstate(b), 0, "%s", b->io_text);
}

/*-------------------------------------------------------------------------
 * The socket.  Nothing here blocks but call_method() and flush.
 *-------------------------------------------------------------------------
 */

/* What OpenSSL has to say about what has just failed. */
static const char *
tls_text(void)
{
	unsigned long code = ERR_peek_error();
	const char *reason;

	/* a file that cannot be read; the last error would be "system lib" */
	if (code != 0 && ERR_GET_LIB(code) == ERR_LIB_SYS)
		return strerror(ERR_GET_REASON(code));
	code = ERR_peek_last_error();
	reason = code != 0 ? ERR_reason_error_string(code) : NULL;
	if (reason != NULL)
		return reason;
	return errno != 0 ? strerror(errno) : "TLS connection closed";
}

/*
 * The result of a TLS read or write that did not succeed: 0 if it has to wait
 * for *needs, else -1.
 */
static ssize_t
tls_failed(TpcBroker *b, int rc, int *needs)
{
	switch (SSL_get_error(b->ssl, rc))
	{
		case SSL_ERROR_WANT_READ:
			*needs = WL_SOCKET_READABLE;
			return 0;
		case SSL_ERROR_WANT_WRITE:
			*needs = WL_SOCKET_WRITEABLE;
			return 0;
		case SSL_ERROR_ZERO_RETURN:
			strlcpy(b->io_text, "the broker closed the connection",
					sizeof(b->io_text));
			return -1;
		default:
			snprintf(b->io_text, sizeof(b->io_text), "connection lost: %s",
					 tls_text());
			return -1;
	}
}

/* Returns the number of bytes read, 0 if there are none now, -1 if lost. */
static ssize_t
sock_recv(TpcBroker *b, char *buf, size_t len)
{
	ssize_t		n;

	b->read_needs = WL_SOCKET_READABLE;
	if (b->ssl != NULL)
	{
		int			rc;

		ERR_clear_error();
		errno = 0;
		rc = SSL_read(b->ssl, buf, (int) Min(len, INT_MAX));
		return rc > 0 ? rc : tls_failed(b, rc, &b->read_needs);
	}
	do
		n = recv(b->fd, buf, len, 0);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return n;
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n == 0)
		strlcpy(b->io_text, "the broker closed the connection",
				sizeof(b->io_text));
	else
		snprintf(b->io_text, sizeof(b->io_text), "connection lost: %s",
				 strerror(errno));
	return -1;
}

/* Returns the number of bytes written, 0 if none fit now, -1 if lost. */
static ssize_t
sock_send(TpcBroker *b, const char *buf, size_t len)
{
	ssize_t		n;

	b->write_needs = WL_SOCKET_WRITEABLE;
	b->writes++;
	if (b->ssl != NULL)
	{
		int			rc;

		ERR_clear_error();
		errno = 0;
		rc = SSL_write(b->ssl, buf, (int) Min(len, INT_MAX));
		return rc > 0 ? rc : tls_failed(b, rc, &b->write_needs);
	}
	do
		n = send(b->fd, buf, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return 0;
	snprintf(b->io_text, sizeof(b->io_text), "connection lost: %s",
			 strerror(errno));
	return -1;
}

/*
 * Makes room in the input buffer and reads once.  Returns as sock_recv().
 * The buffer grows only while nothing is taken from it, which is in
 * call_method() and flush.
 */
static ssize_t
read_input(TpcBroker *b)
{
	ssize_t		n;
	size_t		room;

	if (b->in_start == b->in_end)
	{
		b->in_start = b->in_end = 0;
		if (b->in_size > KEEP_SIZE)
		{
			b->in = repalloc(b->in, IN_SIZE);
			b->in_size = IN_SIZE;
		}
	}
	if (b->in_size - b->in_end < READ_MIN && b->in_start > 0)
	{
		memmove(b->in, b->in + b->in_start, b->in_end - b->in_start);
		b->in_end -= b->in_start;
		b->in_start = 0;
	}
	if (b->in_size - b->in_end < READ_MIN)
	{
		b->in = repalloc_huge(b->in, b->in_size * 2);
		b->in_size *= 2;
	}
	room = b->in_size - b->in_end;
	n = sock_recv(b, b->in + b->in_end, room);

	/* TLS returns one record at a time, so there it says nothing */
	b->emptied = b->ssl == NULL && (size_t) Max(n, 0) < room;
	if (n > 0)
	{
		b->in_end += n;
		b->last_recv = now_ms();
		b->drained = false;
	}
	return n;
}

/* Makes room for n bytes of output and returns where they go. */
char *
tpc_broker_out_reserve(TpcBroker *b, size_t n)
{
	if (b->out_size - b->out_end < n && b->out_start > 0)
	{
		memmove(b->out, b->out + b->out_start, b->out_end - b->out_start);
		b->out_end -= b->out_start;
		b->out_start = 0;
	}
	if (b->out_size - b->out_end < n)
	{
		size_t		size = Max(b->out_size * 2, b->out_end + n);

		b->out = repalloc_huge(b->out, size);
		b->out_size = size;
	}
	return b->out + b->out_end;
}

/*
 * Writes what the socket takes now.  Returns 1 if that was all, 0 if bytes
 * are left, -1 if the connection is lost.
 */
static int
send_output(TpcBroker *b)
{
	while (b->out_start < b->out_end)
	{
		ssize_t		n = sock_send(b, b->out + b->out_start,
								  b->out_end - b->out_start);

		if (n == 0)
			return 0;
		if (n < 0)
		{
			char		text[sizeof(b->io_text)];

			/* the broker may have said why before it closed */
			strlcpy(text, b->io_text, sizeof(text));
			while (b->in_end - b->in_start < IN_LIMIT && read_input(b) > 0)
				;
			strlcpy(b->io_text, text, sizeof(text));
			lose_socket(b);
			return -1;
		}
		b->out_start += n;
		b->next_beat = now_ms() + b->heartbeat_ms / 2;
	}
	b->out_start = b->out_end = 0;
	if (b->out_size > KEEP_SIZE)
	{
		b->out = repalloc(b->out, OUT_SIZE);
		b->out_size = OUT_SIZE;
	}
	return 1;
}

/*-------------------------------------------------------------------------
 * Frames going out.
 *-------------------------------------------------------------------------
 */

/* Fills in head and tail of the frame that begins at p. */
void
tpc_broker_finish_frame(TpcBroker *b, char *p, uint8 type, uint16 channel,
						size_t size)
{
	uint16		channel_be = pg_hton16(channel);
	uint32		size_be = pg_hton32((uint32) size);

	p[0] = (char) type;
	memcpy(p + 1, &channel_be, sizeof(channel_be));
	memcpy(p + 3, &size_be, sizeof(size_be));
	p[FRAME_HEAD + size] = (char) AMQP_FRAME_END;
	b->out_end += size + FRAME_EXTRA;
}

/* Appends a method.  False, and the connection lost, if it cannot be. */
bool
tpc_broker_put_method(TpcBroker *b, uint16 channel, uint32 id, void *decoded)
{
	return tpc_broker_put_long_method(b, channel, id, decoded, METHOD_MAX);
}

/* The same, for one that may take so many bytes. */
bool
tpc_broker_put_long_method(TpcBroker *b, uint16 channel, uint32 id,
						   void *decoded, size_t room)
{
	char	   *p = tpc_broker_out_reserve(b, room + FRAME_EXTRA);
	uint32		id_be = pg_hton32(id);
	amqp_bytes_t encoded;
	int			size;

	memcpy(p + FRAME_HEAD, &id_be, sizeof(id_be));
	encoded.bytes = p + FRAME_HEAD + sizeof(id_be);
	encoded.len = room - sizeof(id_be);
	size = amqp_encode_method(id, decoded, encoded);
	if (size < 0)
	{
		tpc_broker_lose(b, ERRCODE_PROGRAM_LIMIT_EXCEEDED, 0, "could not encode: %s",
						amqp_error_string2(size));
		return false;
	}
	tpc_broker_finish_frame(b, p, AMQP_FRAME_METHOD, channel, size + sizeof(id_be));
	return true;
}

static void
put_heartbeat(TpcBroker *b)
{
	tpc_broker_finish_frame(b, tpc_broker_out_reserve(b, FRAME_EXTRA), AMQP_FRAME_HEARTBEAT, 0, 0);
}

/* A slice as a property; false if there is none, or if it does not fit. */
static bool
property_of(const TpcSlice *slice, amqp_bytes_t *bytes, bool *too_long)
{
	if (slice->ptr == NULL)
		return false;
	if (slice->len > SHORTSTR_MAX)
	{
		*too_long = true;
		return false;
	}
	bytes->bytes = unconstify(char *, slice->ptr);
	bytes->len = slice->len;
	return true;
}

/* Appends the content header.  False, and the connection lost, on failure. */
static bool
put_content_header(TpcBroker *b, const TpcWire *wire)
{
	char	   *p = tpc_broker_out_reserve(b, FRAME_EXTRA + CONTENT_HEAD +
										   PROPERTIES_MAX);
	amqp_basic_properties_t props;
	amqp_table_entry_t headers[3];
	int			nheaders = 0;
	bool		too_long = false;
	uint16		class_be = pg_hton16(AMQP_BASIC_CLASS);
	uint64		body_be = pg_hton64((uint64) wire->body.len);
	amqp_bytes_t encoded;
	int			size;

	memset(&props, 0, sizeof(props));
	props._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
	props.delivery_mode = 1;	/* transient: durability is the databases' */
	if (property_of(&wire->type, &props.type, &too_long))
		props._flags |= AMQP_BASIC_TYPE_FLAG;
	if (property_of(&wire->correlation_id, &props.correlation_id, &too_long))
		props._flags |= AMQP_BASIC_CORRELATION_ID_FLAG;
	if (property_of(&wire->reply_to, &props.reply_to, &too_long))
		props._flags |= AMQP_BASIC_REPLY_TO_FLAG;
	if (property_of(&wire->app_id, &props.app_id, &too_long))
		props._flags |= AMQP_BASIC_APP_ID_FLAG;
	if (property_of(&wire->user_id, &props.user_id, &too_long))
		props._flags |= AMQP_BASIC_USER_ID_FLAG;
	if (property_of(&wire->expiration, &props.expiration, &too_long))
		props._flags |= AMQP_BASIC_EXPIRATION_FLAG;
	if (property_of(&wire->content_type, &props.content_type, &too_long))
		props._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;

	if (wire->has_version)
	{
		headers[nheaders].key = bytes_of("tpc-version");
		headers[nheaders].value.kind = AMQP_FIELD_KIND_I32;
		headers[nheaders++].value.value.i32 = (int32) wire->version;
	}
	headers[nheaders].key = bytes_of("tpc-from");
	headers[nheaders].value.kind = AMQP_FIELD_KIND_UTF8;
	if (property_of(&wire->from, &headers[nheaders].value.value.bytes,
					&too_long))
		nheaders++;
	headers[nheaders].key = bytes_of("tpc-floor");
	headers[nheaders].value.kind = AMQP_FIELD_KIND_UTF8;
	if (property_of(&wire->floor, &headers[nheaders].value.value.bytes,
					&too_long))
		nheaders++;
	if (nheaders > 0)
	{
		props._flags |= AMQP_BASIC_HEADERS_FLAG;
		props.headers.num_entries = nheaders;
		props.headers.entries = headers;
	}

	if (too_long)
	{
		tpc_broker_lose(b, ERRCODE_PROGRAM_LIMIT_EXCEEDED, 0,
						"a message property is longer than %d bytes", SHORTSTR_MAX);
		return false;
	}

	memset(p + FRAME_HEAD, 0, CONTENT_HEAD);
	memcpy(p + FRAME_HEAD, &class_be, sizeof(class_be));
	memcpy(p + FRAME_HEAD + 4, &body_be, sizeof(body_be));
	encoded.bytes = p + FRAME_HEAD + CONTENT_HEAD;
	encoded.len = PROPERTIES_MAX;
	size = amqp_encode_properties(AMQP_BASIC_CLASS, &props, encoded);
	if (size < 0)
	{
		tpc_broker_lose(b, ERRCODE_PROGRAM_LIMIT_EXCEEDED, 0, "could not encode: %s",
						amqp_error_string2(size));
		return false;
	}
	tpc_broker_finish_frame(b, p, AMQP_FRAME_HEADER, CHANNEL, CONTENT_HEAD + size);
	return true;
}

/*-------------------------------------------------------------------------
 * Connecting.
 *-------------------------------------------------------------------------
 */

/*
 * Connects to one address.  Returns the socket, or -1 with errno set; it is
 * in wait_fd, so that a signal can end it.
 */
static int
connect_address(const struct addrinfo *addr, int64 deadline)
{
	int			fd;
	int			err = 0;
	socklen_t	len = sizeof(err);

	fd = socket(addr->ai_family, addr->ai_socktype | SOCK_CLOEXEC,
				addr->ai_protocol);
	if (fd < 0)
		return -1;
	wait_fd = fd;
	if (interrupted)
		err = EINTR;
	else if (!pg_set_noblock(fd))
		err = errno;
	else if (connect(fd, addr->ai_addr, addr->ai_addrlen) < 0)
	{
		err = errno;
		if (err == EINPROGRESS || err == EINTR)
		{
			if (wait_socket(fd, WL_SOCKET_CONNECTED, deadline) == 0)
				err = ETIMEDOUT;
			else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
				err = errno;
		}
	}
	/* as when the connection was shut down while it was being made */
	if (err == 0 && interrupted)
		err = EINTR;
	if (err != 0)
	{
		wait_fd = -1;
		close(fd);
		errno = err;
		return -1;
	}
	return fd;
}

/*
 * Connects to the first address of the broker that answers.  Returns the
 * socket, or -1 and the connection is lost.
 */
static int
connect_host(TpcBroker *b, const TpcBrokerParams *params, int64 deadline)
{
	struct addrinfo hints;
	struct addrinfo *list;
	char		port[16];
	int			fd = -1;
	int			left = 0;
	int			rc;

	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_protocol = IPPROTO_TCP;
	snprintf(port, sizeof(port), "%d", params->port);
	rc = getaddrinfo(params->host, port, &hints, &list);
	if (rc != 0)
	{
		tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0,
						"could not resolve host \"%s\": %s", params->host,
						gai_strerror(rc));
		return -1;
	}
	for (struct addrinfo *a = list; a != NULL; a = a->ai_next)
		left++;
	errno = 0;
	for (struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next)
	{
		int64		now = now_ms();

		/* one dead address must leave time for the next */
		if (!interrupted && now < deadline)
			fd = connect_address(a, now + (deadline - now) / left);
		left--;
	}
	rc = errno;
	freeaddrinfo(list);
	if (fd < 0)
	{
		if (interrupted)
			interrupt_hit = true;
		tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0,
						"could not connect to host \"%s\", port %d: %s", params->host,
						params->port, strerror(rc != 0 ? rc : ETIMEDOUT));
	}
	return fd;
}

/*
 * Bounds how long the system keeps unacknowledged output; 0 is its default.
 * Failure does no harm: other bounds take longer, but hold.
 */
static void
set_user_timeout(TpcBroker *b, int64 ms)
{
#ifdef TCP_USER_TIMEOUT
	unsigned int value = (unsigned int) ms;

	(void) setsockopt(b->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &value,
					  sizeof(value));
#endif
}

static int64
user_timeout(TpcBroker *b)
{
	return Max(2 * b->heartbeat_ms, 30000);
}

/* OpenSSL's info callback: the way to the library's SSL object. */
static void
tls_info(const SSL *ssl, int where, int ret)
{
	if (handshaking == NULL)
		return;
	handshaking->ssl = unconstify(SSL *, ssl);
	handshaking->verify_result = SSL_get_verify_result(ssl);
}

/* Instead of asking for a passphrase on a terminal. */
static int
no_passphrase(char *buf, int size, int rwflag, void *userdata)
{
	return 0;
}

/*
 * Sets up what the TLS connection has to prove, with OpenSSL's own checks:
 * they happen before anything is sent, know addresses as well as names, and
 * say what is wrong.  Returns false, and the connection is lost, if a file
 * cannot be used.
 */
static bool
tls_configure(TpcBroker *b, amqp_socket_t *sock,
			  const TpcBrokerParams *params)
{
	SSL_CTX    *ctx = amqp_ssl_socket_get_context(sock);
	X509_VERIFY_PARAM *vp = SSL_CTX_get0_param(ctx);
	const char *file = NULL;

	SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
	/* so that writing never has to wait for reading */
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
	SSL_CTX_set_info_callback(ctx, tls_info);

	amqp_ssl_socket_set_verify_hostname(sock, 0);
	amqp_ssl_socket_set_verify_peer(sock, params->tls_verify);
	errno = 0;
	if (params->tls_verify)
	{
		if (X509_VERIFY_PARAM_set1_ip_asc(vp, params->host) != 1)
			X509_VERIFY_PARAM_set1_host(vp, params->host, 0);
		SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
		ERR_clear_error();
		if (params->cacert == NULL)
			SSL_CTX_set_default_verify_paths(ctx);
		else if (amqp_ssl_socket_set_cacert(sock, params->cacert) !=
				 AMQP_STATUS_OK)
			file = params->cacert;
	}
	if (file == NULL && params->cert != NULL)
	{
		const char *key = params->key ? params->key : params->cert;

		if (SSL_CTX_use_certificate_chain_file(ctx, params->cert) != 1)
			file = params->cert;
		else if (SSL_CTX_use_PrivateKey_file(ctx, key,
											 SSL_FILETYPE_PEM) != 1)
			file = key;
	}
	if (file != NULL)
	{
		tpc_broker_lose(b, ERRCODE_CONFIG_FILE_ERROR, 0, "could not use file \"%s\": %s",
						file, tls_text());
		return false;
	}
	return true;
}

/* What a status of the library means, in plain words. */
static const char *
library_text(int status)
{
	switch (status)
	{
		case AMQP_STATUS_TIMEOUT:
			return "timed out waiting for the broker";
		case AMQP_STATUS_CONNECTION_CLOSED:
			return "the broker closed the connection";
		case AMQP_STATUS_BAD_AMQP_DATA:
		case AMQP_STATUS_WRONG_METHOD:
			return "the peer does not speak AMQP 0-9-1";
		case AMQP_STATUS_SOCKET_ERROR:
			return strerror(errno);
		default:
			return amqp_error_string2(status);
	}
}

/* Loses the connection for what a call of the library returned. */
static void
lose_library(TpcBroker *b, int status)
{
	b->dead = true;				/* the library may have closed the socket */
	tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0, "%s",
					library_text(status));
}

/* Connects and shakes hands.  False, and the connection lost, on failure. */
static bool
tls_connect(TpcBroker *b, const TpcBrokerParams *params, int64 deadline)
{
	amqp_socket_t *sock = amqp_ssl_socket_new(b->conn);
	int64		left;
	struct timeval tv;
	int			status;

	b->phase = "tls";
	if (sock == NULL)
	{
		tpc_broker_lose(b, ERRCODE_OUT_OF_MEMORY, 0, "could not set up TLS");
		return false;
	}
	if (!tls_configure(b, sock, params))
		return false;

	left = Max(deadline - now_ms(), 1);
	tv.tv_sec = left / 1000;
	tv.tv_usec = left % 1000 * 1000;
	handshaking = b;
	wait_conn = b->conn;
	ERR_clear_error();
	watchdog_start(left + 200);
	status = amqp_socket_open_noblock(sock, params->host, params->port, &tv);
	watchdog_stop();
	handshaking = NULL;
	if (status == AMQP_STATUS_OK && b->ssl != NULL)
	{
		b->fd = amqp_get_sockfd(b->conn);
		wait_fd = b->fd;
		SSL_set_mode(b->ssl, SSL_MODE_AUTO_RETRY |
					 SSL_MODE_ENABLE_PARTIAL_WRITE |
					 SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
		return true;
	}

	b->ssl = NULL;				/* the library has freed it */
	wait_conn = NULL;
	if (interrupted)
		interrupt_hit = true;	/* also when there was no socket to shut */
	if (status == AMQP_STATUS_OK)
		tpc_broker_lose(b, ERRCODE_INTERNAL_ERROR, 0,
						"librabbitmq is not built with OpenSSL");
	else if (params->tls_verify && b->verify_result != X509_V_OK)
		tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0,
						"certificate verification failed: %s",
						X509_verify_cert_error_string(b->verify_result));
	else if (ERR_peek_last_error() != 0)
		tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0,
						"%s: %s", amqp_error_string2(status), tls_text());
	else if (status == AMQP_STATUS_SOCKET_ERROR ||
			 status == AMQP_STATUS_HOSTNAME_RESOLUTION_FAILED)
	{
		/* the library keeps the reason to itself, so ask again */
		int			fd;

		b->phase = "connect";
		fd = connect_host(b, params, deadline);
		if (fd >= 0)
		{
			wait_fd = -1;
			close(fd);
		}
	}
	tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0, "%s",
					status == AMQP_STATUS_SSL_CONNECTION_FAILED ?
					"TLS handshake failed: the connection was closed" :
					library_text(status));
	return false;
}

/* Gives b->conn a connected socket.  False, and the connection lost. */
static bool
open_socket(TpcBroker *b, const TpcBrokerParams *params, int64 deadline)
{
	int			on = 1;
	int			idle = KEEPALIVE_S;

	b->phase = "connect";
	if (interrupted)
	{
		interrupt_hit = true;
		tpc_broker_lose(b, ERRCODE_ADMIN_SHUTDOWN, 0, "interrupted");
		return false;
	}
	if (params->tls)
	{
		if (!tls_connect(b, params, deadline))
			return false;
	}
	else
	{
		amqp_socket_t *sock = amqp_tcp_socket_new(b->conn);

		if (sock == NULL)
		{
			tpc_broker_lose(b, ERRCODE_OUT_OF_MEMORY, 0, "out of memory");
			return false;
		}
		b->fd = connect_host(b, params, deadline);
		if (b->fd < 0)
			return false;
		amqp_tcp_socket_set_sockfd(sock, b->fd);
	}
	if (interrupted)
	{
		/* the signal may have come while only the library knew the socket */
		interrupt_hit = true;
		tpc_broker_lose(b, ERRCODE_ADMIN_SHUTDOWN, 0, "interrupted");
		return false;
	}
	(void) fcntl(b->fd, F_SETFD, FD_CLOEXEC);
	(void) setsockopt(b->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void) setsockopt(b->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#ifdef TCP_KEEPIDLE
	(void) setsockopt(b->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
#endif
	return true;
}

static amqp_table_entry_t
text_entry(const char *key, const char *value)
{
	amqp_table_entry_t entry;

	entry.key = bytes_of(key);
	entry.value.kind = AMQP_FIELD_KIND_UTF8;
	entry.value.value.bytes = bytes_of(value);
	return entry;
}

static amqp_table_entry_t
true_entry(const char *key)
{
	amqp_table_entry_t entry;

	entry.key = bytes_of(key);
	entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
	entry.value.value.boolean = 1;
	return entry;
}

/*
 * Takes over from the library: all it has read must have come out of it.  No
 * channel is open yet, so that can only concern the connection.
 */
static bool
take_over(TpcBroker *b, int64 deadline)
{
	while (amqp_frames_enqueued(b->conn) || amqp_data_in_buffer(b->conn) ||
		   !amqp_release_buffers_ok(b->conn))
	{
		struct timeval tv = {0, 0};
		amqp_frame_t frame;
		int			status;

		status = amqp_simple_wait_frame_noblock(b->conn, &frame, &tv);
		if (status == AMQP_STATUS_TIMEOUT && now_ms() < deadline)
		{
			/* either the end, or within a frame */
			if (!amqp_release_buffers_ok(b->conn))
				(void) wait_socket(b->fd, WL_SOCKET_READABLE, deadline);
			continue;
		}
		if (status != AMQP_STATUS_OK)
		{
			lose_library(b, status);
			return false;
		}
		if (frame.frame_type != AMQP_FRAME_METHOD)
			continue;
		switch (frame.payload.method.id)
		{
			case AMQP_CONNECTION_CLOSE_METHOD:
				{
					amqp_connection_close_t *m = frame.payload.method.decoded;

					b->dead = true;
					lose_reply(b, m->reply_code, m->reply_text);
					return false;
				}
			case AMQP_CONNECTION_BLOCKED_METHOD:
				{
					amqp_connection_blocked_t *m =
					frame.payload.method.decoded;

					b->blocked_held = true;
					tpc_broker_copy_text(b->blocked_text, sizeof(b->blocked_text),
										 m->reason);
					break;
				}
			case AMQP_CONNECTION_UNBLOCKED_METHOD:
				b->blocked_held = false;
				break;
		}
	}
	amqp_maybe_release_buffers(b->conn);
	return true;
}

/* Logs in.  False, and the connection lost, on failure. */
static bool
login(TpcBroker *b, const TpcBrokerParams *params, int64 deadline)
{
	char		name[TPC_NODE_SIZE + 32];
	amqp_table_entry_t caps[5];
	amqp_table_entry_t props[4];
	amqp_table_t table;
	amqp_rpc_reply_t reply;
	struct timeval tv;
	int64		left = Max(deadline - now_ms(), 1);
	bool		ok = false;

	b->phase = "login";
	snprintf(name, sizeof(name), "tpc_amqp %s%s", params->node,
			 params->only_channels ? " publish" : "");
	caps[0] = true_entry("connection.blocked");
	caps[1] = true_entry("consumer_cancel_notify");
	caps[2] = true_entry("publisher_confirms");
	caps[3] = true_entry("basic.nack");
	caps[4] = true_entry("authentication_failure_close");
	props[0] = text_entry("product", "tpc_amqp");
	props[1] = text_entry("connection_name", name);
	props[2] = text_entry("information",
						  "transactions across PostgreSQL databases");
	props[3].key = bytes_of("capabilities");
	props[3].value.kind = AMQP_FIELD_KIND_TABLE;
	props[3].value.value.table.num_entries = lengthof(caps);
	props[3].value.value.table.entries = caps;
	table.num_entries = lengthof(props);
	table.entries = props;

	tv.tv_sec = left / 1000;
	tv.tv_usec = left % 1000 * 1000;
	amqp_set_handshake_timeout(b->conn, &tv);
	amqp_set_rpc_timeout(b->conn, &tv);
	watchdog_start(left + 200);
	reply = amqp_login_with_properties(b->conn, params->vhost,
									   TPC_CHANNEL_MAX, FRAME_MAX,
									   Max(params->heartbeat_s, 0), &table,
									   AMQP_SASL_METHOD_PLAIN,
									   params->user, params->password);
	switch (reply.reply_type)
	{
		case AMQP_RESPONSE_NORMAL:
			ok = take_over(b, deadline);
			break;
		case AMQP_RESPONSE_SERVER_EXCEPTION:
			b->dead = true;
			if (reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
			{
				amqp_connection_close_t *m = reply.reply.decoded;

				lose_reply(b, m->reply_code, m->reply_text);
				break;
			}
			tpc_broker_lose_protocol(b, "unexpected reply to login");
			break;
		default:
			lose_library(b, reply.library_error);
			break;
	}
	watchdog_stop();
	if (!ok)
		return false;

	b->frame_max = amqp_get_frame_max(b->conn);
	if (b->frame_max < FRAME_MIN_MAX || b->frame_max > FRAME_MAX)
	{
		tpc_broker_lose_protocol(b, "unusable frame size");
		return false;
	}
	b->nchannels = amqp_get_channel_max(b->conn);
	if (b->nchannels <= 0 || b->nchannels > TPC_CHANNEL_MAX)
		b->nchannels = TPC_CHANNEL_MAX;
	b->heartbeat_ms = (int64) amqp_get_heartbeat(b->conn) * 1000;
	b->last_recv = now_ms();
	b->next_beat = b->last_recv + b->heartbeat_ms / 2;
	set_user_timeout(b, user_timeout(b));
	return true;
}

/*
 * Sends a method and waits for its answer.  Frames stay in the input buffer,
 * for tpc_broker_next_event(): messages may arrive in between.  *scanned is
 * how far it has been looked through.  False, and the connection lost, if
 * the broker refuses or the deadline passes.
 */
static bool
call_method(TpcBroker *b, uint32 id, void *decoded, uint32 answer,
			size_t *scanned, int64 deadline)
{
	if (!tpc_broker_put_method(b, CHANNEL, id, decoded))
		return false;
	for (;;)
	{
		int			events = 0;
		Frame		f;
		ssize_t		n;
		int			rc;

		rc = send_output(b);
		if (rc < 0)
			return false;
		if (rc == 0)
			events = b->write_needs;

		while ((rc = peek_frame(b, scanned, &f)) > 0)
		{
			if (tpc_broker_method_id(&f) == answer && f.channel == CHANNEL)
				return true;
			if (lose_if_close(b, &f))
				return false;
		}
		if (rc < 0)
		{
			tpc_broker_lose_protocol(b, "malformed frame");
			return false;
		}

		if (now_ms() >= deadline)
		{
			b->dead = true;
			tpc_broker_lose(b, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, 0,
							"timed out waiting for the broker");
			return false;
		}
		n = read_input(b);
		if (n < 0)
		{
			lose_socket(b);
			return false;
		}
		if (n == 0)
			(void) wait_socket(b->fd, events | b->read_needs, deadline);
	}
}

/* What the queues are declared with; see declare(). */
static void
queue_declaration(amqp_queue_declare_t *queue, amqp_table_entry_t *classic,
				  const char *name)
{
	*classic = text_entry("x-queue-type", "classic");
	memset(queue, 0, sizeof(*queue));
	queue->queue = bytes_of(name);
	queue->durable = 1;
	queue->arguments.num_entries = 1;
	queue->arguments.entries = classic;
}

/*
 * Declares the exchange and the node's queues.
 *
 * The queues ask to be classic: a virtual host may have another default, and
 * only classic queues have exclusive consumers, by which a second node of the
 * same name is found out.
 */
static bool
declare(TpcBroker *b, size_t *scanned, int64 deadline)
{
	amqp_channel_open_t channel;
	amqp_exchange_declare_t exchange;
	amqp_table_entry_t classic;

	b->phase = "channel";
	memset(&channel, 0, sizeof(channel));
	if (!call_method(b, AMQP_CHANNEL_OPEN_METHOD, &channel,
					 AMQP_CHANNEL_OPEN_OK_METHOD, scanned, deadline))
		return false;

	b->phase = "declare";
	memset(&exchange, 0, sizeof(exchange));
	exchange.exchange = bytes_of(TPC_EXCHANGE);
	exchange.type = bytes_of("direct");
	exchange.durable = 1;
	if (!call_method(b, AMQP_EXCHANGE_DECLARE_METHOD, &exchange,
					 AMQP_EXCHANGE_DECLARE_OK_METHOD, scanned, deadline))
		return false;

	for (int kind = 0; kind < TPC_QUEUE_KINDS; kind++)
	{
		char		name[TPC_QUEUE_NAME_SIZE];
		amqp_queue_declare_t queue;
		amqp_queue_bind_t bind;

		tpc_broker_queue_name(name, b->node, kind);
		b->phase = "declare";
		queue_declaration(&queue, &classic, name);
		if (!call_method(b, AMQP_QUEUE_DECLARE_METHOD, &queue,
						 AMQP_QUEUE_DECLARE_OK_METHOD, scanned, deadline))
			return false;

		b->phase = "bind";
		memset(&bind, 0, sizeof(bind));
		bind.queue = bytes_of(name);
		bind.exchange = bytes_of(TPC_EXCHANGE);
		bind.routing_key = bytes_of(name);
		if (!call_method(b, AMQP_QUEUE_BIND_METHOD, &bind,
						 AMQP_QUEUE_BIND_OK_METHOD, scanned, deadline))
			return false;
	}
	return true;
}

/* Starts the consumers, each with its prefetch limit. */
static bool
consume(TpcBroker *b, const TpcBrokerParams *params, size_t *scanned,
		int64 deadline)
{
	b->phase = "consume";
	for (int kind = 0; kind < TPC_QUEUE_KINDS; kind++)
	{
		char		name[TPC_QUEUE_NAME_SIZE];
		amqp_basic_consume_t m;
		int			prefetch;

		if (kind != TPC_QUEUE_VOTE)
		{
			amqp_basic_qos_t qos;

			prefetch = kind == TPC_QUEUE_PREPARE ?
				params->prefetch_prepare : params->prefetch_decision;
			memset(&qos, 0, sizeof(qos));
			qos.prefetch_count = (uint16) Min(Max(prefetch, 0), PG_UINT16_MAX);
			if (!call_method(b, AMQP_BASIC_QOS_METHOD, &qos,
							 AMQP_BASIC_QOS_OK_METHOD, scanned, deadline))
				return false;
		}
		tpc_broker_queue_name(name, b->node, kind);
		memset(&m, 0, sizeof(m));
		m.queue = bytes_of(name);
		m.consumer_tag = bytes_of(queue_suffix[kind]);
		m.no_ack = kind == TPC_QUEUE_VOTE;
		m.exclusive = 1;
		if (!call_method(b, AMQP_BASIC_CONSUME_METHOD, &m,
						 AMQP_BASIC_CONSUME_OK_METHOD, scanned, deadline))
			return false;
	}
	return true;
}

/*
 * Connects, logs in, declares what the node needs and starts to consume, all
 * within connect_timeout_ms (resolving the host's name excepted).  Returns
 * NULL with *error filled if that fails.
 *
 * The result is closed with tpc_broker_close().  Raises no error but out of
 * memory.
 */
TpcBroker *
tpc_broker_open(const TpcBrokerParams *params, TpcBrokerError *error)
{
	MemoryContext context;
	MemoryContext old;
	TpcBroker  *b;
	int64		deadline = now_ms() + Max(params->connect_timeout_ms, 1);
	size_t		scanned = 0;

	context = AllocSetContextCreate(TopMemoryContext, "tpc_amqp broker",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	b = palloc0(sizeof(TpcBroker));
	b->context = context;
	b->fd = -1;
	b->phase = "connect";
	b->only_channels = params->only_channels;
	b->verify_result = X509_V_OK;
	tpc_broker_set_max_body(b, params->max_body);
	b->read_needs = WL_SOCKET_READABLE;
	b->write_needs = WL_SOCKET_WRITEABLE;
	b->in_size = IN_SIZE;
	b->in = palloc(b->in_size);
	b->out_size = OUT_SIZE;
	b->out = palloc(b->out_size);
	strlcpy(b->node, params->node, sizeof(b->node));
	initStringInfo(&b->content.body);
	MemoryContextSwitchTo(old);

	watchdog_hit = false;
	init_amqp_pool(&b->pool, 4096);
	b->conn = amqp_new_connection();
	if (b->conn == NULL)
		tpc_broker_lose(b, ERRCODE_OUT_OF_MEMORY, 0, "out of memory");

	b->opened = !b->lost &&
		open_socket(b, params, deadline) &&
		login(b, params, deadline) &&
		(params->only_channels ||
		 (declare(b, &scanned, deadline) &&
		  consume(b, params, &scanned, deadline)));

	wait_fd = -1;
	wait_conn = NULL;
	watchdog_hit = false;
	if (!b->opened)
	{
		*error = b->error;
		tpc_broker_close(b);
		return NULL;
	}
	b->phase = "connection";
	return b;
}

/*
 * Closes the connection, whatever its state, and frees it.  Waits half a
 * second at most for the broker's goodbye, after which the queues are free
 * for the next to consume.
 */
void
tpc_broker_close(TpcBroker *b)
{
	bool		done = b->fd < 0 || b->dead || b->frame_max == 0;
	int64		deadline = now_ms() + CLOSE_TIMEOUT_MS;

	if (!done)
	{
		amqp_connection_close_t m;

		memset(&m, 0, sizeof(m));
		m.reply_code = AMQP_REPLY_SUCCESS;
		m.reply_text = bytes_of("closed");
		done = !tpc_broker_put_method(b, 0, AMQP_CONNECTION_CLOSE_METHOD, &m);
	}
	while (!done && now_ms() < deadline)
	{
		int			rc = send_output(b);
		int			events = rc == 0 ? b->write_needs : 0;
		Frame		f;
		ssize_t		n;

		if (rc < 0)
			break;
		while ((rc = peek_frame(b, &b->in_start, &f)) > 0)
		{
			uint32		id = tpc_broker_method_id(&f);

			if (id == AMQP_CONNECTION_CLOSE_OK_METHOD ||
				id == AMQP_CONNECTION_CLOSE_METHOD)
				done = true;
		}
		if (done || rc < 0)
			break;
		n = read_input(b);
		if (n < 0)
			break;
		if (n == 0)
			(void) wait_socket(b->fd, events | b->read_needs, deadline);
	}

	if (b->conn != NULL)
		amqp_destroy_connection(b->conn);
	empty_amqp_pool(&b->pool);
	MemoryContextDelete(b->context);
}

/*-------------------------------------------------------------------------
 * Events.
 *-------------------------------------------------------------------------
 */

/* Keeps a short string of the message coming in; longer ones are absent. */
static TpcSlice
keep(Content *c, amqp_bytes_t bytes)
{
	TpcSlice	slice = {NULL, 0};

	if (bytes.len > SHORTSTR_MAX || c->text_len + bytes.len > sizeof(c->text))
		return slice;
	slice.ptr = c->text + c->text_len;
	slice.len = bytes.len;
	if (bytes.len > 0)
		memcpy(c->text + c->text_len, bytes.bytes, bytes.len);
	c->text_len += bytes.len;
	return slice;
}

static bool
bytes_are(amqp_bytes_t bytes, const char *s)
{
	return bytes.len == strlen(s) && memcmp(bytes.bytes, s, bytes.len) == 0;
}

static bool
integer_of(const amqp_field_value_t *v, int64 *result)
{
	switch (v->kind)
	{
		case AMQP_FIELD_KIND_I8:
			*result = v->value.i8;
			return true;
		case AMQP_FIELD_KIND_U8:
			*result = v->value.u8;
			return true;
		case AMQP_FIELD_KIND_I16:
			*result = v->value.i16;
			return true;
		case AMQP_FIELD_KIND_U16:
			*result = v->value.u16;
			return true;
		case AMQP_FIELD_KIND_I32:
			*result = v->value.i32;
			return true;
		case AMQP_FIELD_KIND_U32:
			*result = v->value.u32;
			return true;
		case AMQP_FIELD_KIND_I64:
			*result = v->value.i64;
			return true;
		case AMQP_FIELD_KIND_U64:
			*result = (int64) v->value.u64;
			return v->value.u64 <= PG_INT64_MAX;
		default:
			return false;
	}
}

/* Keeps the text of a header, the first if there are several. */
static void
keep_header(Content *c, TpcSlice *slice, const amqp_field_value_t *v)
{
	if (slice->ptr == NULL &&
		(v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES))
		*slice = keep(c, v->value.bytes);
}

/* Fills content.wire from the properties, as far as they can be read. */
static void
keep_properties(TpcBroker *b, amqp_bytes_t encoded)
{
	Content    *c = &b->content;
	TpcWire    *w = &c->wire;
	void	   *decoded;
	amqp_basic_properties_t *p;

	if (encoded.len > HEADER_LIMIT)
		return;
	recycle_amqp_pool(&b->pool);
	if (amqp_decode_properties(AMQP_BASIC_CLASS, &b->pool, encoded,
							   &decoded) < 0)
		return;
	p = decoded;
	if (p->_flags & AMQP_BASIC_TYPE_FLAG)
		w->type = keep(c, p->type);
	if (p->_flags & AMQP_BASIC_CORRELATION_ID_FLAG)
		w->correlation_id = keep(c, p->correlation_id);
	if (p->_flags & AMQP_BASIC_REPLY_TO_FLAG)
		w->reply_to = keep(c, p->reply_to);
	if (p->_flags & AMQP_BASIC_APP_ID_FLAG)
		w->app_id = keep(c, p->app_id);
	if (p->_flags & AMQP_BASIC_USER_ID_FLAG)
		w->user_id = keep(c, p->user_id);
	if (p->_flags & AMQP_BASIC_EXPIRATION_FLAG)
		w->expiration = keep(c, p->expiration);
	if (p->_flags & AMQP_BASIC_CONTENT_TYPE_FLAG)
		w->content_type = keep(c, p->content_type);
	if ((p->_flags & AMQP_BASIC_HEADERS_FLAG) == 0)
		return;
	for (int i = 0; i < p->headers.num_entries; i++)
	{
		const amqp_table_entry_t *e = &p->headers.entries[i];

		if (bytes_are(e->key, "tpc-version"))
		{
			if (!w->has_version)
				w->has_version = integer_of(&e->value, &w->version);
		}
		else if (bytes_are(e->key, "tpc-from"))
			keep_header(c, &w->from, &e->value);
		else if (bytes_are(e->key, "tpc-floor"))
			keep_header(c, &w->floor, &e->value);
	}
}

/* The message is complete: makes it an event. */
static bool
emit_content(TpcBroker *b, TpcBrokerEvent *event)
{
	Content    *c = &b->content;

	c->expect = EXPECT_METHOD;
	if (c->returned)
	{
		event->kind = TPC_EVENT_RETURN;
		event->routing_key = c->routing_key;
		event->text = c->reply_text;
	}
	else
	{
		event->kind = c->skip ? TPC_EVENT_OVERSIZED : TPC_EVENT_DELIVERY;
		event->queue = c->queue;
		event->call_kind = c->call_kind;
		event->delivery_tag = c->delivery_tag;
		event->redelivered = c->redelivered;
	}
	event->wire = c->wire;
	if (!c->skip)
	{
		event->wire.body.ptr = c->body.data;
		event->wire.body.len = c->body.len;
	}
	return true;
}

/* basic.deliver or basic.return: a message begins. */
static void
begin_content(TpcBroker *b, const Frame *f)
{
	Content    *c = &b->content;
	void	   *decoded;

	if (f->channel != CHANNEL || c->expect != EXPECT_METHOD)
	{
		tpc_broker_lose_protocol(b, "unexpected method");
		return;
	}
	decoded = tpc_broker_decode_method(b, f);
	if (decoded == NULL)
		return;
	c->expect = EXPECT_HEADER;
	c->text_len = 0;
	memset(&c->wire, 0, sizeof(c->wire));
	c->returned = tpc_broker_method_id(f) == AMQP_BASIC_RETURN_METHOD;
	if (c->returned)
	{
		amqp_basic_return_t *m = decoded;

		c->routing_key = keep(c, m->routing_key);
		c->reply_text = keep(c, m->reply_text);
	}
	else
	{
		amqp_basic_deliver_t *m = decoded;
		const size_t prefix = strlen(KIND_TAG_PREFIX);
		int			kind;

		c->call_kind.ptr = NULL;
		for (kind = 0; kind < TPC_QUEUE_KINDS; kind++)
		{
			if (bytes_are(m->consumer_tag, queue_suffix[kind]))
				break;
		}
		if (m->consumer_tag.len > prefix &&
			memcmp(m->consumer_tag.bytes, KIND_TAG_PREFIX, prefix) == 0)
		{
			c->call_kind = keep(c, m->consumer_tag);
			c->call_kind.ptr += prefix;
			c->call_kind.len -= prefix;
			kind = TPC_QUEUE_PREPARE;
		}
		if (kind == TPC_QUEUE_KINDS)
		{
			tpc_broker_lose_protocol(b, "unknown consumer");
			return;
		}
		c->queue = kind;
		c->delivery_tag = m->delivery_tag;
		c->redelivered = m->redelivered;
	}
}

/* The message's header. */
static bool
continue_header(TpcBroker *b, const Frame *f, TpcBrokerEvent *event)
{
	Content    *c = &b->content;
	amqp_bytes_t encoded;
	uint64		size;

	if (f->channel != CHANNEL || c->expect != EXPECT_HEADER ||
		f->size < CONTENT_HEAD)
	{
		tpc_broker_lose_protocol(b, "unexpected content header");
		return false;
	}
	memcpy(&size, f->payload + 4, sizeof(size));
	c->remaining = pg_ntoh64(size);
	encoded.bytes = unconstify(char *, f->payload) + CONTENT_HEAD;
	encoded.len = f->size - CONTENT_HEAD;
	keep_properties(b, encoded);

	/* one large body must not cost its memory for ever */
	if (c->body.maxlen > KEEP_SIZE)
	{
		MemoryContext old = MemoryContextSwitchTo(b->context);

		pfree(c->body.data);
		initStringInfo(&c->body);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&c->body);
	c->skip = c->remaining > b->max_body;
	c->expect = EXPECT_BODY;
	return c->remaining == 0 ? emit_content(b, event) : false;
}

/* A part of the message's body. */
static bool
continue_body(TpcBroker *b, const Frame *f, TpcBrokerEvent *event)
{
	Content    *c = &b->content;

	if (f->channel != CHANNEL || c->expect != EXPECT_BODY ||
		f->size > c->remaining)
	{
		tpc_broker_lose_protocol(b, "unexpected content body");
		return false;
	}
	if (!c->skip)
		appendBinaryStringInfo(&c->body, f->payload, (int) f->size);
	c->remaining -= f->size;
	return c->remaining == 0 ? emit_content(b, event) : false;
}

/* connection.blocked */
static bool
emit_blocked(TpcBroker *b, TpcBrokerEvent *event)
{
	event->kind = TPC_EVENT_BLOCKED;
	event->text.ptr = b->blocked_text;
	event->text.len = strlen(b->blocked_text);

	/* the broker now leaves our output unread for as long as it likes */
	set_user_timeout(b, 0);
	return true;
}

/* A frame; true if it completes an event.  May lose the connection. */
static bool
dispatch(TpcBroker *b, const Frame *f, TpcBrokerEvent *event)
{
	void	   *decoded;

	if (f->channel > CHANNEL)
		return tpc_channel_dispatch(b, f, event);
	if (f->type == AMQP_FRAME_HEADER)
		return continue_header(b, f, event);
	if (f->type == AMQP_FRAME_BODY)
		return continue_body(b, f, event);
	if (lose_if_close(b, f))
	{
		if (b->dead)
		{
			amqp_connection_close_ok_t m;

			/* politeness only, so without waiting */
			memset(&m, 0, sizeof(m));
			if (tpc_broker_put_method(b, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &m))
				(void) send_output(b);
		}
		return false;
	}
	switch (tpc_broker_method_id(f))
	{
		case AMQP_BASIC_DELIVER_METHOD:
		case AMQP_BASIC_RETURN_METHOD:
			begin_content(b, f);
			return false;

		case AMQP_BASIC_CANCEL_METHOD:
			decoded = tpc_broker_decode_method(b, f);
			if (decoded != NULL)
			{
				char		tag[TPC_KIND_SIZE + 16];

				tpc_broker_copy_text(tag, sizeof(tag),
									 ((amqp_basic_cancel_t *) decoded)->consumer_tag);
				tpc_broker_lose(b, ERRCODE_CONNECTION_FAILURE, 0,
								"the broker cancelled the consumer of queue"
								" \"tpc_amqp.%s.%s\", which may have been deleted",
								b->node, tag);
			}
			return false;

		case AMQP_CONNECTION_BLOCKED_METHOD:
			decoded = tpc_broker_decode_method(b, f);
			if (decoded == NULL)
				return false;
			tpc_broker_copy_text(b->blocked_text, sizeof(b->blocked_text),
								 ((amqp_connection_blocked_t *) decoded)->reason);
			return emit_blocked(b, event);

		case AMQP_CONNECTION_UNBLOCKED_METHOD:
			set_user_timeout(b, user_timeout(b));
			event->kind = TPC_EVENT_UNBLOCKED;
			return true;

		default:				/* answers, heartbeats */
			return false;
	}
}

/*
 * Sends a heartbeat if it is time to; misses the broker's.  Call it after
 * reading what there is: we may have been the ones who were asleep.
 */
static void
service_heartbeat(TpcBroker *b, bool nothing_read)
{
	int64		now;

	if (b->heartbeat_ms == 0)
		return;
	now = now_ms();
	if (nothing_read && now - b->last_recv > 2 * b->heartbeat_ms)
	{
		b->dead = true;
		tpc_broker_lose(b, ERRCODE_CONNECTION_FAILURE, 0,
						"nothing heard from the broker for %d seconds",
						(int) ((now - b->last_recv) / 1000));
		return;
	}
	if (now < b->next_beat)
		return;

	/* bytes that still wait are as good as a heartbeat */
	b->next_beat = now + b->heartbeat_ms / 2;
	if (b->out_start == b->out_end)
		put_heartbeat(b);
	(void) send_output(b);
}

/*
 * The next thing that happened, if any; never waits.  What *event points to
 * is valid until the next call.  After CLOSED, every call says the same.
 */
bool
tpc_broker_next_event(TpcBroker *b, TpcBrokerEvent *event)
{
	size_t		budget = EVENT_BUDGET;

	memset(event, 0, sizeof(*event));
	if (b->blocked_held)
	{
		b->blocked_held = false;
		return emit_blocked(b, event);
	}
	while (!b->lost)
	{
		Frame		f;
		ssize_t		n;
		int			rc;

		while (!b->lost && (rc = peek_frame(b, &b->in_start, &f)) != 0)
		{
			if (rc < 0)
				tpc_broker_lose_protocol(b, "malformed frame");
			else if (dispatch(b, &f, event))
				return true;
		}
		if (b->lost)
			break;
		if (b->emptied)
		{
			/* what has come since makes the socket readable */
			b->emptied = false;
			b->drained = true;
			return false;
		}
		if (budget == 0)
			return false;		/* and not drained: call again soon */
		n = read_input(b);
		if (n > 0)
			budget -= Min(budget, (size_t) n);
		if (n < 0)
			lose_socket(b);
		else
			service_heartbeat(b, n == 0);
		if (n == 0 && !b->lost)
		{
			b->emptied = false;
			b->drained = true;
			return false;
		}
	}
	event->kind = TPC_EVENT_CLOSED;
	event->error = b->error;
	return true;
}

int
tpc_broker_socket(TpcBroker *b)
{
	return b->fd;
}

/* Bodies longer than this are skipped; counts from the next message on. */
void
tpc_broker_set_max_body(TpcBroker *b, size_t max_body)
{
	b->max_body = Min(max_body, MaxAllocSize / 2);
}

/*
 * How many milliseconds tpc_broker_next_event() need not be called, unless
 * the socket becomes readable.  0 if there may be an event already, which is
 * so until it has returned false.
 */
int
tpc_broker_wait_ms(TpcBroker *b)
{
	int64		wait = IDLE_WAIT_MS;

	if (b->lost || b->blocked_held || !b->drained)
		return 0;
	if (b->heartbeat_ms > 0)
	{
		int64		now = now_ms();
		int64		dead = b->last_recv + 2 * b->heartbeat_ms + 1;

		wait = Min(wait, Min(b->next_beat, dead) - now);
	}
	/* TLS has to write before it can read on */
	if (b->read_needs != WL_SOCKET_READABLE)
		wait = Min(wait, RETRY_WAIT_MS);
	return (int) Max(wait, 0);
}

/*-------------------------------------------------------------------------
 * Sending.
 *-------------------------------------------------------------------------
 */

/*
 * Writes all buffered output.  Waits if the socket does not take it, as long
 * as the broker goes on reading at a reasonable rate.  Returns false if the
 * connection is lost.
 */
bool
tpc_broker_flush(TpcBroker *b)
{
	int64		stall;
	int64		start;
	int64		give_up;
	int64		deadline;
	int			rc;

	if (b->lost)
		return false;
	rc = send_output(b);
	if (rc != 0)
		return rc > 0;

	start = now_ms();
	stall = Max(b->heartbeat_ms, SEND_TIMEOUT_S * 1000);
	if (interrupted)
		stall = Min(stall, SEND_TIMEOUT_INTERRUPTED_MS);
	deadline = start + stall;
	give_up = deadline +
		(interrupted ? 0 : (b->out_end - b->out_start) / SEND_RATE);
	wait_fd = b->fd;			/* from here on a signal ends it */
	while (rc == 0)
	{
		size_t		left = b->out_end - b->out_start;
		int			events = b->write_needs;
		ssize_t		n = 0;

		if (now_ms() >= Min(deadline, give_up))
		{
			b->dead = true;
			tpc_broker_lose(b, ERRCODE_CONNECTION_FAILURE, 0,
							"the broker does not read: %zu bytes unsent after %d ms",
							left, (int) (now_ms() - start));
			break;
		}

		/* read, lest the broker cannot read because it cannot write */
		if (b->in_end - b->in_start < IN_LIMIT)
		{
			n = read_input(b);
			if (n < 0)
			{
				lose_socket(b);
				break;
			}
			events |= b->read_needs;
		}
		if (n == 0)
			(void) wait_socket(b->fd, events, Min(deadline, give_up));
		rc = send_output(b);
		if (b->out_end - b->out_start < left)
			deadline = now_ms() + stall;
	}
	wait_fd = -1;
	return !b->lost;
}

/* The same as far as the socket takes it now. */
bool
tpc_broker_try_flush(TpcBroker *b)
{
	return !b->lost && send_output(b) >= 0;
}

/* How many bytes are buffered and not sent. */
size_t
tpc_broker_unsent(TpcBroker *b)
{
	return b->out_end - b->out_start;
}

/*
 * Appends a body, in frames.  False if the connection is lost, which a flush
 * may find out.
 */
bool
tpc_broker_put_body(TpcBroker *b, uint16 channel, const char *body,
					size_t len)
{
	size_t		chunk = b->frame_max - FRAME_EXTRA;
	size_t		done = 0;

	(void) tpc_broker_out_reserve(b, len + (len / chunk + 1) * FRAME_EXTRA);
	while (done < len)
	{
		size_t		n = Min(chunk, len - done);
		char	   *p = tpc_broker_out_reserve(b, n + FRAME_EXTRA);

		memcpy(p + FRAME_HEAD, body + done, n);
		tpc_broker_finish_frame(b, p, AMQP_FRAME_BODY, channel, n);
		done += n;
	}
	b->published++;
	if (b->out_end - b->out_start < OUT_FLUSH)
		return true;
	return b->only_channels ? tpc_broker_try_flush(b) : tpc_broker_flush(b);
}

/*
 * Buffers a message to the exchange; flush sends it.  Returns false if the
 * connection is lost.  The wire's memory is not needed afterwards.
 */
bool
tpc_broker_publish(TpcBroker *b, const char *routing_key,
				   const TpcWire *wire, bool mandatory)
{
	amqp_basic_publish_t m;

	if (b->lost)
		return false;
	memset(&m, 0, sizeof(m));
	m.exchange = bytes_of(TPC_EXCHANGE);
	m.routing_key = bytes_of(routing_key);
	m.mandatory = mandatory;
	if (m.routing_key.len > SHORTSTR_MAX)
	{
		tpc_broker_lose(b, ERRCODE_PROGRAM_LIMIT_EXCEEDED, 0,
						"a routing key is longer than %d bytes", SHORTSTR_MAX);
		return false;
	}
	if (!tpc_broker_put_method(b, CHANNEL, AMQP_BASIC_PUBLISH_METHOD, &m) ||
		!put_content_header(b, wire))
		return false;

	return tpc_broker_put_body(b, CHANNEL, wire->body.ptr, wire->body.len);
}

/*
 * Buffers the acknowledgement of one delivery, or of it and all before it;
 * flush sends it.  Returns false if the connection is lost.  Votes need none,
 * and none is sent.
 */
bool
tpc_broker_ack(TpcBroker *b, TpcQueueKind queue, uint64 delivery_tag,
			   bool multiple)
{
	amqp_basic_ack_t m;

	if (b->lost)
		return false;
	if (queue == TPC_QUEUE_VOTE)
		return true;
	m.delivery_tag = delivery_tag;
	m.multiple = multiple;
	if (!tpc_broker_put_method(b, CHANNEL, AMQP_BASIC_ACK_METHOD, &m))
		return false;
	if (b->out_end - b->out_start >= OUT_FLUSH)
		return tpc_broker_flush(b);
	return true;
}

/* Puts into the buffer what binds the queue of a kind. */
static bool
bind_kind(TpcBroker *b, const char *call_kind)
{
	char		name[TPC_QUEUE_NAME_SIZE];
	amqp_queue_bind_t bind;

	tpc_broker_prepare_queue_name(name, b->node, call_kind);
	memset(&bind, 0, sizeof(bind));
	bind.queue = bytes_of(name);
	bind.exchange = bytes_of(TPC_EXCHANGE);
	bind.routing_key = bytes_of(name);
	bind.nowait = 1;
	return tpc_broker_put_method(b, CHANNEL, AMQP_QUEUE_BIND_METHOD, &bind);
}

/*
 * Buffers what has prepares of a kind delivered: as the node's other queues,
 * and if the broker refuses, the connection is lost as with those.  Returns
 * false if it is.
 *
 * On the same channel, so that acknowledgements remain one sequence.
 */
bool
tpc_broker_add_kind(TpcBroker *b, const char *call_kind, int prefetch)
{
	char		name[TPC_QUEUE_NAME_SIZE];
	char		tag[TPC_KIND_SIZE + 16];
	amqp_table_entry_t classic;
	amqp_queue_declare_t queue;
	amqp_basic_qos_t qos;
	amqp_basic_consume_t consume;

	if (b->lost)
		return false;
	tpc_broker_prepare_queue_name(name, b->node, call_kind);
	snprintf(tag, sizeof(tag), KIND_TAG_PREFIX "%s", call_kind);
	queue_declaration(&queue, &classic, name);
	queue.nowait = 1;
	memset(&qos, 0, sizeof(qos));
	qos.prefetch_count = (uint16) Min(Max(prefetch, 1), PG_UINT16_MAX);
	memset(&consume, 0, sizeof(consume));
	consume.queue = bytes_of(name);
	consume.consumer_tag = bytes_of(tag);
	consume.exclusive = 1;
	consume.nowait = 1;
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (b->kinds[i][0] == '\0')
		{
			strlcpy(b->kinds[i], call_kind, sizeof(b->kinds[i]));
			break;
		}
	}
	return tpc_broker_put_method(b, CHANNEL, AMQP_QUEUE_DECLARE_METHOD,
								 &queue) &&
		bind_kind(b, call_kind) &&
		tpc_broker_put_method(b, CHANNEL, AMQP_BASIC_QOS_METHOD, &qos) &&
		tpc_broker_put_method(b, CHANNEL, AMQP_BASIC_CONSUME_METHOD,
							  &consume);
}

/*
 * Buffers what ends that and deletes the queue, so that coordinators learn at
 * once.  The prepares in it are lost, as prepares may be.  Returns false if the
 * connection is lost.
 */
bool
tpc_broker_drop_kind(TpcBroker *b, const char *call_kind)
{
	char		name[TPC_QUEUE_NAME_SIZE];
	char		tag[TPC_KIND_SIZE + 16];
	amqp_basic_cancel_t cancel;
	amqp_queue_delete_t delete;

	if (b->lost)
		return false;
	tpc_broker_prepare_queue_name(name, b->node, call_kind);
	snprintf(tag, sizeof(tag), KIND_TAG_PREFIX "%s", call_kind);
	memset(&cancel, 0, sizeof(cancel));
	cancel.consumer_tag = bytes_of(tag);
	cancel.nowait = 1;
	memset(&delete, 0, sizeof(delete));
	delete.queue = bytes_of(name);
	delete.nowait = 1;
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (strcmp(b->kinds[i], call_kind) == 0)
			b->kinds[i][0] = '\0';
	}
	return tpc_broker_put_method(b, CHANNEL, AMQP_BASIC_CANCEL_METHOD,
								 &cancel) &&
		tpc_broker_put_method(b, CHANNEL, AMQP_QUEUE_DELETE_METHOD, &delete);
}

/*
 * Puts into the buffer what declares the exchange and binds the queues again,
 * without asking for an answer.
 *
 * If the exchange is deleted while we only consume, nobody tells us, and our
 * bindings are gone with it.  False if the connection is lost.
 */
bool
tpc_broker_bind_again(TpcBroker *b)
{
	amqp_exchange_declare_t exchange;

	if (b->lost)
		return false;
	memset(&exchange, 0, sizeof(exchange));
	exchange.exchange = bytes_of(TPC_EXCHANGE);
	exchange.type = bytes_of("direct");
	exchange.durable = 1;
	exchange.nowait = 1;
	if (!tpc_broker_put_method(b, CHANNEL, AMQP_EXCHANGE_DECLARE_METHOD, &exchange))
		return false;
	for (int kind = 0; kind < TPC_QUEUE_KINDS; kind++)
	{
		char		name[TPC_QUEUE_NAME_SIZE];
		amqp_queue_bind_t bind;

		tpc_broker_queue_name(name, b->node, kind);
		memset(&bind, 0, sizeof(bind));
		bind.queue = bytes_of(name);
		bind.exchange = bytes_of(TPC_EXCHANGE);
		bind.routing_key = bytes_of(name);
		bind.nowait = 1;
		if (!tpc_broker_put_method(b, CHANNEL, AMQP_QUEUE_BIND_METHOD, &bind))
			return false;
	}
	for (int i = 0; i < TPC_MAX_KINDS; i++)
	{
		if (b->kinds[i][0] != '\0' && !bind_kind(b, b->kinds[i]))
			return false;
	}
	return true;
}

/* Why the connection is lost; NULL while it is not. */
const TpcBrokerError *
tpc_broker_error(TpcBroker *b)
{
	return b->lost ? &b->error : NULL;
}

/* Messages published, and system calls (with TLS: records) to write them. */
void
tpc_broker_counters(TpcBroker *b, uint64 *published, uint64 *writes)
{
	*published = b->published;
	*writes = b->writes;
}
