/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  What the processes of a node share.
 *
 * Fixed-size parts (nodes, the tables of transactions and of jobs) lie in the
 * main shared memory segment, so that the callbacks that run after a commit
 * record can reach them without mapping or allocating anything.  Messages and
 * lists of participants lie in a DSA area, whose size tpc_amqp.max_memory
 * bounds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "failpoint.h"
#include "request.h"
#include "settings.h"
#include "shmem.h"

/* The part of the area that lies in the main segment. */
#define AREA_IN_PLACE	((Size) 1024 * 1024)

TpcShared  *tpc_shared = NULL;
HTAB	   *tpc_txns = NULL;
HTAB	   *tpc_jobs = NULL;
HTAB	   *tpc_gids = NULL;

/* One place per transaction there can be; who needs one takes it. */
static TpcPrepared *prepared = NULL;

static void *area_place = NULL;
static dsa_area *area = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(TpcShared, nodes),
					mul_size(sizeof(TpcNode), tpc_max_nodes));
}

/* Those prepared, those being prepared, and some that are finished. */
static long
gids_size(void)
{
	return (long) max_prepared_xacts + MaxBackends + tpc_max_transactions;
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(AREA_IN_PLACE);
	RequestAddinShmemSpace(hash_estimate_size(tpc_max_transactions,
											  sizeof(TpcTxn)));
	RequestAddinShmemSpace(hash_estimate_size(tpc_max_transactions,
											  sizeof(TpcJob)));
	RequestAddinShmemSpace(hash_estimate_size(gids_size(), sizeof(TpcGid)));
	RequestAddinShmemSpace(mul_size(tpc_max_transactions,
									sizeof(TpcPrepared)));
	tpc_request_shmem_request();
	tpc_failpoint_shmem_request();
	RequestNamedLWLockTranche("tpc_amqp", 1);
}

/* tpc_node_init_workers: no worker runs.  Before the node is in use. */
void
tpc_node_init_workers(TpcNode *node)
{
	memset(&node->messenger, 0, sizeof(node->messenger));
	memset(node->prepare, 0, sizeof(node->prepare));
	memset(node->resolve, 0, sizeof(node->resolve));
	pg_atomic_init_u32(&node->messenger.idle, 0);
	for (int i = 0; i < TPC_MAX_PREPARE_WORKERS; i++)
		pg_atomic_init_u32(&node->prepare[i].idle, 0);
	for (int i = 0; i < TPC_MAX_RESOLVE_WORKERS; i++)
		pg_atomic_init_u32(&node->resolve[i].idle, 0);
	memset(&node->relay, 0, sizeof(node->relay));
	pg_atomic_init_u32(&node->relay.idle, 0);
	memset(node->consume, 0, sizeof(node->consume));
	for (int i = 0; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		pg_atomic_init_u32(&node->consume[i].idle, 0);
		pg_atomic_init_u64(&node->consume[i].retrying, 0);
	}
	memset(node->consuming, 0, sizeof(node->consuming));
	memset(node->prepare_kind, TPC_KIND_GENERAL, sizeof(node->prepare_kind));
	pg_atomic_init_u32(&node->wants_relay, 0);
	pg_atomic_init_u32(&node->wants_consumers, 0);
	pg_atomic_init_u32(&node->relay_requests, 0);
	pg_atomic_init_u32(&node->publisher_prepared, 0);
}

