/*-------------------------------------------------------------------------
 *
 * broker.h
 *	  One connection to RabbitMQ, as the messenger uses it.
 *
 * broker.c is the only file that includes <amqp.h>.
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
	TPC_QUEUE_PREPARE,			/* ".prepare", acknowledged by the caller */
	TPC_QUEUE_DECISION,			/* ".decision", acknowledged by the caller */
	TPC_QUEUE_VOTE				/* ".vote", no acknowledgement */
} TpcQueueKind;
#define TPC_QUEUE_KINDS 3
#define TPC_QUEUE_NAME_SIZE (TPC_NODE_SIZE + 32)

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
	TPC_EVENT_CLOSED			/* connection is gone: see error; only
								 * tpc_broker_close() may follow */
} TpcBrokerEventKind;

typedef struct TpcBrokerEvent
{
	TpcBrokerEventKind kind;
	TpcQueueKind queue;			/* DELIVERY, OVERSIZED */
	uint64		delivery_tag;
	bool		redelivered;
	TpcWire		wire;
	TpcSlice	routing_key;	/* RETURN */
	TpcSlice	text;			/* RETURN, BLOCKED: the broker's words */
	TpcBrokerError error;		/* CLOSED */
} TpcBrokerEvent;

typedef struct TpcBroker TpcBroker;

extern void tpc_broker_queue_name(char out[TPC_QUEUE_NAME_SIZE],
								  const char *node, TpcQueueKind kind);
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
extern bool tpc_broker_bind_again(TpcBroker *broker);
extern bool tpc_broker_flush(TpcBroker *broker);
extern const TpcBrokerError *tpc_broker_error(TpcBroker *broker);
extern void tpc_broker_counters(TpcBroker *broker, uint64 *published,
								uint64 *writes);
extern void tpc_broker_interrupt(void);

#endif							/* TPC_BROKER_H */
