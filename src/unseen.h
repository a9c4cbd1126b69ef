/*-------------------------------------------------------------------------
 *
 * unseen.h
 *	  From which id on rows may have turned up since the last look.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_UNSEEN_H
#define TPC_UNSEEN_H

/* Transactions that a snapshot does not show: those running, and from xmax on. */
typedef struct TpcUnfinished
{
	TransactionId xmax;
	TransactionId *running;		/* ascending; of the top level */
	int			nrunning;
	int			size;			/* of running */
} TpcUnfinished;

/* Who gets an xid from next on, draws ids above id. */
typedef struct TpcUnseenPoint
{
	TransactionId next;
	int64		id;
} TpcUnseenPoint;

typedef struct TpcUnseen
{
	bool		known;			/* false: nothing has been looked at */
	int64		done;			/* what the last look showed, up to this id,
								 * is dealt with */
	TpcUnfinished before;		/* as of the last look */
	TpcUnfinished now;			/* as of the one that has begun */
	TpcUnseenPoint *points;		/* ascending in both */
	int			npoints;
	int			points_size;
} TpcUnseen;

extern int64 tpc_unseen_begin(TpcUnseen *unseen, TransactionId xmax,
							  const TransactionId *running, int nrunning);
extern void tpc_unseen_end(TpcUnseen *unseen, int64 done, int64 highest,
						   TransactionId next);
extern void tpc_unseen_again(TpcUnseen *unseen, int64 id);
extern void tpc_unseen_forget(TpcUnseen *unseen);

#endif							/* TPC_UNSEEN_H */
