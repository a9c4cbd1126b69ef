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

typedef struct TpcDestination
{
	pairingheap_node link;		/* of those that wait for their time */
	bool		held;			/* what follows counts */
	bool		waits;			/* link is in use */
	TimestampTz until;			/* nothing more goes there before */
	int			delay_ms;
	int			allowed;		/* as many may be on their way */
	int			on_way;
	int64		first;			/* no row of it below that is not on its way */
} TpcDestination;

extern void tpc_destinations_init(void);
extern TpcDestination *tpc_destination_find(uint64 hash);
extern void tpc_destination_refused(TpcDestination *d, int64 id, bool counted,
									TimestampTz now);
extern bool tpc_destination_took(TpcDestination *d, bool counted,
								 TimestampTz now);
extern void tpc_destination_given(TpcDestination *d, int64 id);
extern void tpc_destination_met(TpcDestination *d, int64 id);
extern void tpc_destination_passed(TpcDestination *d, int64 id);
extern void tpc_destination_exhausted(TpcDestination *d);
extern void tpc_destination_restore(TpcDestination *d, int64 id);
extern TpcDestination *tpc_destination_next(void);

#endif							/* TPC_DESTINATION_H */
