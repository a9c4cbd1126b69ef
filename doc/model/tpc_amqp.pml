/*
 * tpc_amqp.pml
 *	  The commit protocol as built, for spin: one coordinator, two participants.
 *
 * README.md beside this file says what is modelled and what is not, which
 * function each step stands for, and how to read a trail.  scripts/model runs
 * the configurations and the mutations.
 *
 * Each step is one atomic change between two moments at which the code can be
 * interrupted, overtaken or killed.  A process is whoever takes such steps;
 * it has no state of its own, so that a crash is a step that resets what does
 * not survive one.
 *
 * The network is a set.  What has been sent stays there for ever and can be
 * delivered at any time, any number of times, in any order, or never: that is
 * loss, repetition, delay and reordering without a bound on any of them.
 */

#define NP 2				/* participants */

/*
 * Configuration: -D of
 *
 *	NT=2		two transactions of the coordinator, one after the other or at
 *				once, of which both have one participant, the same; else one
 *				transaction that has two
 *	READ_ONLY=mask	participants whose handlers may write nothing
 *	PREPARE		the coordinator's transaction ends by PREPARE TRANSACTION
 *	NO_WAIT		prepare_wait = off
 *	JOINED=mask	participants whose branch an application prepares; masks: 1 is
 *				the first, 2 the second, 3 both
 *	SAVEPOINT	the first participant's may have been enlisted in a savepoint
 *				that rolls back
 *	NO_FLOOR	the floor does not move (it may always stand still)
 */
#ifndef NT
#define NT 1
#endif
#ifndef JOINED
#define JOINED 0
#endif
#ifndef READ_ONLY
#define READ_ONLY 0
#endif

/* Sets of branches: one bit for each transaction and participant. */
#define AT(g,p)		((g) * NP + (p))
#define BIT(g,p)	(1 << AT(g,p))
#if NT == 1
#define ALL(g)		3
#else
#define ALL(g)		(2 << ((g) * NP))	/* the second */
#endif
#define CALLED(g,p)	HAS(ALL(g), g, p)
#define HAS(s,g,p)	(((s) & BIT(g,p)) != 0)
#define PUT(s,g,p)	s = s | BIT(g,p)
#define CUT(s,g,p)	s = s & (255 - BIT(g,p))
#define CUT_ALL(s,g) s = s & (255 - ALL(g))
#define IS_JOINED(p) (((JOINED) & (1 << (p))) != 0)

/* TpcTxn.state, of the entry in shared memory */
#define E_NONE		0
#define E_ACTIVE	1
#define E_PREPARING	2
#define E_PREPARED	3
#define E_COMMITTED	4
#define E_ABORTED	5

/* How far the coordinator's backend is. */
#define K_NEW		0
#define K_BEGUN		1		/* has called or enlisted */
#define K_WAIT		2		/* C2 */
#define K_ROW		3		/* C3 done */
#define K_FLUSHED	4		/* C4 or Q1 done, the entry does not say so */
#define K_END		5

/* The row of table decision. */
#define D_NONE		0
#define D_INPROG	1		/* inserted by a transaction that is running */
#define D_PREP		2		/* rides in a prepared transaction */
#define D_COM		3
#define D_DEL		4		/* deleted, and the deletion is not flushed yet */
#define D_LAZY		5		/* mutation: visible before it is flushed */

/* A branch: its row of table branch, and the transaction that wrote it. */
#define B_NONE		0
#define B_INPROG	1
#define B_PREP		2
#define B_COM		3
#define B_DEL		4		/* deleted below the floor, not flushed yet */
#define B_LAZY		5		/* mutation: committed, not flushed */
#define B_BARE		6		/* mutation: prepared, without a row */

/* A job of a prepare worker, or a session that has joined. */
#define J_NONE		0
#define J_LOOK		1		/* mutation: has looked at the floor, not for the row */
#define J_RUN		2		/* P1 and P2: there is no row */
#define J_ROW		3		/* P3: the row is inserted; looks at the floor */
#define J_CLEAR		4		/* not closed: PREPARE next */

#define OPEN		0
#define COMMITTED	1
#define ABORTED		2

/* The network: what has been sent. */
byte prep, yes, ro, no, cm, rb, rbf, ak, rqc, rqr;
byte pubfloor;				/* the highest floor that some message carries */

/* The coordinator's memory that survives a crash. */
byte drow[NT];
byte named;					/* column participants;
		kept here as a ghost, too */
byte known;					/* those with a user: voted when the row was made */
byte forg;					/* bit 1 << g: incarnation.forgotten covers it */
byte next;					/* numbers given out */

/* And that which does not. */
byte ent[NT], bk[NT];
byte vy, vr, vn;			/* votes: yes, read-only, no or returned */
byte part, gone;			/* in the entry's list; dropped from it */
byte final;					/* bit 1 << g: votes_final */
byte acked;
byte sc, rq, rv;			/* Q2 passed; request: 1 commit, 2 rollback;
		revive */
byte who;					/* … of sc, rq, rv: the transaction */
byte an, ani;				/* the question that is being answered: step, which */
byte fl;					/* a floor that is being computed, + 1;
		0 if none */
bit q6;						/* mutation */

/* The participants'. */
byte br[NT * NP];
byte fd[NP];				/* floor recorded and flushed */
byte fv[NP];				/* floor recorded */
byte job[NT * NP];
byte joins;					/* a session has passed the look at the floor in
							 * join(), and may PREPARE yet */

/* What only the properties use. */
byte out[NT];				/* by what is durable */
byte applied[NT * NP];		/* times that a branch's work was committed */
bit over;					/* the fair schedule has been run */

/* Counters of loops; zero between steps. */
byte hr, hg, hp, hf;

