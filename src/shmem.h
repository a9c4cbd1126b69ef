/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What the processes of a node share.
 *
 * Per field: who writes it, under which lock.  Lock order (take left before
 * right, release any time): control -> txns -> jobs -> gids -> requests ->
 * subscriptions -> node queue.  None is held across I/O, and nothing allocates
 * while holding more than one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_SHMEM_H
#define TPC_SHMEM_H

#include "access/xlogdefs.h"
#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/dsa.h"
#include "utils/timestamp.h"

#include "broker.h"
#include "gtid.h"
#include "message.h"

#define TPC_MAX_PREPARE_WORKERS 64
#define TPC_MAX_RESOLVE_WORKERS 16
/* Places of consume workers: those that are shared, then subscriptions' own. */
#define TPC_MAX_SHARED_CONSUMERS 32
#define TPC_MAX_OWN_CONSUMERS 64
#define TPC_MAX_CONSUME_WORKERS \
	(TPC_MAX_SHARED_CONSUMERS + TPC_MAX_OWN_CONSUMERS)

/* A GID and its terminating zero: GIDSIZE of the server. */
#define TPC_GID_SIZE	200

typedef enum TpcRole
{
	TPC_ROLE_MESSENGER,
	TPC_ROLE_PREPARE,
	TPC_ROLE_RESOLVE,
	TPC_ROLE_RELAY,
	TPC_ROLE_CONSUME
} TpcRole;
#define TPC_ROLES 5

/* One process of a node.  Written by that process, under control. */
typedef struct TpcWorker
{
	pid_t		pid;			/* 0: not running */
	Latch	   *latch;
	pg_atomic_uint32 idle;		/* 1: it waits for work.  The worker sets it,
								 * who wakes it clears it; no lock */
	TimestampTz started;		/* launcher: last time it was asked for */
	bool		requested;		/* launcher or attach: registered with the
								 * postmaster, not yet running */
	pg_atomic_uint64 retrying;	/* consume worker: failed_message it runs; 0:
								 * none */
} TpcWorker;

/*
 * What a consume worker is at; see turn.c.  Under subscriptions_lock; but its
 * worker, and who wakes one, reads assigned without, and acts on what may just
 * have changed: the one looks again before it takes anything, and of the other
 * the worker does that wakes up by itself.
 */
typedef struct TpcConsuming
{
	uint64		assigned;		/* launcher: whose worker it is, if its place
								 * is not a shared one; 0: nobody's */
	bool		lent;			/* launcher: … for a time */
	bool		busy;			/* it runs a handler … */
	TimestampTz since;			/* … since then … */
	uint64		subscription;	/* … of this one; 0: of one not listed */
} TpcConsuming;

/* A kind of calls that has a queue and workers of its own. */
typedef struct TpcKind
{
	char		name[TPC_KIND_SIZE];	/* "": none */
	int			workers;
} TpcKind;

/* Of a job and of a prepare worker: no kind. */
#define TPC_KIND_GENERAL (-1)

/* Of a prepare worker: it is one too many. */
#define TPC_KIND_NONE (-2)

typedef enum TpcNodeState
{
	TPC_NODE_FREE,
	TPC_NODE_ATTACHING,			/* attach() has it, not committed yet */
	TPC_NODE_ATTACHED,
	TPC_NODE_STOPPING			/* workers leave; the launcher frees it */
} TpcNodeState;

typedef enum TpcLinkState
{
	TPC_LINK_CONNECTING,		/* no attempt has failed since the last time
								 * it was up */
	TPC_LINK_UP,
	TPC_LINK_DOWN				/* the last attempt failed; see last_error */
} TpcLinkState;