static void
node_init(TpcNode *node, int tranche)
{
	LWLockInitialize(&node->queue_lock, tranche);
	LWLockInitialize(&node->subscriptions_lock, tranche);
	pg_atomic_init_u32(&node->subscriptions_changed, 0);
	pg_atomic_init_u32(&node->subscriptions_listed, 0);
	pg_atomic_init_u64(&node->consumed_bytes, 0);
	pg_atomic_init_u64(&node->retry_at, 0);
	pg_atomic_init_u64(&node->incarnation, 0);
	pg_atomic_init_u64(&node->sequence, 0);
	pg_atomic_init_u32(&node->epoch, 0);
	pg_atomic_init_u32(&node->resolve_requests, 0);
	pg_atomic_init_u64(&node->publications, InvalidDsaPointer);
	for (int i = 0; i < TPC_STAT_NCOUNTERS; i++)
		pg_atomic_init_u64(&node->stat[i], 0);
	dlist_init(&node->txn_queue);
	pg_atomic_init_u32(&node->kinds_changed, 0);
	dlist_init(&node->job_queue);
	for (int i = 0; i < TPC_MAX_KINDS; i++)
		dlist_init(&node->kind_queue[i]);
	dlist_init(&node->request_queue);
	pg_atomic_init_u32(&node->requests_queued, 0);
	tpc_node_init_workers(node);
}

static void
shmem_startup(void)
{
	bool		found;
	HASHCTL		info;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);

	tpc_shared = ShmemInitStruct("tpc_amqp", shared_size(), &found);
	if (!found)
	{
		int			tranche = GetNamedLWLockTranche("tpc_amqp")->lock.tranche;

		memset(tpc_shared, 0, shared_size());
		LWLockInitialize(&tpc_shared->control, tranche);
		LWLockInitialize(&tpc_shared->txns, tranche);
		LWLockInitialize(&tpc_shared->jobs, tranche);
		LWLockInitialize(&tpc_shared->gids, tranche);
		dlist_init(&tpc_shared->finished_gids);
		ConditionVariableInit(&tpc_shared->gid_changed);
		LWLockInitialize(&tpc_shared->requests, tranche);
		ConditionVariableInit(&tpc_shared->request_freed);
		ConditionVariableInit(&tpc_shared->txn_freed);
		for (int i = 0; i < tpc_max_nodes; i++)
			node_init(&tpc_shared->nodes[i], tranche);
	}

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(TpcTxnKey);
	info.entrysize = sizeof(TpcTxn);
	tpc_txns = ShmemInitHash("tpc_amqp transactions",
							 tpc_max_transactions, tpc_max_transactions,
							 &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	info.keysize = sizeof(TpcJobKey);
	info.entrysize = sizeof(TpcJob);
	tpc_jobs = ShmemInitHash("tpc_amqp jobs",
							 tpc_max_transactions, tpc_max_transactions,
							 &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);

	info.keysize = sizeof(TpcGidKey);
	info.entrysize = sizeof(TpcGid);
	tpc_gids = ShmemInitHash("tpc_amqp prepared transactions",
							 gids_size(), gids_size(),
							 &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	prepared = ShmemInitStruct("tpc_amqp prepared",
							   mul_size(tpc_max_transactions,
										sizeof(TpcPrepared)), &found);
	if (!found)
		memset(prepared, 0, mul_size(tpc_max_transactions,
									 sizeof(TpcPrepared)));

	area_place = ShmemInitStruct("tpc_amqp messages", AREA_IN_PLACE, &found);
	if (!found)
	{
		/*
		 * The postmaster must not keep it mapped: it creates no segments.
		 * Pinned, it outlives the last process that maps it.
		 */
		dsa_area   *created;

		created = dsa_create_in_place(area_place, AREA_IN_PLACE,
									  tpc_shared->control.tranche, NULL);
		dsa_pin(created);
		dsa_set_size_limit(created, (size_t) tpc_max_memory * 1024 * 1024);
		dsa_detach(created);
	}

	tpc_request_shmem_startup();
	tpc_failpoint_shmem_startup();

	LWLockRelease(AddinShmemInitLock);
}

/* tpc_shmem_install: called once, while the postmaster loads the library. */
void
tpc_shmem_install(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* tpc_shmem_require: raise unless the library was preloaded. */
void
tpc_shmem_require(void)
{
	if (tpc_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tpc_amqp must be loaded via \"shared_preload_libraries\""),
				 errhint("Add \"tpc_amqp\" to \"shared_preload_libraries\" and restart the server.")));
}