/* A property: what is after the condition is its name. */
#define TEXT(...)	#__VA_ARGS__
#define MUST(c, ...) \
	if \
	:: (c) -> skip \
	:: else -> printf("VIOLATED: "); printf(TEXT(__VA_ARGS__)); printf("\n"); assert(false) \
	fi

/* ---------- what several steps share ---------- */

/* The votes that count, and whether all are in. */
#define EXPECTED(g)	(part & ALL(g) & (255 - gone))
#define REFUSED(g)	((vn & EXPECTED(g)) != 0)
#define VOTES_IN(g)	(!REFUSED(g) && ((vy | vr) & EXPECTED(g)) == EXPECTED(g))
#define TAKES_VOTES(g) (ent[g] == E_ACTIVE || ent[g] == E_PREPARING || ent[g] == E_PREPARED)
#define LIVE(g)		(ent[g] == E_ACTIVE || ent[g] == E_PREPARING)
#define SEEN(g)		(drow[g] == D_COM || drow[g] == D_LAZY)
#ifdef M_REVIVE_BLIND
#define LEAD_FREE	true
#else
#define LEAD_FREE	(rv == 0)
#endif
#define ROWLESS(g,p) (br[AT(g,p)] == B_NONE || br[AT(g,p)] == B_DEL || br[AT(g,p)] == B_BARE)

/* Who has a second phase and is not done (awaits_commit) */
#define AWAITS(g,p)	(HAS(vy,g,p) && !HAS(gone,g,p) && !HAS(acked,g,p))

/*
 * G commits: by what is durable from now on.  Each branch that counts has to
 * be durable, or has voted read-only.
 */
inline commits(g)
{
	MUST(out[g] != ABORTED, the outcome never changes);
	out[g] = COMMITTED;
	do
	:: hp < NP ->
		MUST(!CALLED(g,hp) || HAS(gone,g,hp) || br[AT(g,hp)] == B_PREP ||
				br[AT(g,hp)] == B_BARE ||
				HAS(ro,g,hp), commits only over branches that are durable);
		hp++
	:: else -> break
	od;
	hp = 0
}

inline aborts(g)
{
	MUST(out[g] != COMMITTED, the outcome never changes);
	out[g] = ABORTED
}

inline free_entry(g)
{
	ent[g] = E_NONE;
	CUT_ALL(vy, g); CUT_ALL(vr, g); CUT_ALL(vn, g); CUT_ALL(part, g);
			CUT_ALL(gone, g);
	final = final & (255 - (1 << g))
}

inline send_commit(g, p)
{
	MUST(out[g] == COMMITTED, commit is told only of a durable decision);
	MUST(!HAS(rb,g,p), an answer, once given, stays);
	PUT(cm, g, p)
}

inline send_rollback(g, p, forgotten)
{
	MUST(!(out[g] == COMMITTED && HAS(named,g,p) &&
			applied[AT(g,p)] == 0), no rollback to who is to commit);
	if
	:: forgotten -> PUT(rbf, g, p)
	:: else ->
		MUST(!HAS(cm,g,p), an answer, once given, stays);
		PUT(rb, g, p)
	fi
}

/* Whatever is flushed at a participant takes with it what was not. */
inline flush(p)
{
	fd[p] = fv[p];
	do
	:: hg < NT ->
		if
		:: br[AT(hg,p)] == B_DEL -> br[AT(hg,p)] = B_NONE
		:: else -> skip
		fi;
		hg++
	:: else -> hg = 0; break
	od
}

/* ---------- messages that arrive at the coordinator ---------- */

/* Step I2 begins: the entry does not say that it is undecided (look 1). */
inline ask(g, p)
{
#ifndef M_SILENT
	if
	:: an == 0 -> ani = AT(g,p);
#ifdef M_RECORD_FIRST
		an = 3
#else
		an = 2
#endif
	:: else -> skip
	fi
#else
	skip
#endif
}

/* take_vote: a yes, an inquiry, or the yes that a request contains. */
inline take_yes(g, p)
{
	if
	:: ent[g] == E_NONE || ent[g] == E_ABORTED -> ask(g, p)
#ifdef M_ANSWER_LIVE
	:: LIVE(g) && HAS(vy,g,p) -> ask(g, p)
#endif
#ifdef M_RECORD_FIRST
	:: LIVE(g) && HAS(vy,g,p) -> ask(g, p)
#endif
#ifdef M_ANSWER_PREPARED
	:: ent[g] == E_PREPARED && HAS(vy,g,p) -> ask(g, p)
#endif
	:: ent[g] == E_COMMITTED ->
		if
		:: HAS(part,g,p) && AWAITS(g,p) -> send_commit(g, p)
		:: HAS(gone,g,p) -> ask(g, p)
		:: else -> skip
		fi
	:: else ->
		if
		:: HAS(part,g,p) && !HAS(gone,g,p) && !HAS(vy | vr | vn,g,p) &&
				(IS_JOINED(p) || HAS(prep,g,p) || ent[g] == E_PREPARED) ->
				PUT(vy, g, p)
		:: else -> skip
		fi
	fi
}

/* … a read-only or a no, which asks nothing */
inline take_other(votes, g, p)
{
	if
	:: TAKES_VOTES(g) && HAS(part,g,p) && !HAS(gone,g,p) &&
			!HAS(vy | vr | vn,g,p) ->
			PUT(votes, g, p)
	:: else -> skip
	fi
}

/*
 * take_request, with the first half of serve_request: what of that is looked
 * up can only become true meanwhile, or the prepared transaction is gone.
 */