/* Counters of view stat, in the order of tpc_stat_names. */
typedef enum TpcCounter
{
	TPC_STAT_COMMITS,			/* global transactions committed here */
	TPC_STAT_ABORTS,			/* … rolled back after prepares were sent */
	TPC_STAT_TIMEOUTS,			/* … of those, for want of a vote */
	TPC_STAT_PREPARES_SENT,
	TPC_STAT_PREPARES_RETURNED, /* unroutable */
	TPC_STAT_VOTES_YES,			/* received */
	TPC_STAT_VOTES_NO,
	TPC_STAT_VOTES_READ_ONLY,
	TPC_STAT_COMMITS_SENT,
	TPC_STAT_ROLLBACKS_SENT,
	TPC_STAT_DECISIONS_RESENT,
	TPC_STAT_ACKS,				/* received */
	TPC_STAT_FORGOTTEN,			/* decision rows deleted */
	TPC_STAT_INQUIRIES,			/* received */
	TPC_STAT_PREPARES,			/* as participant: prepares received */
	TPC_STAT_BRANCHES_PREPARED,
	TPC_STAT_BRANCHES_READ_ONLY,
	TPC_STAT_BRANCHES_REFUSED,	/* voted no */
	TPC_STAT_BRANCHES_COMMITTED,
	TPC_STAT_BRANCHES_ROLLED_BACK,
	TPC_STAT_INQUIRIES_SENT,
	TPC_STAT_DUPLICATES,		/* repeated prepares and decisions */
	TPC_STAT_BAD_MESSAGES,		/* dropped: malformed, forged, oversized … */
	TPC_STAT_CONNECTS,			/* to the broker */
	TPC_STAT_MESSAGES_SENT,
	TPC_STAT_MESSAGES_RECEIVED,
	TPC_STAT_PUBLISHES,			/* AMQP messages that carried those sent */
	TPC_STAT_SOCKET_WRITES,
	TPC_STAT_PUBLISHED,			/* publish(): sent, repetitions included */
	TPC_STAT_REPUBLISHED,		/* … of those, sent before */
	TPC_STAT_CONFIRMED,			/* … taken by the broker */
	TPC_STAT_REJECTED,			/* … not taken for now (basic.nack) */
	TPC_STAT_OVERDUE,			/* … not confirmed in time */
	TPC_STAT_RETURNED,			/* … moved to table returned: nobody's */
	TPC_STAT_REFUSED,			/* … moved there: refused by the broker */
	TPC_STAT_PREPARE_WAIT_US,	/* sum over transactions: C1 to the last vote */
	TPC_STAT_APPLY_WAIT_US,		/* sum: commit record to the last ack */
	TPC_STAT_NCOUNTERS
} TpcCounter;

/* Whether a transaction that publishes may be prepared. */
typedef enum TpcPreparedPublisher
{
	TPC_PREPARED_NONE,
	TPC_PREPARED_NEW,
	TPC_PREPARED_WATCHED
} TpcPreparedPublisher;

/* What an item is. */
typedef enum TpcItemKind
{
	TPC_ITEM_MESSAGE,			/* a message of the protocol */
	TPC_ITEM_FLOOR,				/* chore: peer's floor may have moved */
	TPC_ITEM_FORGET,			/* chore: body is an array of TpcGtid, all
								 * acknowledged */
	TPC_ITEM_CONSUMED			/* a user's message: TpcConsumedHead */
} TpcItemKind;

/*
 * A message between a worker and the messenger, in the shared area.  Outgoing
 * (to: another node) or incoming (from: another node).  body follows.
 */
typedef struct TpcItem
{
	dsa_pointer next;
	TpcItemKind kind;
	TpcMessageType type;
	TpcGlobalId id;
	char		peer[TPC_NODE_SIZE];	/* from, or to */
	char		user_id[TPC_USER_MAXLEN + 1];
	bool		has_floor;
	TpcGtid		floor;
	bool		publish;		/* outgoing: there is a message to publish */
	bool		counts_resent;	/* outgoing: a repeated decision */
	bool		own_queues;		/* to, or wanted in, those of the transaction */
	bool		ack_delivery;	/* outgoing: acknowledge this delivery too */
	int			ack_queue;		/* its TpcQueueKind */
	uint64		delivery_tag;
	uint32		epoch;			/* connection the delivery came over */
	uint32		len;
	char		body[FLEXIBLE_ARRAY_MEMBER];
} TpcItem;

/* A committed transaction all have acknowledged, and when we learned it. */
typedef struct TpcFinished
{
	TpcGtid		gtid;
	TimestampTz since;
} TpcFinished;

/* First in, first out; under the node's queue lock. */
typedef struct TpcItemQueue
{
	dsa_pointer head;
	dsa_pointer tail;
	int			count;
} TpcItemQueue;

