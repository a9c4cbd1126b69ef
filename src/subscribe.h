/*-------------------------------------------------------------------------
 *
 * subscribe.h
 *	  Subscriptions as SQL and the relay see them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_SUBSCRIBE_H
#define TPC_SUBSCRIBE_H

#include "shmem.h"

extern bool tpc_subscriptions_exist(void);
extern long tpc_subscription_follow(TpcNode *node);
extern void tpc_subscription_at_eoxact(bool committed);

#endif							/* TPC_SUBSCRIBE_H */