inline take_request(g, p, commit)
{
	take_yes(g, p);
	if
	:: !HAS(part,g,p) || HAS(gone,g,p) -> skip
	:: else ->
		if
		:: ent[g] == E_PREPARED ->
			if
			:: rq == 0 && drow[g] == D_PREP &&
#ifndef M_REQUEST_EARLY
				(!commit || VOTES_IN(g)) &&
#endif
				true -> rq = 2 - commit; who = g
			:: else -> skip
			fi
		:: else ->
			if
			:: LIVE(g) && !(final & (1 << g)) && !commit ->
				if
				:: HAS(vy,g,p) -> CUT(vy, g, p); PUT(vn, g, p)
				:: else -> skip
				fi;
				if
				:: HAS(vn,g,p) -> send_rollback(g, p, false)
				:: else -> skip
				fi
			:: else -> skip
			fi
		fi
	fi
}

/* take_ack, here and in the lead */
inline take_ack(g, p)
{
	if
	:: ent[g] == E_COMMITTED && AWAITS(g,p) -> PUT(acked, g, p)
	:: ent[g] == E_NONE && LEAD_FREE && SEEN(g) && HAS(named,g,p) ->
			PUT(acked, g, p)
	:: else -> skip
	fi
}

/* ---------- answering (answer, tpc_decision_outcome) ---------- */

#define AG			(ani / NP)
#define AP			(ani % NP)

inline end_answer()
{
	an = 0; ani = 0
}

#define TELL_LOOK(n) printf("G%d: asked by %d, look %d\n", AG, AP, n)

/* 2: its row is in progress; 1 was in take_vote, whose look is as good */
inline answer_2()
{
	if
#ifndef M_ANSWER_LIVE
	:: drow[AG] == D_INPROG -> end_answer()
#endif
#ifndef M_ANSWER_PREPARED
	:: drow[AG] == D_PREP -> end_answer()
#endif
	:: else -> an = 3
	fi
}

/* no record (4); forgotten, if there may have been one */
inline answer_aborted()
{
	send_rollback(AG, AP, (forg >> AG) != 0);
	end_answer()
}

/* 3: a snapshot sees it */
inline answer_3()
{
	if
	:: SEEN(AG) -> an = 4
	:: else ->
#ifdef M_RECORD_FIRST
		an = 5
#else
		answer_aborted()
#endif
	fi
}

/* mutation: 1 and 2 only now */
inline answer_late_1()
{
	if
	:: LIVE(AG) || drow[AG] == D_INPROG || drow[AG] == D_PREP -> end_answer()
	:: else -> answer_aborted()
	fi
}

/* committed: takes_part */
inline answer_committed()
{
	if
#ifdef M_ANSWER_ALL
	:: SEEN(AG) -> send_commit(AG, AP)
#else
	:: SEEN(AG) && HAS(named,AG,AP) -> send_commit(AG, AP)
#endif
#ifdef M_TAKES_PART
	:: else -> send_rollback(AG, AP, false)
#else
	:: else -> send_rollback(AG, AP, !SEEN(AG))
#endif
	fi;
	end_answer()
}

/* ---------- the coordinator's backend and its messenger ---------- */

inline begin(g)
{
	bk[g] = K_BEGUN; ent[g] = E_ACTIVE; part = part | ALL(g); next++;
	printf("begin: number %d is drawn\n", g)
}

/* an error before C4 or Q1; the participants are told by the entry */
inline rolls_back(g)
{
	drow[g] = D_NONE; bk[g] = K_END; ent[g] = E_ABORTED; aborts(g);
	printf("G%d: the backend rolls back\n", g)
}

inline c1(g)
{
	bk[g] = K_WAIT; ent[g] = E_PREPARING;
	do
	:: hp < NP ->
		if
		:: CALLED(g,hp) && !IS_JOINED(hp) -> PUT(prep, g, hp)
		:: else -> skip
		fi;
		hp++
	:: else -> hp = 0; break
	od;
	printf("G%d C1: prepares sent\n", g)
}

/* the votes are final, then second_phase: nobody can see what is in between */
inline c3(g)
{
	bk[g] = K_ROW; drow[g] = D_INPROG; final = final | (1 << g);
#ifdef NO_WAIT
	named = (named & (255 - ALL(g))) | (EXPECTED(g) & (255 - vr));
#else
#ifdef M_NAMES_ALL
	named = (named & (255 - ALL(g))) | EXPECTED(g);
#else
	named = (named & (255 - ALL(g))) | (EXPECTED(g) & vy);
#endif
#endif
#ifdef PREPARE
	known = (known & (255 - ALL(g))) | (EXPECTED(g) & vy);
#endif
	printf("G%d C2, C3: votes are final, decision row inserted\n", g)
}

inline send_commits(g)
{
	do
	:: hp < NP ->
		if
		:: AWAITS(g,hp) -> send_commit(g, hp)
		:: HAS(gone,g,hp) && !HAS(vr | vn,g,hp) -> send_rollback(g, hp, false)
		:: else -> skip
		fi;
		hp++
	:: else -> hp = 0; break
	od;
	printf("G%d C5: commits sent\n", g)
}

inline send_rollbacks(g)
{
	do
	:: hp < NP ->
		if
		:: HAS(part,g,hp) && !HAS(vr | vn,g,hp) && (IS_JOINED(hp) ||
				bk[g] != K_BEGUN) ->
				send_rollback(g, hp, false)
		:: else -> skip
		fi;
		hp++
	:: else -> hp = 0; break
	od;
	free_entry(g);
	printf("G%d: rollbacks sent, entry removed\n", g)
}

/* resend, by the table */
inline resend(g)
{
	do
	:: hp < NP ->
		if
		:: HAS(named,g,hp) && !HAS(acked,g,hp) -> send_commit(g, hp)
		:: else -> skip
		fi;
		hp++
	:: else -> hp = 0; break
	od;
	printf("G%d: commits sent again, by the table\n", g)
}

#define ALL_ACKED(g) ((named & ALL(g) & (255 - acked)) == 0)

inline c7(g)
{
	drow[g] = D_DEL; forg = forg | (1 << g); CUT_ALL(acked, g);
	printf("G%d C7: decision row deleted\n", g)
}