typedef struct TpcNode
{
	/* Written under control. */
	TpcNodeState state;
	Oid			dbid;
	char		name[TPC_NODE_SIZE];
	pid_t		paused_by;		/* DROP DATABASE and the like: no workers
								 * while this process lives */
	TpcWorker	messenger;
	TpcWorker	prepare[TPC_MAX_PREPARE_WORKERS];
	int8		prepare_kind[TPC_MAX_PREPARE_WORKERS];	/* launcher: which
														 * kind's jobs each is
														 * to take */
	TpcKind		kinds[TPC_MAX_KINDS];	/* lead; places stay as they are */
	pg_atomic_uint32 kinds_changed; /* raised by one when they have changed */
	TpcWorker	resolve[TPC_MAX_RESOLVE_WORKERS];
	TpcWorker	relay;
	TpcWorker	consume[TPC_MAX_CONSUME_WORKERS];
	int			nworkers;		/* launcher: how many it is to have */
	bool		no_slots;		/* launcher: the server is out of worker slots … */
	bool		no_slots_logged;	/* … and it has said so */
	bool		lacks_lent;		/* launcher: somebody waits who cannot be lent
								 * a worker … */
	TimestampTz lacks_lent_logged;	/* … and when it said so */

	/* attach() and its messenger, under control */
	dsa_pointer attach_params;
	Latch	   *attach_waiter;
	bool		attach_answered;

	/* Written by the messenger under control; read by all under control. */
	TpcLinkState link;
	TimestampTz connected_since;
	bool		blocked;		/* connection.blocked */
	bool		publish_blocked;	/* the connection for publish(); by the
									 * messenger, without a lock */
	int			last_sqlstate;	/* of last_error */
	char		last_error[320];
	TimestampTz last_error_at;
	char		broker[320];	/* host:port/vhost, for the view */

	/*
	 * The incarnation that runs: 0 until the messenger has made it durable;
	 * then constant while the server runs.
	 */
	pg_atomic_uint64 incarnation;
	pg_atomic_uint64 sequence;	/* last one given out */
	TimeLineID	timeline;		/* of the incarnation */

	/* Written by the lead resolver, under txns; read by it without. */
	TpcGtid		floor;
	dsa_pointer finished;		/* array of TpcFinished, oldest first */
	int			nfinished;
	int			finished_size;

	bool		gids_known;		/* control: the lead has found those that were
								 * prepared before the server's start */

	/*
	 * Set to 1 once the node has something to publish, or subscriptions; no
	 * lock.  The launcher then starts the relay, and the consume workers.
	 */
	pg_atomic_uint32 wants_relay;
	pg_atomic_uint32 wants_consumers;

	/* Raised by whoever has something for the relay: it looks at the tables. */
	pg_atomic_uint32 relay_requests;

	/*
	 * A TpcPreparedPublisher, no lock: while it is not NONE, who finishes a
	 * prepared transaction wakes the relay.  Set to NEW by who prepares one
	 * that publishes, to the others by the relay.
	 */
	pg_atomic_uint32 publisher_prepared;

	/*
	 * A dsa_pointer to TpcPublications (publish.h), once the relay has made
	 * it.
	 */
	pg_atomic_uint64 publications;

	/* Raised by one by the messenger at each connect; resolvers watch it. */
	pg_atomic_uint32 epoch;
	/* Raised by resolve(): the lead resolver inquires at once. */
	pg_atomic_uint32 resolve_requests;

	/* Transactions the messenger has to look at; under txns. */
	dlist_head	txn_queue;
	/* Jobs waiting for a prepare worker, and those of kinds; under jobs. */
	dlist_head	job_queue;
	dlist_head	kind_queue[TPC_MAX_KINDS];

	/*
	 * Requests to the broker that the messenger has to look at; under
	 * requests, but it may read their number without.
	 */
	dlist_head	request_queue;
	pg_atomic_uint32 requests_queued;

	/* Queues of items, under queue_lock. */
	LWLock		queue_lock;
	dsa_pointer outbox;			/* newest first, so that pushing touches no
								 * other item; the messenger takes all */
	int			outbox_count;
	TpcItemQueue decisions;		/* for any resolve worker */
	TpcItemQueue chores;		/* for the lead resolver */

	/*
	 * Subscriptions (subscription.h).  A list, under subscriptions_lock.
	 */
	LWLock		subscriptions_lock;
	dsa_pointer subscriptions;
	uint64		subscription_serial;
	/* Raised when the table may have changed; the relay reads it then. */
	pg_atomic_uint32 subscriptions_changed;
	/* Raised by the relay when the list has; the messenger follows. */
	pg_atomic_uint32 subscriptions_listed;
	/* Messages taken from the broker and in memory; bytes. */
	pg_atomic_uint64 consumed_bytes;

	/*
	 * When to look for failed messages that are due for another run, other
	 * than those subscriptions know of.
	 */
	pg_atomic_uint64 retry_at;
	TpcConsuming consuming[TPC_MAX_CONSUME_WORKERS];
	uint64		turns;			/* runs that have begun */
	TpcItemQueue settled;		/* messages on their way back to the messenger */

	pg_atomic_uint64 stat[TPC_STAT_NCOUNTERS];
	TimestampTz stat_reset;
} TpcNode;

