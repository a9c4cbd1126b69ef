/*-------------------------------------------------------------------------
 *
 * consumer.h
 *	  The messenger's part of subscriptions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_CONSUMER_H
#define TPC_CONSUMER_H

#include "messenger.h"

extern const TpcMessengerPart tpc_consumer_part;

#endif							/* TPC_CONSUMER_H */