/* ---------- prepared coordinator ---------- */

inline q3_commit(g)
{
	printf("G%d Q3: committed\n", g);
#ifdef W_REVIVED
	MUST(ent[g] != E_PREPARED || (final & (1 << g)), reached);
#endif
	drow[g] = D_COM; commits(g)
}

inline q3_rollback(g)
{
	printf("G%d Q3: rolled back\n", g);
	drow[g] = D_NONE; aborts(g)
}

/* Q4, and the lead's look_after_prepared and look_after_entries */
inline q4(g)
{
	if
	:: SEEN(g) -> ent[g] = E_COMMITTED
	:: else -> ent[g] = E_ABORTED
	fi;
	printf("G%d Q4: the entry says what became of the prepared transaction\n", g)
}

/* revive: its second half, the entry */
inline revive_entry(g)
{
	ent[g] = E_PREPARED;
	part = part | (named & ALL(g));
#ifdef M_REVIVE_YES
	vy = vy | (named & ALL(g));
#else
	vy = vy | (known & ALL(g));
#endif
	printf("G%d: entry made again from the prepared row\n", g)
}

/* ---------- participant ---------- */

/* whatever ends a job before PREPARE: an error, a cancel, the worker's end */
inline job_fails(g, p)
{
	job[AT(g,p)] = J_NONE;
	if
	:: br[AT(g,p)] == B_INPROG -> br[AT(g,p)] = B_NONE
	:: else -> skip
	fi;
	CUT(joins, g, p);
	PUT(no, g, p);
	printf("G%d at %d: fails, votes no\n", g, p)
}

/* tpc_protocol_prepare; the look at the floor here is a hint only */
inline look_for_row(g, p)
{
	if
	:: br[AT(g,p)] == B_PREP ->
			PUT(yes, g, p); job[AT(g,p)] = J_NONE;
			printf("G%d at %d: prepared already, votes again\n", g, p)
	:: br[AT(g,p)] == B_COM ->
			job[AT(g,p)] = J_NONE;
			printf("G%d at %d: took effect already, prepare dropped\n", g, p)
	:: else ->
			job[AT(g,p)] = J_RUN;
			printf("G%d at %d P1, P2: prepare taken, handlers run\n", g, p)
	fi
}

inline insert_row(g, p)
{
#ifdef M_FLOOR_BEFORE
	job[AT(g,p)] = J_CLEAR;
#else
	job[AT(g,p)] = J_ROW;
#endif
	if
	:: br[AT(g,p)] == B_DEL -> skip	/* both: the deletion can get lost yet */
	:: else -> br[AT(g,p)] = B_INPROG
	fi;
	printf("G%d at %d P3, J1: branch row inserted\n", g, p)
}

/* after the insert, not before */
inline look_at_floor(g, p)
{
	if
	:: fv[p] > g -> job_fails(g, p)
	:: else ->
			job[AT(g,p)] = J_CLEAR;
			printf("G%d at %d P3, J1: not closed\n", g, p)
	fi
}

inline p3(g, p)
{
	job[AT(g,p)] = J_NONE;
#ifdef M_NO_ROW
	br[AT(g,p)] = B_BARE;
#else
	br[AT(g,p)] = B_PREP;
#endif
	flush(p);
	printf("G%d at %d P3, J2: PREPARE flushed\n", g, p)
}

/* a decision of commit is carried out, or found to have been */
inline decide_commit(g, p)
{
	if
	:: (br[AT(g,p)] == B_PREP || br[AT(g,p)] == B_BARE) ->
		MUST(out[g] == COMMITTED, a branch commits only if G has);
		MUST(HAS(named,g,p), only who is named commits);
		MUST(applied[AT(g,p)] == 0, work is applied once);
		applied[AT(g,p)] = applied[AT(g,p)] + 1;
#ifdef M_ACK_EARLY
		br[AT(g,p)] = B_LAZY; PUT(ak, g, p);
#else
		if
		:: br[AT(g,p)] == B_BARE -> br[AT(g,p)] = B_NONE
		:: else -> br[AT(g,p)] = B_COM
		fi;
		flush(p);
#endif
		printf("G%d at %d P6: committed\n", g, p)
	:: br[AT(g,p)] == B_COM ->
			PUT(ak, g, p); printf("G%d at %d P7: acknowledged\n", g, p)
	:: br[AT(g,p)] == B_NONE || br[AT(g,p)] == B_DEL ->
		if
		:: fv[p] > g ->
				PUT(ak, g, p);
				printf("G%d at %d P7: closed, acknowledged\n", g, p)
		:: else ->
			MUST(job[AT(g,p)] != J_NONE, nobody reports a branch as lost that is not)
		fi
	:: else -> skip
	fi
}

/* a rollback is carried out; a job ends as it can end any time */
inline decide_rollback(g, p, forgotten)
{
	if
	:: (br[AT(g,p)] == B_PREP || br[AT(g,p)] == B_BARE) ->
		MUST(!(out[g] == COMMITTED && HAS(named,g,p) &&
				applied[AT(g,p)] == 0), who voted yes ends as decided);
#ifdef W_TAKEN_BACK
		MUST(out[g] != OPEN, reached);
#endif
		br[AT(g,p)] = B_NONE; flush(p);
		printf("G%d at %d P6: rolled back\n", g, p)
	:: br[AT(g,p)] == B_COM ->
		MUST(forgotten, nobody reports a mismatch where there is none)
	:: else -> skip
	fi
}