typedef struct TpcTxnKey
{
	Oid			dbid;
	uint32		zero;
	TpcGtid		gtid;
} TpcTxnKey;

typedef enum TpcTxnState
{
	TPC_TXN_ACTIVE,				/* has a gtid; nothing sent */
	TPC_TXN_PREPARING,			/* prepares sent or about to be; undecided */
	TPC_TXN_PREPARED,			/* its own transaction is prepared; whether it
								 * still is, the tables tell */
	TPC_TXN_COMMITTED,			/* commit record flushed */
	TPC_TXN_ABORTED				/* rolled back: to be told, then removed */
} TpcTxnState;

typedef enum TpcVoteState
{
	TPC_PART_WAITING,
	TPC_PART_YES,
	TPC_PART_READ_ONLY,
	TPC_PART_NO,
	TPC_PART_RETURNED			/* the broker knows no such node */
} TpcVoteState;

/* One participant.  In the shared area, array of txn->nparticipants. */
typedef struct TpcParticipant
{
	char		node[TPC_NODE_SIZE];
	char		user_id[TPC_USER_MAXLEN + 1];	/* of its vote */
	TpcVoteState vote;			/* messenger, under txns */
	char		kind[TPC_KIND_SIZE];	/* whose queue its prepare goes to;
										 * "": the general one */
	bool		own_queues;		/* it is reached by those of the transaction */
	bool		enlisted;		/* prepared by the application, not by us */
	bool		dropped;		/* enlisted in a savepoint that rolled back */
	bool		sent;			/* messenger; or enlisted: it may vote */
	bool		acked;			/* messenger, under txns */
	dsa_pointer body;			/* of the prepare; freed by the messenger */
	uint32		body_len;
	dsa_pointer reason;			/* body of the vote, if it says more than yes;
								 * freed with the txn */
	uint32		reason_len;
} TpcParticipant;

/*
 * A global transaction this node coordinates, from its first call until all
 * is acknowledged or its waiter has gone.  Entry of the hash table; all
 * fields under txns.  Once handed to the messenger (state > ACTIVE) only the
 * messenger removes it and frees what it points to.
 */
typedef struct TpcTxn
{
	TpcTxnKey	key;
	TpcTxnState state;
	bool		queued;			/* link is in node->txn_queue */
	dlist_node	link;
	Latch	   *waiter;			/* backend to wake, or NULL */
	pid_t		pid;			/* backend, for the view */
	int			timeout_ms;
	int			nparticipants;
	int			nexpected;		/* of them, not dropped */
	int			nvotes;			/* of those: yes and read-only */
	int			nrefused;		/* of those: no and returned */
	bool		votes_final;	/* the backend goes by them: none is taken
								 * back */
	int			npending_acks;	/* set when committed */
	bool		prepares_sent;
	bool		own_queues;		/* it has some: to be deleted */
	bool		decision_sent;
	int			resend_ms;		/* messenger: when to send it again … */
	TimestampTz sent_at;		/* … counted from here */
	bool		done;			/* committed and all acknowledged */
	bool		incident;		/* somebody could not apply it as decided */
	TimestampTz started;
	TimestampTz prepare_at;		/* C1 */
	TimestampTz decided_at;
	dsa_pointer participants;
	dsa_pointer parent_ack;		/* it is a branch of another one, too: the
								 * item that acknowledges that, for the
								 * messenger to send when all is applied */
} TpcTxn;

typedef struct TpcJobKey
{
	Oid			dbid;
	TpcGlobalId id;				/* zero-padded */
} TpcJobKey;

typedef enum TpcJobState
{
	TPC_JOB_QUEUED,
	TPC_JOB_RUNNING
} TpcJobState;

/*
 * A prepare this node has received and not finished.  Made by the messenger,
 * removed by the prepare worker that ran it (or the messenger, if it was
 * cancelled before a worker took it).  All fields under jobs.
 */
typedef struct TpcJob
{
	TpcJobKey	key;
	TpcJobState state;
	int			kind;			/* index, or TPC_KIND_GENERAL */
	dlist_node	link;			/* while queued, in the queue of that */
	pid_t		pid;			/* worker running it */
	bool		cancel;			/* rolled back: stop */
	char		user_id[TPC_USER_MAXLEN + 1];
	TimestampTz received;
	TimestampTz deadline;
	uint64		delivery_tag;
	uint32		epoch;
	dsa_pointer body;
	uint32		len;
} TpcJob;

/*
 * What a resolve worker would otherwise have to read in table branch: a branch
 * that was prepared here, and who sent its prepare.  It stays true, and says
 * nothing on whether it is still prepared.  All fields under jobs.
 */