/*
 * tpc_area: the area, mapped into this process.  Can raise the first time, so
 * a process that must not raise later calls it beforehand.
 */
dsa_area *
tpc_area(void)
{
	if (area == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		area = dsa_attach_in_place(area_place, NULL);
		dsa_pin_mapping(area);
		MemoryContextSwitchTo(old);
	}
	return area;
}

/* tpc_area_try_alloc: InvalidDsaPointer if there is no room. */
dsa_pointer
tpc_area_try_alloc(Size size)
{
	return dsa_allocate_extended(tpc_area(), size,
								 DSA_ALLOC_NO_OOM | DSA_ALLOC_HUGE);
}

/* tpc_area_alloc: never returns InvalidDsaPointer; raises 53200 instead. */
dsa_pointer
tpc_area_alloc(Size size)
{
	dsa_pointer p = tpc_area_try_alloc(size);

	if (!DsaPointerIsValid(p))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of shared memory for messages"),
				 errdetail("Failed on a request of %zu bytes.", size),
				 errhint("You might need to increase \"tpc_amqp.max_memory\".")));
	return p;
}

/*
 * tpc_node_find: the node of a database, or NULL.  The caller holds control,
 * or knows that the node cannot go away (its own workers; a transaction that
 * has an entry in tpc_txns).
 */
TpcNode *
tpc_node_find(Oid dbid)
{
	for (int i = 0; i < tpc_max_nodes; i++)
	{
		TpcNode    *node = &tpc_shared->nodes[i];

		if (node->state != TPC_NODE_FREE && node->dbid == dbid)
			return node;
	}
	return NULL;
}

void
tpc_node_count(TpcNode *node, TpcCounter counter, uint64 n)
{
	pg_atomic_fetch_add_u64(&node->stat[counter], n);
}

/*
 * Waking.  A latch pointer may be that of a process that has ended, whose
 * PGPROC another one has by now: a spurious wake-up, which every loop stands.
 */
static void
wake(Latch *latch)
{
	if (latch != NULL)
		SetLatch(latch);
}

void
tpc_wake_launcher(void)
{
	wake(tpc_shared->launcher);
}

void
tpc_wake_messenger(TpcNode *node)
{
	wake(node->messenger.latch);
}

void
tpc_wake_lead(TpcNode *node)
{
	wake(node->resolve[0].latch);
}

/*
 * tpc_wake_relay: the tables have something to publish, or a change to follow.
 * Never raises.
 */
void
tpc_wake_relay(TpcNode *node)
{
	pg_atomic_fetch_add_u32(&node->relay_requests, 1);
	if (pg_atomic_exchange_u32(&node->wants_relay, 1) == 0)
		tpc_wake_launcher();
	wake(node->relay.latch);
}

/* tpc_poke_relay: shared memory has something for it; it runs already. */
void
tpc_poke_relay(TpcNode *node)
{
	wake(node->relay.latch);
}

/* Whether it waits for work, and so has been woken. */
static bool
wake_idle(TpcWorker *worker)
{
	if (pg_atomic_read_u32(&worker->idle) == 0 ||
		pg_atomic_exchange_u32(&worker->idle, 0) == 0)
		return false;
	wake(worker->latch);
	return true;
}

/*
 * Wake one that waits for work.  If none does, all are busy, and look at the
 * queue again before they wait.
 */
static bool
wake_one(TpcWorker *workers, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (wake_idle(&workers[i]))
			return true;
	}
	return false;
}

void
tpc_wake_resolver(TpcNode *node)
{
	(void) wake_one(node->resolve, TPC_MAX_RESOLVE_WORKERS);
}

/*
 * tpc_wake_consumer: a message of this subscription has arrived: wake one of
 * its own workers, or, if it has none, a shared one or that which is lent to it.
 */