/* take_floor: in one transaction */
inline advance_floor(p)
{
#ifndef M_NO_FLOOR
	fv[p] = pubfloor;
#endif
	do
	:: hg < NT ->
		if
		:: hg < pubfloor && br[AT(hg,p)] == B_COM -> br[AT(hg,p)] = B_DEL
		:: else -> skip
		fi;
		hg++
	:: else -> hg = 0; break
	od;
#ifdef M_NO_FLOOR
	flush(p);
#endif
	printf("at %d: floor %d recorded, rows below it deleted\n", p, pubfloor)
}

/* kept: whether what was not flushed got to disk nevertheless */
inline crash_coordinator(kept)
{
	do
	:: hg < NT ->
		if
		:: drow[hg] == D_INPROG || drow[hg] == D_LAZY -> drow[hg] = D_NONE
		:: drow[hg] == D_DEL && kept -> drow[hg] = D_NONE
		:: drow[hg] == D_DEL && !kept ->
				drow[hg] = D_COM; forg = forg & (255 - (1 << hg))
		:: else -> skip
		fi;
		if
		:: bk[hg] != K_NEW ->
			bk[hg] = K_END;
			if
			:: drow[hg] == D_NONE && out[hg] == OPEN -> out[hg] = ABORTED
			:: else -> skip
			fi
		:: else -> skip
		fi;
		hg++
	:: else -> hg = 0; break
	od;
	do
	:: hg < NT -> ent[hg] = E_NONE; hg++
	:: else -> hg = 0; break
	od;
	vy = 0; vr = 0; vn = 0; part = 0; gone = 0; final = 0; acked = 0;
	sc = 0; rq = 0; who = 0; rv = 0; an = 0; ani = 0; fl = 0; q6 = 0;
	printf("the coordinator crashes and restarts; unflushed deletions kept: %d\n", kept)
}

/* ---------- who takes the steps ---------- */

/* The backend, the messenger and the lead, for one transaction. */
proctype Transaction(byte g)
{
	do
	:: d_step { !over && bk[g] == K_NEW && next == g -> begin(g) }
	:: d_step { bk[g] == K_BEGUN -> c1(g) }
	:: d_step { bk[g] >= K_BEGUN && bk[g] <= K_ROW -> rolls_back(g) }
#ifdef SAVEPOINT
	:: d_step { bk[g] == K_BEGUN && !HAS(gone,g,0) ->
			PUT(gone, g, 0);
			printf("G%d: savepoint rolls back, 0 is dropped\n", g) }
#endif
#ifdef NO_WAIT
	:: d_step { bk[g] == K_WAIT && !REFUSED(g) -> c3(g) }	/* bind_votes */
#else
#ifdef M_WITHDRAW
	:: d_step { bk[g] == K_WAIT && VOTES_IN(g) && !q6 -> q6 = 1 }
	:: d_step { bk[g] == K_WAIT && q6 -> q6 = 0; c3(g) }
#else
	:: d_step { bk[g] == K_WAIT && VOTES_IN(g) -> c3(g) }
#endif
#endif
#ifndef PREPARE
#ifdef M_DECIDE_EARLY
	:: d_step { bk[g] == K_ROW ->
			bk[g] = K_FLUSHED; drow[g] = D_LAZY;
			printf("G%d: committed, not flushed\n", g) }
	:: d_step { drow[g] == D_LAZY ->
			drow[g] = D_COM; commits(g); printf("G%d: flushed\n", g) }
#else
	:: d_step { bk[g] == K_ROW ->
			bk[g] = K_FLUSHED; drow[g] = D_COM;
			printf("G%d C4: commit record flushed\n", g); commits(g) }
#endif
	:: d_step { bk[g] == K_FLUSHED ->
			bk[g] = K_END; ent[g] = E_COMMITTED;
			printf("G%d C5: the entry says committed\n", g) }
#else
	:: d_step { bk[g] == K_ROW ->
			bk[g] = K_FLUSHED; drow[g] = D_PREP;
			printf("G%d Q1: PREPARE flushed\n", g) }
	:: d_step { bk[g] == K_FLUSHED ->
			bk[g] = K_END; ent[g] = E_PREPARED;
			printf("G%d Q1: the entry says prepared\n", g) }
	/* a session: COMMIT PREPARED, ROLLBACK PREPARED; the lead: Q6 */
	:: d_step { sc == 0 && drow[g] == D_PREP && ((ent[g] == E_PREPARED &&
			VOTES_IN(g)) || (ent[g] == E_NONE &&
			(named & ALL(g) & (255 - known)) == 0)) ->
			sc = 1 + g; printf("G%d Q2: all votes are in\n", g) }
	:: d_step { sc == 1 + g ->
		sc = 0;
		if
		:: drow[g] == D_PREP -> q3_commit(g)
		:: else -> skip
		fi }
	:: d_step { drow[g] == D_PREP && bk[g] == K_END -> q3_rollback(g) }
#ifdef M_TIMEOUT_RACE
	:: d_step { drow[g] == D_PREP && bk[g] == K_END && !q6 ->
			q6 = 1; printf("G%d Q6: overdue\n", g) }
	:: d_step { q6 && ent[g] == E_PREPARED ->
			q6 = 0; ent[g] = E_ABORTED;
			printf("G%d Q6: participants are to be told to roll back\n", g) }
#endif
	:: d_step { rq != 0 && who == g ->
		if
		:: drow[g] == D_PREP && rq == 1 ->
#ifdef W_REQUESTED
			MUST(false, reached);
#endif
			q3_commit(g)
		:: drow[g] == D_PREP && rq == 2 -> q3_rollback(g)
		:: else -> skip
		fi;
		rq = 0; who = 0 }
	:: d_step { ent[g] == E_PREPARED && drow[g] != D_PREP -> q4(g) }
	/* load_prepared, then look_after_entries: the lead does nothing else meanwhile */
	:: d_step { bk[g] == K_END && ent[g] == E_NONE && drow[g] == D_PREP &&
			rv == 0 ->
			rv = 1 + g; printf("G%d: found prepared after the restart\n", g) }
#ifdef M_REVIVE_BLIND
	:: d_step { rv == 1 + g -> rv = 0; revive_entry(g) }
#else
	:: d_step { rv == 1 + g -> rv = 1 + NT + g; revive_entry(g) }
	:: d_step { rv == 1 + NT + g ->
		rv = 0;
		if
		:: ent[g] == E_PREPARED && drow[g] != D_PREP -> q4(g)
		:: else -> skip
		fi }
#endif
#endif
	/* messenger */
	:: d_step { ent[g] == E_COMMITTED &&
			(named & ALL(g) & (255 - acked) & (255 - cm)) != 0 ->
			send_commits(g) }
	:: d_step { ent[g] == E_COMMITTED &&
			(gone & ALL(g) & (255 - (rb | vr | vn))) != 0 ->
			send_commits(g) }
	:: d_step { ent[g] == E_ABORTED -> send_rollbacks(g) }
	:: d_step { ent[g] == E_COMMITTED ->
			free_entry(g); printf("G%d: entry removed\n", g) }
	/* lead */
	:: d_step { ent[g] == E_NONE && SEEN(g) &&
			(named & ALL(g) & (255 - acked) & (255 - cm)) != 0 ->
			resend(g) }
#ifdef M_FORGET_EARLY
	:: d_step { drow[g] == D_COM && LEAD_FREE && ((named & ALL(g)) == 0 ||
			(named & ALL(g) & acked) != 0) ->
			c7(g) }
#else
	:: d_step { drow[g] == D_COM && LEAD_FREE && ALL_ACKED(g) -> c7(g) }
#endif
	od
}

