/*-------------------------------------------------------------------------
 *
 * protocol.h
 *	  The decisions of the commit protocol, as functions of what was seen.
 *
 * Pure: no I/O, no shared memory, no clock.  The caller gathers the facts in
 * the order stated with each field; the functions say what they mean.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_PROTOCOL_H
#define TPC_PROTOCOL_H

#include "gtid.h"

typedef enum TpcOutcome
{
	TPC_OUTCOME_PENDING,
	TPC_OUTCOME_COMMITTED,
	TPC_OUTCOME_ABORTED,
	TPC_OUTCOME_UNKNOWN
} TpcOutcome;

/*
 * What the coordinator knows of G, looked up in this order and no other; a
 * later field need not be looked up once an earlier one decides.
 */
typedef struct TpcCoordinatorFacts
{
	bool		live;			/* 1: a backend works on it, undecided */
	bool		prepared;		/* 2: its own transaction is prepared here */
	bool		recorded;		/* 3: a snapshot taken after 1 and 2 sees its
								 * decision row */
	bool		incarnation_known;	/* this history contains the incarnation */
	bool		same_timeline;	/* that ran on the present timeline */
	bool		presume_anyway; /* failover_presumes_abort */
} TpcCoordinatorFacts;

extern TpcOutcome tpc_protocol_outcome(const TpcCoordinatorFacts *facts);

/* What is told to somebody who asks, and may not know that it was forgotten */
extern TpcOutcome tpc_protocol_outcome_for_user(TpcOutcome outcome,
												bool maybe_forgotten);

typedef enum TpcDecision
{
	TPC_DECISION_COMMIT,
	TPC_DECISION_ROLLBACK
} TpcDecision;

typedef enum TpcBranchState
{
	TPC_BRANCH_NONE,			/* no row */
	TPC_BRANCH_IN_PROGRESS,		/* a row whose transaction is not finished:
								 * prepared, or about to be */
	TPC_BRANCH_COMMITTED		/* a committed row */
} TpcBranchState;

/* What a participant knows of its branch of G when a decision arrives. */
typedef struct TpcParticipantFacts
{
	TpcDecision decision;
	TpcBranchState branch;		/* 1: the row, read dirty */
	bool		sender_matches; /* decision and prepare came from one user */
	bool		gid_exists;		/* 2: a prepared transaction has the row's gid */
	bool		job_exists;		/* 3: a prepare of G is queued or running … */
	bool		foreign_job;	/* … but came from another user */
	bool		below_floor;	/* 4: recorded as closed */
	bool		forced;			/* a person has rolled the branch back */
	bool		forgotten;		/* the rollback is for want of a record that
								 * may have been deleted */
} TpcParticipantFacts;

typedef enum TpcAction
{
	TPC_ACTION_FINISH,			/* COMMIT PREPARED or ROLLBACK PREPARED; for
								 * commit, then acknowledge */
	TPC_ACTION_ACK,				/* commit took effect before: acknowledge */
	TPC_ACTION_CANCEL,			/* stop the job, look again soon */
	TPC_ACTION_RETRY,			/* look again soon */
	TPC_ACTION_FORCED_ROLLBACK, /* incident: rolled back by a person */
	TPC_ACTION_LOST,			/* incident: tell the coordinator */
	TPC_ACTION_MISMATCH,		/* incident: committed here, rolled back there */
	TPC_ACTION_FORGED,			/* drop it: not from who sent the prepare */
	TPC_ACTION_NONE				/* nothing to do */
} TpcAction;

extern TpcAction tpc_protocol_decide(const TpcParticipantFacts *facts);

/* What a participant does with a prepare. */
typedef enum TpcPrepareAction
{
	TPC_PREPARE_RUN,
	TPC_PREPARE_VOTE_AGAIN,		/* it is prepared: repeat the yes */
	TPC_PREPARE_DROP,			/* it took effect and is finished */
	TPC_PREPARE_REFUSE			/* closed: vote no */
} TpcPrepareAction;

extern TpcPrepareAction tpc_protocol_prepare(TpcBranchState branch,
											 bool below_floor);

#endif							/* TPC_PROTOCOL_H */
