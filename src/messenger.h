/*-------------------------------------------------------------------------
 *
 * messenger.h
 *	  What parts of the messenger are: those for users' own messages.
 *
 * The protocol between nodes is messenger.c's own affair.  What sessions do
 * with the broker besides (calls, publishing, consuming) are parts of the
 * same process: each has channels of its own, and state of this process.
 *
 * A part never waits, and runs no SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_MESSENGER_H
#define TPC_MESSENGER_H

#include "broker.h"
#include "shmem.h"

typedef struct TpcMessengerPart
{
	/*
	 * A new connection: none of the channels before it are there any more,
	 * and what was under way in them is unknown.
	 */
	void		(*connected) (TpcNode *node, TpcBroker *broker);
	/* The connection is lost, for this reason; so are its channels. */
	void		(*lost) (TpcNode *node, const TpcBrokerError *error);

	/*
	 * Once a turn, with errors of a connection pending for the caller: take
	 * what sessions and workers have left, give the broker layer what is to
	 * go out.  broker is NULL while there is no connection.  While blocked,
	 * nothing should be published.
	 */
	void		(*serve) (TpcNode *node, TpcBroker *broker, bool blocked);
} TpcMessengerPart;

/*
 * The owner of a channel (tpc_channel_open()) begins with this: who takes the
 * channel's events.
 */
typedef struct TpcChannelOwner
{
	void		(*take) (struct TpcChannelOwner *owner, TpcNode *node,
						 TpcBroker *broker, const TpcBrokerEvent *event);
} TpcChannelOwner;

/* messenger.c, for publisher.c: of the connection for publish(). */
extern void tpc_messenger_report(const TpcBrokerError *error, bool lost);

#endif							/* TPC_MESSENGER_H */