/* Whether G holds the floor: the live entries, and the rows. */
#define ENTRY_OPEN(g) (ent[g] != E_NONE && !(ent[g] == E_COMMITTED && ALL_ACKED(g)))
#define ROW_OPEN(g)	(drow[g] == D_INPROG || drow[g] == D_PREP || SEEN(g))

/* The resolve workers of the coordinator, and its lead's floor. */
proctype Coordinator()
{
	do
	:: d_step { an == 2 -> TELL_LOOK(2); answer_2() }
	:: d_step { an == 3 -> TELL_LOOK(3); answer_3() }
	:: d_step { an == 4 ->
			printf("G%d: committed; does %d take part?\n", AG, AP);
			answer_committed() }
#ifdef M_RECORD_FIRST
	:: d_step { an == 5 -> TELL_LOOK(1); answer_late_1() }
#endif
	/* move_floor: number and entries, then rows */
#if defined(NO_FLOOR)
#elif NT == 1
	:: d_step { next > pubfloor && !ENTRY_OPEN(0) && !ROW_OPEN(0) ->
			pubfloor = 1; printf("floor 1\n") }
#else
	:: d_step { fl == 0 && next > pubfloor ->
		do
		:: hf < next && !ENTRY_OPEN(hf) -> hf++
		:: else -> break
		od;
		fl = 1 + hf; hf = 0 }
	:: d_step { fl != 0 ->
		do
		:: hf < fl - 1 && !ROW_OPEN(hf) -> hf++
		:: else -> break
		od;
		if
		:: hf > pubfloor -> pubfloor = hf; printf("floor %d\n", hf)
		:: else -> skip
		fi;
		fl = 0; hf = 0 }
#endif
	/* a crash that would change nothing is none */
	:: d_step { !over && bk[0] != K_NEW && (ent[0] != E_NONE ||
			bk[0] < K_END || an != 0 || drow[0] == D_DEL || acked != 0 ||
			sc != 0 || rq != 0 || rv != 0 || fl != 0
#if NT > 1
		|| ent[1] != E_NONE || bk[1] != K_NEW
#endif
		) -> crash_coordinator(true) }
	:: d_step { !over && (drow[0] == D_DEL
#if NT > 1
		|| drow[1] == D_DEL
#endif
		) -> crash_coordinator(false) }
	od
}

