/*-------------------------------------------------------------------------
 *
 * turn.h
 *	  Which subscription a consume worker works for next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_TURN_H
#define TPC_TURN_H

#include "subscription.h"

extern bool tpc_turn_is_own(int number);
extern bool tpc_turn_may_run(TpcNode *node, int number,
							 const TpcSubscription *sub);
extern TpcSubscription *tpc_turn_pick(TpcNode *node, int number);
extern TpcSubscription *tpc_turn_pick_due(TpcNode *node, int number);
extern TimestampTz tpc_turn_due(TpcNode *node, int number);
extern void tpc_turn_begin(TpcNode *node, int number, TpcSubscription *sub);
extern void tpc_turn_end(TpcNode *node, int number);
extern void tpc_turn_look_after(TpcNode *node);
extern void tpc_turn_assign(TpcNode *node);

#endif							/* TPC_TURN_H */
