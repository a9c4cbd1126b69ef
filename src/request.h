/*-------------------------------------------------------------------------
 *
 * request.h
 *	  What sessions ask of the broker, and its answers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_REQUEST_H
#define TPC_REQUEST_H

#include "messenger.h"

typedef enum TpcRequestState
{
	TPC_REQUEST_FREE,
	TPC_REQUEST_IDLE,			/* a session has it; nothing is under way */
	TPC_REQUEST_QUEUED,			/* for the messenger to send */
	TPC_REQUEST_SENT,			/* the broker has not answered */
	TPC_REQUEST_ANSWERED		/* for the session to take */
} TpcRequestState;

/* What the broker said. */
typedef struct TpcAnswer
{
	TpcBrokerError error;		/* sqlstate 0: none */
	bool		unknown;		/* it may have been carried out all the same */
	char		name[TPC_NAME_MAX + 1]; /* of the queue declared; UTF-8 */
	uint32		messages;
	uint32		consumers;

	/* to GET */
	bool		empty;
	uint64		delivery_tag;
	bool		redelivered;
	TpcSlice	exchange;		/* UTF-8; these in the caller's memory */
	TpcSlice	routing_key;
	TpcSlice	properties;
	TpcSlice	body;
} TpcAnswer;

typedef struct TpcRequest TpcRequest;

extern void tpc_request_shmem_request(void);
extern void tpc_request_shmem_startup(void);

/*
 * For sessions and workers.  tpc_request_call() is all that is needed where
 * nothing is left on the channel; the others are for what is taken from a
 * queue and settled with the transaction.
 */
extern void tpc_request_call(TpcNode *node, const TpcBrokerCall *calls, int n,
							 TpcAnswer *answer);
extern TpcRequest *tpc_request_get(TpcNode *node, TpcRequest *request,
								   const TpcBrokerCall *call,
								   uint64 acknowledge, TpcAnswer *answer);
extern void tpc_request_requeue(TpcRequest *request, uint64 from);
extern bool tpc_request_check(TpcRequest *request, TpcBrokerError *why);
extern void tpc_request_commit(TpcRequest *request);
extern void tpc_request_abandon(TpcRequest *request);
extern void tpc_request_raise(TpcNode *node, const TpcAnswer *answer)
			pg_attribute_noreturn();

/* The messenger's. */
extern const TpcMessengerPart tpc_request_part;

#endif							/* TPC_REQUEST_H */
