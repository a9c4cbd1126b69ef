/*-------------------------------------------------------------------------
 *
 * branch.h
 *	  Tables branch, floor and incident: the participant's memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_BRANCH_H
#define TPC_BRANCH_H

#include "nodes/pg_list.h"

#include "message.h"
#include "protocol.h"
#include "relation.h"
#include "shmem.h"

#define TPC_GID_PREFIX	"tpc_amqp:"

typedef struct TpcBranchRow
{
	TpcBranchState state;
	char		gid[TPC_GID_SIZE];
	char		sender[TPC_USER_MAXLEN + 1];	/* of its prepare; "" if
												 * joined */
	TimestampTz prepared_at;
	TransactionId xid;			/* that inserted it */
} TpcBranchRow;

/* What a person has decided about a branch in doubt. */
typedef struct TpcHeuristic
{
	TpcGlobalId id;
	bool		commit;
	bool		answered;		/* its coordinator's decision has been heard */
} TpcHeuristic;

/* A prepared branch as pg_prepared_xacts shows it. */
typedef struct TpcPreparedBranch
{
	TpcGlobalId id;
	char		gid[TPC_GID_SIZE];
	TimestampTz prepared_at;
} TpcPreparedBranch;

extern void tpc_branch_gid(const TpcGlobalId *id, const char *node,
						   char gid[TPC_GID_SIZE]);
extern bool tpc_branch_gid_parse(const char *gid, const char *node,
								 TpcGlobalId *id);
extern bool tpc_branch_gid_is_ours(const char *gid);
extern void tpc_branch_each(void (*visit) (const TpcGlobalId *id,
										   const TpcBranchRow *row,
										   TpcRowState state, void *arg),
							void *arg);
extern void tpc_branch_probe(const TpcGlobalId *id, TpcBranchRow *row);
extern void tpc_branch_insert(const TpcGlobalId *id, const char *gid,
							  const char *sender);
extern bool tpc_branch_below_floor(const TpcGlobalId *id,
								   const char *sender);
extern bool tpc_branch_seems_closed(const TpcGlobalId *id,
									const char *sender);
extern bool tpc_branch_advance_floor(const char *coordinator,
									 const char *sender,
									 const TpcGtid *floor);
extern bool tpc_branch_gid_exists(const char *gid);
extern bool tpc_branch_is_prepared(const TpcBranchRow *row);
extern char *tpc_branch_other_name(const char *node);
extern List *tpc_branch_prepared(const char *node);
extern bool tpc_heuristic_lookup(const TpcGlobalId *id, bool *commit);
extern bool tpc_heuristic_answered(const TpcGlobalId *id);
extern void tpc_heuristic_record(const TpcGlobalId *id, bool commit);
extern List *tpc_heuristic_pending(void);
extern void tpc_incident_report(const TpcGlobalId *id, const char *kind,
								const char *node, const char *detail);
extern bool tpc_incident_clear(const TpcGlobalId *id, const char *kind);

#endif							/* TPC_BRANCH_H */
