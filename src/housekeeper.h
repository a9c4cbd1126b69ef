/*-------------------------------------------------------------------------
 *
 * housekeeper.h
 *	  What the lead resolve worker does besides.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_HOUSEKEEPER_H
#define TPC_HOUSEKEEPER_H

#include "shmem.h"

extern void tpc_housekeeper_init(TpcNode *for_node);
extern long tpc_housekeeper_turn(void);

#endif							/* TPC_HOUSEKEEPER_H */
