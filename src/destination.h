/*-------------------------------------------------------------------------
 *
 * destination.h
 *	  Destinations of publish() whose messages the broker does not take.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_DESTINATION_H
#define TPC_DESTINATION_H

#include "datatype/timestamp.h"
#include "lib/pairingheap.h"

/* Where a message goes: hashes. */
typedef struct TpcDestinationKey
{
	uint64		exchange;
	uint64		destination;	/* exchange and routing key */
} TpcDestinationKey;

typedef struct TpcDestination
{
	uint64		hash;			/* key in the table */
	uint64		exchange;
	bool		held;			/* what follows counts */
	bool		waits;			/* link is in use */
	pairingheap_node link;		/* of those that wait for their time */
	TimestampTz until;			/* nothing more goes there before */
	int			delay_ms;
	int			allowed;		/* as many may be on their way */
	int			on_way;			/* since it was held first */
	int64		first;			/* of rows that are not on their way, there is
								 * none below … */
	int64		last;			/* … and none known above */
} TpcDestination;

extern void tpc_destinations_init(void);
extern TpcDestination *tpc_destination_find(const TpcDestinationKey *key);
extern void tpc_destination_refused(const TpcDestinationKey *key, int64 id,
									bool was_probe, bool silent,
									TimestampTz now);
extern int64 tpc_destination_took(const TpcDestinationKey *key, bool was_probe,
								  bool quick, TimestampTz now);
extern void tpc_destination_given(TpcDestination *d, int64 id);
extern void tpc_destination_met(TpcDestination *d, int64 id);
extern void tpc_destination_passed(TpcDestination *d, int64 id);
extern void tpc_destination_restore(const TpcDestinationKey *key, int64 id);
extern TpcDestination *tpc_destination_next(void);

#endif							/* TPC_DESTINATION_H */