void
tpc_wake_consumer(TpcNode *node, uint64 subscription, bool own)
{
	if (!own && wake_one(node->consume, tpc_consume_workers))
		return;
	for (int i = TPC_MAX_SHARED_CONSUMERS; i < TPC_MAX_CONSUME_WORKERS; i++)
	{
		if (node->consuming[i].assigned == subscription &&
			wake_idle(&node->consume[i]))
			return;
	}
}

/* tpc_wake_consumers: whoever is idle. */
void
tpc_wake_consumers(TpcNode *node)
{
	for (int i = 0; i < TPC_MAX_CONSUME_WORKERS; i++)
		(void) wake_idle(&node->consume[i]);
}

/* tpc_wake_prepare_worker: for a job of this kind. */
void
tpc_wake_prepare_worker(TpcNode *node, int kind)
{
	for (int i = 0; i < TPC_MAX_PREPARE_WORKERS; i++)
	{
		if (node->prepare_kind[i] == kind && wake_idle(&node->prepare[i]))
			return;
	}
}

TpcTxn *
tpc_txn_find(Oid dbid, const TpcGtid *gtid)
{
	TpcTxnKey	key;

	Assert(LWLockHeldByMe(&tpc_shared->txns));
	memset(&key, 0, sizeof(key));
	key.dbid = dbid;
	key.gtid = *gtid;
	return hash_search(tpc_txns, &key, HASH_FIND, NULL);
}

/* tpc_txn_remove: never raises.  What it points to is the caller's to free. */
void
tpc_txn_remove(TpcTxn *txn)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->txns, LW_EXCLUSIVE));
	if (txn->queued)
		dlist_delete(&txn->link);
	txn->queued = false;
	hash_search(tpc_txns, &txn->key, HASH_REMOVE, NULL);
	ConditionVariableBroadcast(&tpc_shared->txn_freed);
}

/* tpc_txn_free: remove it and free what it points to.  Can raise (mapping). */
void
tpc_txn_free(TpcTxn *txn)
{
	dsa_pointer array = txn->participants;

	if (DsaPointerIsValid(array))
	{
		TpcParticipant *parts = dsa_get_address(tpc_area(), array);

		for (int i = 0; i < txn->nparticipants; i++)
		{
			if (DsaPointerIsValid(parts[i].body))
				dsa_free(tpc_area(), parts[i].body);
			if (DsaPointerIsValid(parts[i].reason))
				dsa_free(tpc_area(), parts[i].reason);
		}
	}
	if (DsaPointerIsValid(txn->parent_ack))
		dsa_free(tpc_area(), txn->parent_ack);
	tpc_txn_remove(txn);
	if (DsaPointerIsValid(array))
		dsa_free(tpc_area(), array);
}

/* tpc_txn_queue: have the messenger look at it.  Never raises. */
void
tpc_txn_queue(TpcNode *node, TpcTxn *txn)
{
	Assert(LWLockHeldByMeInMode(&tpc_shared->txns, LW_EXCLUSIVE));
	if (!txn->queued)
	{
		dlist_push_tail(&node->txn_queue, &txn->link);
		txn->queued = true;
	}
}

TpcJob *
tpc_job_find(Oid dbid, const TpcGlobalId *id)
{
	TpcJobKey	key;

	Assert(LWLockHeldByMe(&tpc_shared->jobs));
	memset(&key, 0, sizeof(key));
	key.dbid = dbid;
	key.id = *id;
	return hash_search(tpc_jobs, &key, HASH_FIND, NULL);
}

static TpcPrepared *
prepared_place(const TpcGlobalId *id)
{
	return &prepared[id->gtid.sequence % tpc_max_transactions];
}

/* tpc_prepared_note: remember a branch, if need be in place of another. */
void
tpc_prepared_note(Oid dbid, const TpcGlobalId *id, TransactionId xid,
				  const char *user_id)
{
	TpcPrepared *place = prepared_place(id);

	Assert(LWLockHeldByMeInMode(&tpc_shared->jobs, LW_EXCLUSIVE));
	place->dbid = dbid;
	place->xid = xid;
	place->id = *id;
	strlcpy(place->user_id, user_id, sizeof(place->user_id));
}

