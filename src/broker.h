/*-------------------------------------------------------------------------
 *
 * broker.h
 *	  One connection to RabbitMQ, as the messenger uses it.
 *
 * broker.c is the connection and the channel of the protocol between nodes;
 * channel.c is the other channels, for what users do with the broker.  They
 * are the only files that include <amqp.h>.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_BROKER_H
#define TPC_BROKER_H

#include "message.h"

#define TPC_EXCHANGE "tpc_amqp"

/* The node's queues: "tpc_amqp.<node>.<suffix>", also the routing key. */
typedef enum TpcQueueKind
{
	TPC_QUEUE_PREPARE,			/* ".prepare", and ".prepare:<kind>";
								 * acknowledged by the caller */
	TPC_QUEUE_DECISION,			/* ".decision", acknowledged by the caller */
	TPC_QUEUE_VOTE				/* ".vote", no acknowledgement */
} TpcQueueKind;
#define TPC_QUEUE_KINDS 3
#define TPC_QUEUE_NAME_SIZE (TPC_NODE_SIZE + TPC_KIND_SIZE + 32)

/* Kinds of calls that have a prepare queue of their own, at most. */
#define TPC_MAX_KINDS 16

typedef struct TpcBrokerParams
{
	char	   *host;
	int			port;
	char	   *vhost;
	char	   *user;
	char	   *password;
	int			heartbeat_s;	/* 0 disables */
	int			connect_timeout_ms; /* for the whole of connecting */
	bool		tls;
	char	   *cacert;			/* NULL: the system's */
	char	   *cert;			/* NULL: no client certificate */
	char	   *key;
	bool		tls_verify;		/* verify peer and host name */
	int			prefetch_prepare;
	int			prefetch_decision;
	size_t		max_body;		/* longer bodies are skipped, not stored */
	const char *node;			/* the node's name */
	bool		only_channels;	/* nothing is declared or consumed */
} TpcBrokerParams;

/* Why a connection could not be made, or was lost. */
typedef struct TpcBrokerError
{
	int			sqlstate;		/* packed, MAKE_SQLSTATE */
	int			reply_code;		/* AMQP reply code, 0 if none */
	char		phase[32];		/* "connect", "login", "declare", … */
	char		text[256];		/* the broker's or library's own words; never
								 * a password */
} TpcBrokerError;

typedef enum TpcBrokerEventKind
{
	TPC_EVENT_DELIVERY,			/* a message for us */
	TPC_EVENT_OVERSIZED,		/* one longer than max_body; wire has its
								 * properties and no body */
	TPC_EVENT_RETURN,			/* a mandatory message nobody takes; wire is
								 * ours, routing_key says where to */
	TPC_EVENT_BLOCKED,			/* the broker refuses publishing; text */
	TPC_EVENT_UNBLOCKED,
	TPC_EVENT_CLOSED,			/* connection is gone: see error; only
								 * tpc_broker_close() may follow */

	/* of the other channels: channel and owner are set */
	TPC_EVENT_MESSAGE,			/* consumed, or the answer to GET */
	TPC_EVENT_RETURNED,			/* a mandatory message nobody takes */
	TPC_EVENT_CONFIRM,			/* of what was published: delivery_tag,
								 * multiple, refused */
	TPC_EVENT_ANSWER,			/* to tpc_channel_call() */
	TPC_EVENT_CANCELLED,		/* the broker ends a consumer: its queue is
								 * gone; consumer_tag */
	TPC_EVENT_CHANNEL_CLOSED	/* refused: see error.  The channel is gone,
								 * and whatever was under way in it unknown */
} TpcBrokerEventKind;

typedef struct TpcBrokerEvent
{
	TpcBrokerEventKind kind;
	TpcQueueKind queue;			/* DELIVERY, OVERSIZED */
	TpcSlice	call_kind;		/* of a prepare queue; ptr NULL: the general */
	uint64		delivery_tag;
	bool		redelivered;
	TpcWire		wire;
	TpcSlice	routing_key;	/* RETURN */
	TpcSlice	text;			/* RETURN, BLOCKED: the broker's words */
	TpcBrokerError error;		/* CLOSED, CHANNEL_CLOSED */

	/* the other channels' */
	uint16		channel;
	void	   *owner;			/* as given to tpc_channel_open() */
	TpcSlice	consumer_tag;	/* MESSAGE (ptr NULL: of GET), CANCELLED */
	TpcSlice	exchange;		/* MESSAGE, RETURNED; and routing_key */
	TpcSlice	properties;		/* MESSAGE, RETURNED: see properties.h */
	TpcSlice	body;			/* MESSAGE, RETURNED; ptr NULL: too long */
	TpcSlice	name;			/* ANSWER: of the queue declared */
	uint32		messages;		/* ANSWER, MESSAGE of GET: left in the queue;
								 * of PURGE and DELETE, that were in it */
	uint32		consumers;		/* ANSWER */
	bool		empty;			/* ANSWER to GET: there is none */
	int			reply_code;		/* RETURNED; text is the reason */
	bool		multiple;		/* CONFIRM: all up to delivery_tag */
	bool		refused;		/* CONFIRM: basic.nack */
} TpcBrokerEvent;

