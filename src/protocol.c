/*-------------------------------------------------------------------------
 *
 * protocol.c
 *	  The decisions of the commit protocol, as functions of what was seen.
 *
 * Everything that decides the fate of a branch is in this file, without the
 * means to look anything up, so that it can be read (and checked) alone.
 * src/README proves why the facts are gathered in the order the header says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "protocol.h"

/*
 * tpc_protocol_outcome: what became of G, as its coordinator answers.
 *
 * Presumed abort: no record means aborted, provided that this history is the
 * one G ran in.  An incarnation that is not in it, or that ran before a
 * failover, may have had records that never got here.
 */
TpcOutcome
tpc_protocol_outcome(const TpcCoordinatorFacts *facts)
{
	if (facts->live || facts->prepared)
		return TPC_OUTCOME_PENDING;
	if (facts->recorded)
		return TPC_OUTCOME_COMMITTED;
	if ((facts->incarnation_known && facts->same_timeline) ||
		facts->presume_anyway)
		return TPC_OUTCOME_ABORTED;
	return TPC_OUTCOME_UNKNOWN;
}

/*
 * tpc_protocol_outcome_for_user: participants ask only while they have a
 * branch, and then nothing has been forgotten.  A user can ask any time, so
 * "no record" may also mean "committed, acknowledged by all, forgotten".
 */
TpcOutcome
tpc_protocol_outcome_for_user(TpcOutcome outcome, bool maybe_forgotten)
{
	if (outcome == TPC_OUTCOME_ABORTED && maybe_forgotten)
		return TPC_OUTCOME_UNKNOWN;
	return outcome;
}

/* tpc_protocol_decide: what a participant does with a decision. */
TpcAction
tpc_protocol_decide(const TpcParticipantFacts *facts)
{
	switch (facts->branch)
	{
		case TPC_BRANCH_IN_PROGRESS:
			if (!facts->sender_matches)
				return TPC_ACTION_FORGED;
			if (facts->gid_exists)
				return TPC_ACTION_FINISH;

			/*
			 * The row is written just before PREPARE: the worker is between
			 * the two, or has just finished and we saw the row before.
			 */
			if (facts->job_exists &&
				facts->decision == TPC_DECISION_ROLLBACK)
				return TPC_ACTION_CANCEL;
			return TPC_ACTION_RETRY;

		case TPC_BRANCH_COMMITTED:
			if (facts->decision == TPC_DECISION_COMMIT)
				return TPC_ACTION_ACK;

			/*
			 * An answer to a vote or inquiry of ours that was repeated after
			 * we had acknowledged and the coordinator had forgotten.
			 */
			if (facts->forgotten)
				return TPC_ACTION_NONE;
			return facts->sender_matches ?
				TPC_ACTION_MISMATCH : TPC_ACTION_FORGED;

		case TPC_BRANCH_NONE:

			/*
			 * Who may decide about it has not been answered yet, so that this
			 * is made up.  To call the branch lost would be to acknowledge a
			 * commit that is to come.
			 */
			if (facts->foreign_job)
				return TPC_ACTION_FORGED;
			if (facts->decision == TPC_DECISION_ROLLBACK)
				return facts->job_exists ?
					TPC_ACTION_CANCEL : TPC_ACTION_NONE;
			if (facts->below_floor)
				return TPC_ACTION_ACK;
			if (facts->forced)
				return TPC_ACTION_FORCED_ROLLBACK;

			/*
			 * A commit means that we voted yes, so the branch was durable. A
			 * job is that of a repeated prepare; or the commit is made up.
			 */
			return facts->job_exists ? TPC_ACTION_RETRY : TPC_ACTION_LOST;
	}
	return TPC_ACTION_NONE;
}

/* tpc_protocol_prepare: what a participant does with a prepare. */
TpcPrepareAction
tpc_protocol_prepare(TpcBranchState branch, bool below_floor)
{
	if (branch == TPC_BRANCH_IN_PROGRESS)
		return TPC_PREPARE_VOTE_AGAIN;
	if (branch == TPC_BRANCH_COMMITTED)
		return TPC_PREPARE_DROP;
	return below_floor ? TPC_PREPARE_REFUSE : TPC_PREPARE_RUN;
}