/* One participant's branch of one transaction, and what comes from there. */
proctype Branch(byte g; byte p)
{
	do
	/* what arrives at the coordinator */
	:: d_step { HAS(yes,g,p) ->
			printf("G%d: yes of %d arrives\n", g, p); take_yes(g, p) }
	:: d_step { HAS(no,g,p) ->
			printf("G%d: no of %d arrives\n", g, p); take_other(vn, g, p) }
	:: d_step { HAS(ak,g,p) ->
			printf("G%d: acknowledgement of %d arrives\n", g, p);
			take_ack(g, p) }
#if READ_ONLY
	:: d_step { HAS(ro,g,p) ->
			printf("G%d: read-only of %d arrives\n", g, p);
			take_other(vr, g, p) }
#endif
	/* what arrives here */
	:: d_step { HAS(cm,g,p) ->
			printf("G%d at %d P5: commit arrives\n", g, p);
			decide_commit(g, p) }
	:: d_step { HAS(rb,g,p) ->
			printf("G%d at %d P5: rollback arrives\n", g, p);
			decide_rollback(g, p, false) }
	:: d_step { HAS(rbf,g,p) ->
			printf("G%d at %d P5: rollback (forgotten) arrives\n", g, p);
			decide_rollback(g, p, true) }
	/* P4, J2, or I1 */
	:: d_step { (br[AT(g,p)] == B_PREP || br[AT(g,p)] == B_BARE) &&
			!HAS(yes,g,p) ->
			PUT(yes, g, p); printf("G%d at %d P4, J2, I1: votes yes\n", g, p) }
	/* P1 to P3 */
#ifdef M_FLOOR_BEFORE
	:: d_step { HAS(prep,g,p) && job[AT(g,p)] == J_NONE && fv[p] <= g ->
			job[AT(g,p)] = J_LOOK; printf("G%d at %d: not closed\n", g, p) }
	:: d_step { job[AT(g,p)] == J_LOOK -> look_for_row(g, p) }
#else
	:: d_step { HAS(prep,g,p) && job[AT(g,p)] == J_NONE -> look_for_row(g, p) }
#endif
	:: d_step { job[AT(g,p)] == J_RUN && ROWLESS(g,p) -> insert_row(g, p) }
#if READ_ONLY && (!defined(NO_WAIT) || defined(M_NO_MUST))
	:: d_step { (READ_ONLY & (1 << p)) != 0 && job[AT(g,p)] == J_RUN ->
			job[AT(g,p)] = J_NONE; PUT(ro, g, p);
			printf("G%d at %d: wrote nothing, votes read-only\n", g, p) }
#endif
	:: d_step { job[AT(g,p)] == J_ROW -> look_at_floor(g, p) }
	:: d_step { job[AT(g,p)] == J_CLEAR -> p3(g, p) }
#ifdef M_VOTE_EARLY
	:: d_step { job[AT(g,p)] == J_CLEAR ->
			PUT(yes, g, p);
			printf("G%d at %d: votes yes before PREPARE\n", g, p) }
#endif
	:: d_step { job[AT(g,p)] != J_NONE -> job_fails(g, p) }
#if JOINED
	/* J1, J2: any number of sessions, of which one gets to insert the row */
	:: d_step { IS_JOINED(p) && bk[g] != K_NEW && !HAS(joins,g,p) &&
			fv[p] <= g ->
			PUT(joins, g, p); printf("G%d at %d: a session joins\n", g, p) }
	:: d_step { HAS(joins,g,p) && job[AT(g,p)] == J_NONE -> job_fails(g, p) }
	:: d_step { HAS(joins,g,p) && job[AT(g,p)] == J_NONE && ROWLESS(g,p) ->
			insert_row(g, p) }
	/* J3 */
	:: d_step { IS_JOINED(p) && br[AT(g,p)] == B_PREP && !HAS(rqc,g,p) ->
			PUT(rqc, g, p);
			printf("G%d at %d J3: COMMIT PREPARED asks\n", g, p) }
	:: d_step { IS_JOINED(p) && br[AT(g,p)] == B_PREP && !HAS(rqr,g,p) ->
			PUT(rqr, g, p);
			printf("G%d at %d J3: ROLLBACK PREPARED asks\n", g, p) }
	:: d_step { HAS(rqc,g,p) ->
			printf("G%d: request for commit of %d arrives\n", g, p);
			take_request(g, p, 1) }
	:: d_step { HAS(rqr,g,p) ->
			printf("G%d: request for rollback of %d arrives\n", g, p);
			take_request(g, p, 0) }
#ifdef M_OBEY
	:: d_step { IS_JOINED(p) && br[AT(g,p)] == B_PREP ->
			MUST(out[g] == COMMITTED, a branch commits only if G has) }
#endif
#endif
#ifdef M_GIVE_UP
	:: d_step { br[AT(g,p)] == B_PREP ->
			br[AT(g,p)] = B_NONE;
			printf("G%d at %d: gives up and rolls back\n", g, p) }
#endif
#ifdef M_ACK_EARLY
	:: d_step { br[AT(g,p)] == B_LAZY ->
			br[AT(g,p)] = B_COM; flush(p);
			printf("G%d at %d: commit flushed\n", g, p) }
#endif
	od
}

inline crash_participant(p, kept)
{
	do
	:: hg < NT ->
		job[AT(hg,p)] = J_NONE;
		CUT(joins, hg, p);
		if
		:: br[AT(hg,p)] == B_INPROG -> br[AT(hg,p)] = B_NONE
		:: br[AT(hg,p)] == B_LAZY ->
				br[AT(hg,p)] = B_PREP; applied[AT(hg,p)] = 0
		:: br[AT(hg,p)] == B_DEL && kept -> br[AT(hg,p)] = B_NONE
		:: br[AT(hg,p)] == B_DEL && !kept -> br[AT(hg,p)] = B_COM
		:: else -> skip
		fi;
		hg++
	:: else -> hg = 0; break
	od;
	if
	:: kept -> fd[p] = fv[p]
	:: else -> fv[p] = fd[p]
	fi;
	printf("participant %d crashes and restarts; unflushed floor kept: %d\n", p, kept)
}

#define BUSY_AT(g,p) (job[AT(g,p)] != J_NONE || HAS(joins,g,p) || br[AT(g,p)] == B_LAZY)

/* A participant's lead, and its crash. */
proctype Participant(byte p)
{
	do
	:: d_step { pubfloor > fv[p] -> advance_floor(p) }
	:: d_step { !over && (BUSY_AT(0,p) || fv[p] != fd[p]
#if NT > 1
		|| BUSY_AT(1,p)
#endif
		) -> crash_participant(p, true) }
	:: d_step { !over && fv[p] != fd[p] -> crash_participant(p, false) }
#ifdef W_FORGOTTEN
	/* all has been applied, forgotten, and deleted below the floor */
	:: d_step { forg + 1 == (1 << NT) && fd[1] == NT && (NT == 2 ||
			(fd[0] == NT && applied[0] == 1)) && applied[1] == 1 &&
			applied[AT(NT - 1,1)] == 1 ->
			MUST(false, reached) }
#endif
	od
}

/* ---------- "every branch ends" ---------- */

/* A question, from its first step to its last. */
inline whole_answer()
{
	do
	:: an == 2 -> answer_2()
	:: an == 3 -> answer_3()
	:: an == 4 -> answer_committed()
	:: an == 5 -> answer_late_1()
	:: else -> break
	od
}