/* A method with an answer; flags that it does not have are ignored. */
typedef enum TpcCallKind
{
	TPC_CALL_DECLARE_QUEUE,		/* queue, passive, durable, exclusive,
								 * auto_delete, arguments */
	TPC_CALL_DELETE_QUEUE,		/* queue, if_unused, if_empty */
	TPC_CALL_PURGE_QUEUE,		/* queue */
	TPC_CALL_BIND_QUEUE,		/* queue, exchange, routing_key, arguments */
	TPC_CALL_UNBIND_QUEUE,		/* the same */
	TPC_CALL_DECLARE_EXCHANGE,	/* exchange, type, passive, durable,
								 * auto_delete, internal, arguments */
	TPC_CALL_DELETE_EXCHANGE,	/* exchange, if_unused */
	TPC_CALL_CONSUME,			/* queue, consumer_tag, auto_ack, exclusive,
								 * arguments; prefetch */
	TPC_CALL_CANCEL,			/* consumer_tag */
	TPC_CALL_GET				/* queue, auto_ack; answered by MESSAGE, or
								 * ANSWER with empty */
} TpcCallKind;

typedef struct TpcBrokerCall
{
	TpcCallKind kind;
	TpcSlice	queue;			/* names: at most 255 bytes */
	TpcSlice	exchange;
	TpcSlice	routing_key;
	TpcSlice	type;			/* of the exchange */
	TpcSlice	consumer_tag;
	TpcSlice	arguments;		/* a table: see properties.h */
	bool		passive;
	bool		durable;
	bool		exclusive;
	bool		auto_delete;
	bool		internal;
	bool		if_unused;
	bool		if_empty;
	bool		auto_ack;
	int			prefetch;		/* 0: no limit */
} TpcBrokerCall;

typedef enum TpcSettlement
{
	TPC_SETTLE_ACK,
	TPC_SETTLE_REQUEUE,
	TPC_SETTLE_REJECT			/* the queue's dead-letter exchange has it */
} TpcSettlement;

#define TPC_NAME_MAX 255		/* of queues, exchanges, routing keys, tags */

typedef struct TpcBroker TpcBroker;

extern void tpc_broker_queue_name(char out[TPC_QUEUE_NAME_SIZE],
								  const char *node, TpcQueueKind kind);
extern void tpc_broker_prepare_queue_name(char out[TPC_QUEUE_NAME_SIZE],
										  const char *node,
										  const char *call_kind);
extern TpcBroker *tpc_broker_open(const TpcBrokerParams *params,
								  TpcBrokerError *error);
extern void tpc_broker_close(TpcBroker *broker);
extern int	tpc_broker_socket(TpcBroker *broker);
extern void tpc_broker_set_max_body(TpcBroker *broker, size_t max_body);
extern bool tpc_broker_next_event(TpcBroker *broker, TpcBrokerEvent *event);
extern int	tpc_broker_wait_ms(TpcBroker *broker);
extern bool tpc_broker_publish(TpcBroker *broker, const char *routing_key,
							   const TpcWire *wire, bool mandatory);
extern bool tpc_broker_ack(TpcBroker *broker, TpcQueueKind queue,
						   uint64 delivery_tag, bool multiple);
extern bool tpc_broker_add_kind(TpcBroker *broker, const char *call_kind,
								int prefetch);
extern bool tpc_broker_drop_kind(TpcBroker *broker, const char *call_kind);
extern bool tpc_broker_bind_again(TpcBroker *broker);
extern bool tpc_broker_flush(TpcBroker *broker);
extern bool tpc_broker_try_flush(TpcBroker *broker);
extern size_t tpc_broker_unsent(TpcBroker *broker);
extern void tpc_broker_abandon(TpcBroker *broker, const char *why);
extern const TpcBrokerError *tpc_broker_error(TpcBroker *broker);
extern void tpc_broker_counters(TpcBroker *broker, uint64 *published,
								uint64 *writes);
extern void tpc_broker_interrupt(void);

extern uint16 tpc_channel_open(TpcBroker *broker, void *owner, bool confirms);
extern void tpc_channel_close(TpcBroker *broker, uint16 channel);
extern bool tpc_channel_call(TpcBroker *broker, uint16 channel,
							 const TpcBrokerCall *call);
extern bool tpc_channel_publish(TpcBroker *broker, uint16 channel,
								const TpcSlice *exchange,
								const TpcSlice *routing_key,
								const TpcSlice *properties,
								const TpcSlice *body, bool mandatory);
extern bool tpc_channel_settle(TpcBroker *broker, uint16 channel,
							   uint64 delivery_tag, bool multiple,
							   TpcSettlement how);

#endif							/* TPC_BROKER_H */
