/*-------------------------------------------------------------------------
 *
 * decision.h
 *	  Tables decision and incarnation: the coordinator's memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_DECISION_H
#define TPC_DECISION_H

#include "nodes/pg_list.h"
#include "utils/timestamp.h"

#include "protocol.h"
#include "relation.h"
#include "shmem.h"

/* A row of decision, palloc'd in the caller's context. */
typedef struct TpcDecisionRow
{
	TpcGtid		gtid;
	int			nparticipants;
	char	  **participants;
	char	  **users;			/* that voted for them */
	bool	   *acked;			/* by participant, as far as it was noted */
	TimestampTz decided_at;
	char	   *gid;			/* the transaction was prepared under; or NULL */
	bool	   *enlisted;		/* by participant: the application prepares it */
} TpcDecisionRow;

extern void tpc_decision_insert(const TpcGtid *gtid, char **participants,
								char **users, int nparticipants,
								const char *gid, const bool *enlisted);
extern TpcRowState tpc_decision_probe(const TpcGtid *gtid,
									  TpcDecisionRow *row);
extern void tpc_decision_each(void (*visit) (const TpcDecisionRow *row,
											 TpcRowState state, void *arg),
							  void *arg);
extern bool tpc_decision_lookup(const TpcGtid *gtid, TpcDecisionRow *row);
extern List *tpc_decision_list(TimestampTz before,
							   bool (*skip) (const TpcGtid *gtid));
extern void tpc_decision_note_acks(const TpcGtid *gtid, char **participants,
								   const bool *acked, int n);
extern uint64 tpc_decision_delete(const TpcGtid *gtids, int n);
extern TpcOutcome tpc_decision_outcome(TpcNode *node, const TpcGtid *gtid,
									   bool for_user);
extern void tpc_decision_floor(TpcNode *node, TpcGtid *floor);
extern char *tpc_incarnation_last_node(void);
extern uint64 tpc_incarnation_start(const char *name, TimeLineID *timeline);
extern int	tpc_decision_count_open(void);
extern void tpc_decision_delete_finished(void);
extern void tpc_decision_delete_foreign(void);
extern void tpc_decision_check_name(const char *name);

#endif							/* TPC_DECISION_H */