/* tpc_prepared_find: NULL if it is not, or not any more, remembered. */
TpcPrepared *
tpc_prepared_find(Oid dbid, const TpcGlobalId *id)
{
	TpcPrepared *place = prepared_place(id);

	Assert(LWLockHeldByMe(&tpc_shared->jobs));
	return place->dbid == dbid &&
		tpc_global_id_equal(&place->id, id) ? place : NULL;
}

/*
 * tpc_item_try_make: a copy of *head and body in the area; InvalidDsaPointer
 * if there is no room.
 */
dsa_pointer
tpc_item_try_make(const TpcItem *head, const char *body, uint32 len)
{
	dsa_pointer p = tpc_area_try_alloc(offsetof(TpcItem, body) + len);
	TpcItem    *item;

	if (!DsaPointerIsValid(p))
		return p;
	item = dsa_get_address(tpc_area(), p);
	memcpy(item, head, offsetof(TpcItem, body));
	item->next = InvalidDsaPointer;
	item->len = len;
	if (len > 0)
		memcpy(item->body, body, len);
	return p;
}

/* tpc_item_make: the same, but raises 53200. */
dsa_pointer
tpc_item_make(const TpcItem *head, const char *body, uint32 len)
{
	dsa_pointer p = tpc_item_try_make(head, body, len);

	if (!DsaPointerIsValid(p))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of shared memory for messages"),
				 errhint("You might need to increase \"tpc_amqp.max_memory\".")));
	return p;
}

/*
 * tpc_outbox_push: hand an item to the messenger.  Never raises, for the
 * caller made the item and so has it mapped.
 */
void
tpc_outbox_push(TpcNode *node, dsa_pointer item)
{
	TpcItem    *p = dsa_get_address(tpc_area(), item);

	LWLockAcquire(&node->queue_lock, LW_EXCLUSIVE);
	p->next = node->outbox;
	node->outbox = item;
	node->outbox_count++;
	LWLockRelease(&node->queue_lock);
	tpc_wake_messenger(node);
}

/* tpc_outbox_take: all of it, newest first. */
dsa_pointer
tpc_outbox_take(TpcNode *node)
{
	dsa_pointer head;

	if (node->outbox_count == 0)
		return InvalidDsaPointer;
	LWLockAcquire(&node->queue_lock, LW_EXCLUSIVE);
	head = node->outbox;
	node->outbox = InvalidDsaPointer;
	node->outbox_count = 0;
	LWLockRelease(&node->queue_lock);
	return head;
}

/* tpc_queue_push: append.  Can raise (mapping the tail's segment). */
void
tpc_queue_push(TpcNode *node, TpcItemQueue *queue, dsa_pointer item)
{
	TpcItem    *p = dsa_get_address(tpc_area(), item);

	p->next = InvalidDsaPointer;
	LWLockAcquire(&node->queue_lock, LW_EXCLUSIVE);
	if (queue->count == 0)
		queue->head = item;
	else
	{
		TpcItem    *tail = dsa_get_address(tpc_area(), queue->tail);

		tail->next = item;
	}
	queue->tail = item;
	queue->count++;
	LWLockRelease(&node->queue_lock);
}

/* tpc_queue_pop: the oldest, now the caller's; InvalidDsaPointer if none. */
dsa_pointer
tpc_queue_pop(TpcNode *node, TpcItemQueue *queue)
{
	dsa_pointer head;

	if (queue->count == 0)
		return InvalidDsaPointer;
	LWLockAcquire(&node->queue_lock, LW_EXCLUSIVE);
	head = InvalidDsaPointer;
	if (queue->count > 0)
	{
		TpcItem    *p;

		head = queue->head;
		p = dsa_get_address(tpc_area(), head);
		queue->head = p->next;
		queue->count--;
	}
	LWLockRelease(&node->queue_lock);
	return head;
}
