/*-------------------------------------------------------------------------
 *
 * failed.h
 *	  Messages whose handler has failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_FAILED_H
#define TPC_FAILED_H

#include "subscription.h"

/* A message, as a consume worker has it; palloc'd, in the server's encoding. */
typedef struct TpcMessageIn
{
	char	   *queue;
	char	   *message_id;		/* NULL: none */
	char	   *exchange;
	char	   *routing_key;
	bool		redelivered;
	char	   *properties;		/* bytes */
	int			properties_len;
	char	   *body;			/* bytes */
	int			body_len;
	int			attempt;		/* from 1 */
	int64		failed_id;		/* of its row in failed_message; 0: none */
} TpcMessageIn;

/* What became of one that failed. */
typedef enum TpcFailedState
{
	TPC_FAILED_RETRY,
	TPC_FAILED_KEPT,
	TPC_FAILED_DROPPED,
	TPC_FAILED_DEAD_LETTERED,
	TPC_FAILED_KNOWN			/* its row is there already */
} TpcFailedState;

/* When the first message of a queue is to be run again. */
typedef struct TpcDue
{
	char	   *queue;
	TimestampTz at;
} TpcDue;

extern TpcSubscriptionCounter tpc_failed_counter(TpcFailedState state);
extern bool tpc_failed_put_away(const TpcMessageIn *message, bool too_early,
								int64 *delay_ms);
extern TpcFailedState tpc_failed_note(const TpcMessageIn *message,
									  const ErrorData *edata,
									  int64 *delay_ms);
extern TpcDue *tpc_failed_due(TpcNode *node, int *n);
extern TpcMessageIn *tpc_failed_take_due(TpcNode *node, TpcWorker *self,
										 const char *queue, bool own_workers,
										 bool *other);
extern bool tpc_failed_lock(const TpcMessageIn *message);
extern void tpc_failed_remove(int64 id);

#endif							/* TPC_FAILED_H */