/*
 * At any moment: whatever was under way in the network is lost, nobody
 * crashes any more, and from here on each takes his turn, the least helpful
 * way: clients are gone, backends and sessions time out, applications say
 * nothing.  After some turns every branch must have ended, as decided, and
 * all be forgotten.  Afterwards everything is reset, so that all these ends
 * are one state.
 */
proctype Heal()
{
	d_step {
		!over ->
		prep = 0; yes = 0; no = 0; cm = 0; rb = 0; rbf = 0; ak = 0; rqc = 0;
				rqr = 0;
		an = 0; ani = 0; sc = 0; rq = 0; who = 0;
		printf("the network is healed\n");
		do
		:: hr < 4 ->
			do
			:: hf < NT ->
				if
				:: bk[hf] >= K_BEGUN && bk[hf] <= K_ROW -> rolls_back(hf)
				:: bk[hf] == K_FLUSHED -> bk[hf] = K_END;
#ifdef PREPARE
					ent[hf] = E_PREPARED
#else
					ent[hf] = E_COMMITTED
#endif
				:: else -> skip
				fi;
				if
				:: drow[hf] == D_PREP && ent[hf] == E_NONE ->
						rv = 0; revive_entry(hf)
				:: rv == 1 + hf -> rv = 0; revive_entry(hf)
				:: rv == 1 + NT + hf -> rv = 0
				:: else -> skip
				fi;
				if
				:: drow[hf] == D_PREP -> q3_rollback(hf)
				:: drow[hf] == D_LAZY -> drow[hf] = D_COM; commits(hf)
				:: else -> skip
				fi;
				if
				:: ent[hf] == E_PREPARED -> q4(hf)
				:: else -> skip
				fi;
				if
				:: ent[hf] == E_COMMITTED -> send_commits(hf)
				:: ent[hf] == E_ABORTED -> send_rollbacks(hf)
				:: ent[hf] == E_NONE && SEEN(hf) -> resend(hf)
				:: else -> skip
				fi;
				hf++
			:: else -> hf = 0; break
			od;
			do
			:: hf < NT * NP ->
				if
				:: br[hf] == B_INPROG -> br[hf] = B_NONE
				:: br[hf] == B_LAZY -> br[hf] = B_COM
				:: else -> skip
				fi;
				job[hf] = J_NONE;
				/* what the coordinator has just sent arrives, or what it answers */
				if
				:: HAS(cm,hf / NP,hf % NP) ->
						decide_commit((hf / NP), (hf % NP));
						decide_commit((hf / NP), (hf % NP))
				:: HAS(rb,hf / NP,hf % NP) ->
						decide_rollback((hf / NP), (hf % NP), false)
				:: else -> skip
				fi;
				if
				:: br[hf] == B_PREP || br[hf] == B_BARE ->
						take_yes((hf / NP), (hf % NP)); whole_answer()
				:: else -> skip
				fi;
				if
				:: HAS(cm,hf / NP,hf % NP) ->
						decide_commit((hf / NP), (hf % NP));
						decide_commit((hf / NP), (hf % NP))
				:: HAS(rb,hf / NP,hf % NP) ->
						decide_rollback((hf / NP), (hf % NP), false)
				:: HAS(rbf,hf / NP,hf % NP) ->
						decide_rollback((hf / NP), (hf % NP), true)
				:: else -> skip
				fi;
				if
				:: HAS(ak,hf / NP,hf % NP) -> take_ack((hf / NP), (hf % NP))
				:: else -> skip
				fi;
				hf++
			:: else -> hf = 0; break
			od;
			do
			:: hf < NT ->
				if
				:: ent[hf] == E_COMMITTED && hr > 0 -> free_entry(hf)
				:: else -> skip
				fi;
				if
				:: SEEN(hf) && ent[hf] == E_NONE && ALL_ACKED(hf) -> c7(hf)
				:: else -> skip
				fi;
				hf++
			:: else -> hf = 0; break
			od;
			hr++
		:: else -> hr = 0; break
		od;
		do
		:: hf < NT * NP ->
			MUST(br[hf] != B_PREP && br[hf] != B_BARE &&
					br[hf] != B_INPROG, every branch ends);
			MUST(out[hf / NP] != OPEN ||
					bk[hf / NP] == K_NEW, every transaction ends);
			MUST((applied[hf] == 1) == (out[hf / NP] == COMMITTED &&
					HAS(named,hf / NP,hf % NP)), every branch ends as decided);
			MUST(ent[hf / NP] == E_NONE && (drow[hf / NP] == D_NONE ||
					drow[hf / NP] == D_DEL), every transaction is forgotten);
			hf++
		:: else -> hf = 0; break
		od;
		over = 1;
		prep = 0; yes = 0; ro = 0; no = 0; cm = 0; rb = 0; rbf = 0; ak = 0;
				rqc = 0; rqr = 0;
		pubfloor = 0; named = 0; known = 0; forg = 0; next = 0;
		vy = 0; vr = 0; vn = 0; part = 0; gone = 0; final = 0; acked = 0;
		sc = 0; rq = 0; rv = 0; who = 0; an = 0; ani = 0; fl = 0; q6 = 0;
		joins = 0;
		do
		:: hf < NT -> drow[hf] = 0; ent[hf] = 0; bk[hf] = 0; out[hf] = 0; hf++
		:: else -> hf = 0; break
		od;
		do
		:: hf < NT * NP -> br[hf] = 0; job[hf] = 0; applied[hf] = 0; hf++
		:: else -> hf = 0; break
		od;
		do
		:: hf < NP -> fd[hf] = 0; fv[hf] = 0; hf++
		:: else -> hf = 0; break
		od
	}
}

init
{
	atomic {
		run Transaction(0);
		run Branch(0, 1);
#if NT == 1
		run Branch(0, 0);
		run Participant(0);
#else
		run Transaction(1);
		run Branch(1, 1);
#endif
		run Participant(1);
		run Coordinator();
		run Heal()
	}
}