typedef struct TpcPrepared
{
	Oid			dbid;			/* InvalidOid: nothing */
	TransactionId xid;
	TpcGlobalId id;
	char		user_id[TPC_USER_MAXLEN + 1];
} TpcPrepared;

typedef struct TpcGidKey
{
	Oid			dbid;
	char		gid[TPC_GID_SIZE];	/* zero-padded */
} TpcGidKey;

typedef enum TpcGidState
{
	TPC_GID_PREPARING,			/* its backend is at it */
	TPC_GID_PREPARED,			/* durable, and not known to be finished */
	TPC_GID_COMMITTED,			/* finished; kept for who asks again */
	TPC_GID_ABORTED
} TpcGidState;

/*
 * A prepared transaction that belongs to a global one, under a GID that the
 * application chose: a joined branch, a coordinator's own transaction, or (in
 * a tree) both.  Also the latter under a GID of ours.  Entry of the hash
 * table; all fields under gids; see gid.c.
 */
typedef struct TpcGid
{
	TpcGidKey	key;
	TpcGidState state;
	dlist_node	link;			/* in TpcShared.finished_gids once finished */
	Oid			owner;			/* who prepared it */
	TimestampTz since;
	bool		has_branch;
	TpcGlobalId branch;			/* G it is a branch of */
	bool		has_txn;
	TpcGtid		txn;			/* G it coordinates */
	bool		votes_known;	/* … and whose votes were in at PREPARE */
} TpcGid;

typedef struct TpcShared
{
	LWLock		control;
	LWLock		txns;
	LWLock		jobs;
	LWLock		gids;
	dlist_head	finished_gids;	/* gids; oldest first */
	ConditionVariable gid_changed;
	LWLock		requests;
	ConditionVariable request_freed;	/* a place of them */
	ConditionVariable txn_freed;	/* one in the table of transactions */
	TimestampTz requests_full_logged;	/* under requests */
	TimestampTz txns_full_logged;	/* under txns */
	Latch	   *launcher;		/* under control */
	TpcNode		nodes[FLEXIBLE_ARRAY_MEMBER];
} TpcShared;

extern TpcShared *tpc_shared;
extern HTAB *tpc_txns;
extern HTAB *tpc_jobs;
extern HTAB *tpc_gids;

extern void tpc_shmem_install(void);
extern void tpc_shmem_require(void);
extern dsa_area *tpc_area(void);
extern dsa_pointer tpc_area_alloc(Size size);
extern dsa_pointer tpc_area_try_alloc(Size size);
extern TpcNode *tpc_node_find(Oid dbid);
extern void tpc_node_init_workers(TpcNode *node);
extern void tpc_node_count(TpcNode *node, TpcCounter counter, uint64 n);
extern void tpc_wake_launcher(void);
extern void tpc_wake_messenger(TpcNode *node);
extern void tpc_wake_lead(TpcNode *node);
extern void tpc_wake_relay(TpcNode *node);
extern void tpc_poke_relay(TpcNode *node);
extern void tpc_wake_consumer(TpcNode *node, uint64 subscription, bool own);
extern void tpc_wake_consumers(TpcNode *node);
extern void tpc_wake_resolver(TpcNode *node);
extern void tpc_wake_prepare_worker(TpcNode *node, int kind);

/* The hash tables.  The caller holds the lock the table is under. */
extern TpcTxn *tpc_txn_find(Oid dbid, const TpcGtid *gtid);
extern void tpc_txn_remove(TpcTxn *txn);
extern void tpc_txn_free(TpcTxn *txn);
extern void tpc_txn_queue(TpcNode *node, TpcTxn *txn);
extern TpcJob *tpc_job_find(Oid dbid, const TpcGlobalId *id);
extern void tpc_prepared_note(Oid dbid, const TpcGlobalId *id,
							  TransactionId xid, const char *user_id);
extern TpcPrepared *tpc_prepared_find(Oid dbid, const TpcGlobalId *id);

/* Items.  These take the node's queue lock themselves. */
extern dsa_pointer tpc_item_make(const TpcItem *head, const char *body,
								 uint32 len);
extern dsa_pointer tpc_item_try_make(const TpcItem *head, const char *body,
									 uint32 len);
extern void tpc_outbox_push(TpcNode *node, dsa_pointer item);
extern dsa_pointer tpc_outbox_take(TpcNode *node);
extern void tpc_queue_push(TpcNode *node, TpcItemQueue *queue,
						   dsa_pointer item);
extern dsa_pointer tpc_queue_pop(TpcNode *node, TpcItemQueue *queue);

#endif							/* TPC_SHMEM_H */
