/*-------------------------------------------------------------------------
 *
 * samples.h
 *	  Valid messages of each type, for seeds to be made of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_SAMPLES_H
#define TPC_SAMPLES_H

#include "message.h"

/* Each is valid during its call. */
extern void for_each_sample(void (*use) (const char *name,
										 const TpcWire *wire));

#endif							/* TPC_SAMPLES_H */
