/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  The process that reads tables on behalf of the messenger.
 *
 * One per node, started once there is something for it.  It hands committed
 * rows of table publication to the messenger in order of their ids, as far as
 * the window in shared memory (publish.h) has room, and deletes what the
 * broker has confirmed.  What came back moves to table returned.
 *
 * Rows become visible in any order of ids, and those of one transaction are
 * to go out in theirs.  So each look begins at the lowest id that may have
 * turned up since the last one (unseen.c), passing over what is in the window.
 * What goes where the broker takes nothing for now is looked for by itself
 * (destination.c).
 *
 * It may end at any time.  Its successor finds in the window what has been
 * handed over, so that nothing is sent twice for that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "destination.h"
#include "failpoint.h"
#include "publish.h"
#include "relation.h"
#include "settings.h"
#include "shmem.h"
#include "subscribe.h"
#include "unseen.h"
#include "worker.h"

/* How often to look at the tables without being asked. */
#define POLL_MS				1000
/* How long to wait after an error. */
#define ERROR_WAIT_MS		1000
/* Share of the area that messages in the window may take. */
#define WINDOW_SHARE		8
/* The window is filled again when so many places are free. */
#define REFILL				(TPC_PUBLICATIONS / 2)
/* Messages that find out may be in the window at a time; places kept for them. */
#define MAX_PROBES			(TPC_PUBLICATIONS / 8)
/* Rows a look may pass over to find them, before others have their turn. */
#define HELD_ROWS			5000

/* A row that is not to be sent: where it stands instead. */
typedef struct Failed
{
	int64		id;
	const char *kind;
	int			code;			/* the broker's; 0: none */
	char	   *reason;
} Failed;

static TpcNode *node;
static TpcPublications *window = NULL;
static MemoryContext turn_context;	/* reset every turn */

static TpcUnseen unseen;
static bool restored = false;	/* destinations have been */

/* One that is due could not be tried: there was no room. */
static bool probes_held_up = false;

static bool more_rows = true;	/* the window was full at the last look */
static uint32 requests = 0;		/* as of the last look */
static TimestampTz look_at = 0; /* the next one, if nobody asks */

/* What was prepared when we were told of that was below this xid. */
static TransactionId prepared_xid = InvalidTransactionId;

static uint32 wait_event_main = 0;

/*-------------------------------------------------------------------------
 * The window
 *-------------------------------------------------------------------------
 */

static TpcPublicationState
state_of(const TpcPublication *place)
{
	TpcPublicationState state;

	state = pg_atomic_read_u32(unconstify(pg_atomic_uint32 *, &place->state));
	/* what the messenger wrote before it */
	pg_read_barrier();
	return state;
}

/*
 * Whoever put the last message in may have ended before he could say so.  It
 * would not be sent then until there is another one.
 */
static void
repair_given(void)
{
	uint64		given = pg_atomic_read_u64(&window->given);
	uint64		last = given;

	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		if (state_of(&window->places[i]) != TPC_PUBLICATION_FREE)
			last = Max(last, window->places[i].order);
	}
	if (last > given)
	{
		pg_write_barrier();
		pg_atomic_write_u64(&window->given, last);
		tpc_wake_messenger(node);
	}
}

/* The relay before us has found out where the broker takes nothing. */
static void
restore_destinations(void)
{
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		TpcPublication *place = &window->places[i];

		if (state_of(place) == TPC_PUBLICATION_FREE)
			continue;
		if (place->probe)
			tpc_destination_restore(&place->key, place->id);
	}
	restored = true;
}

/*
 * Make it if it is not there yet; false if there is no room.  window is NULL
 * at the start, and after an error.
 */
static bool
find_window(void)
{
	dsa_pointer p = pg_atomic_read_u64(&node->publications);

	if (window != NULL)
		return true;
	if (!DsaPointerIsValid(p))
	{
		p = tpc_area_try_alloc(sizeof(TpcPublications));
		if (!DsaPointerIsValid(p))
			return false;
		window = dsa_get_address(tpc_area(), p);
		memset(window, 0, sizeof(TpcPublications));
		pg_atomic_init_u64(&window->given, 0);
		pg_atomic_init_u32(&window->probes_held_up, 0);
		if (!pg_strong_random(&window->seed, sizeof(window->seed)))
			window->seed = 0;
		for (int i = 0; i < TPC_PUBLICATIONS; i++)
		{
			pg_atomic_init_u32(&window->places[i].state,
							   TPC_PUBLICATION_FREE);
			window->places[i].data = InvalidDsaPointer;
		}
		pg_write_barrier();
		pg_atomic_write_u64(&node->publications, p);
	}
	window = dsa_get_address(tpc_area(), p);
	repair_given();
	if (!restored)
		restore_destinations();
	return true;
}

/*
 * tpc_publications_free: the node's workers are gone; the caller holds
 * control.
 */
void
tpc_publications_free(TpcNode *node)
{
	dsa_pointer p = pg_atomic_read_u64(&node->publications);
	TpcPublications *publications;

	if (!DsaPointerIsValid(p))
		return;
	publications = dsa_get_address(tpc_area(), p);
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		if (DsaPointerIsValid(publications->places[i].data))
			dsa_free(tpc_area(), publications->places[i].data);
	}
	dsa_free(tpc_area(), p);
	pg_atomic_write_u64(&node->publications, InvalidDsaPointer);
}

/* A place is done with. */
static void
free_place(TpcPublication *place)
{
	if (DsaPointerIsValid(place->data))
		dsa_free(tpc_area(), place->data);
	place->data = InvalidDsaPointer;
	pg_atomic_write_u32(&place->state, TPC_PUBLICATION_FREE);
}

static int
compare_ids(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/*-------------------------------------------------------------------------
 * What the broker has said: step X6
 *-------------------------------------------------------------------------
 */

static Datum
array_of(Datum *elems, int n, Oid type)
{
	ArrayType  *array;

	if (type == TEXTOID)
		array = construct_array(elems, n, type, -1, false, TYPALIGN_INT);
	else
		array = construct_array(elems, n, type, type == INT8OID ? 8 : 4,
								type == INT8OID ? FLOAT8PASSBYVAL : true,
								type == INT8OID ? TYPALIGN_DOUBLE :
								TYPALIGN_INT);
	return PointerGetDatum(array);
}

static void
delete_rows(Datum *ids, int n)
{
	Oid			types[1] = {INT8ARRAYOID};
	Datum		values[1];

	if (n == 0)
		return;
	values[0] = array_of(ids, n, INT8OID);
	(void) tpc_spi_run("DELETE FROM tpc_amqp.publication"
					   " WHERE id OPERATOR(pg_catalog.=) ANY ($1)",
					   1, types, values, NULL, false, SPI_OK_DELETE);
}

static void
move_rows(List *failed)
{
	Oid			types[4] = {INT8ARRAYOID, TEXTARRAYOID, INT4ARRAYOID,
	TEXTARRAYOID};
	Datum		values[4];
	Datum	   *columns[4];
	int			n = 0;
	ListCell   *lc;

	if (failed == NIL)
		return;
	for (int i = 0; i < 4; i++)
		columns[i] = palloc(sizeof(Datum) * list_length(failed));
	foreach(lc, failed)
	{
		Failed	   *f = lfirst(lc);

		columns[0][n] = Int64GetDatum(f->id);
		columns[1][n] = CStringGetTextDatum(f->kind);
		columns[2][n] = Int32GetDatum(f->code);
		columns[3][n++] = CStringGetTextDatum(f->reason);
	}
	for (int i = 0; i < 4; i++)
		values[i] = array_of(columns[i], n,
							 i == 0 ? INT8OID : i == 2 ? INT4OID : TEXTOID);
	(void) tpc_spi_run("WITH f AS (SELECT * FROM ROWS FROM"
					   " (pg_catalog.unnest($1), pg_catalog.unnest($2),"
					   " pg_catalog.unnest($3), pg_catalog.unnest($4))"
					   " AS r (id, kind, code, reason)),"
					   " gone AS (DELETE FROM tpc_amqp.publication p USING f"
					   " WHERE p.id OPERATOR(pg_catalog.=) f.id"
	/* says the same, so that the index is used */
					   " AND p.id OPERATOR(pg_catalog.=) ANY ($1)"
					   " RETURNING p.*, f.kind, f.code, f.reason)"
					   " INSERT INTO tpc_amqp.returned (id, exchange,"
					   " routing_key, body, properties, mandatory, message_id,"
					   " published_at, kind, code, reason, returned_at)"
					   " SELECT id, exchange, routing_key, body, properties,"
					   " mandatory, message_id, published_at, kind,"
					   " NULLIF(code, 0), reason, pg_catalog.clock_timestamp()"
					   " FROM gone ORDER BY id",
					   4, types, values, NULL, false, SPI_OK_INSERT);
}

/* The broker's words, in the database's encoding. */
static char *
words_of(const char *text)
{
	StringInfoData ascii;

	if (GetDatabaseEncoding() == PG_UTF8 &&
		pg_verify_mbstr(PG_UTF8, text, strlen(text), true))
		return pstrdup(text);
	initStringInfo(&ascii);
	for (const char *p = text; *p != '\0'; p++)
		appendStringInfoChar(&ascii, *p >= ' ' && *p < 0x7F ? *p : '?');
	return ascii.data;
}

/* Note down, durably, what has become of messages, and free their places. */
static void
take_outcomes(void)
{
	TpcPublication **places = palloc(sizeof(TpcPublication *) *
									 TPC_PUBLICATIONS);
	Datum	   *confirmed = palloc(sizeof(Datum) * TPC_PUBLICATIONS);
	List	   *failed = NIL;
	int			nplaces = 0;
	int			nconfirmed = 0;
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		TpcPublication *place = &window->places[i];
		TpcPublicationState state = state_of(place);
		Failed	   *f;
		int64		first;

		switch (state)
		{
			case TPC_PUBLICATION_FREE:
				/* one that a predecessor did not get to fill */
				if (DsaPointerIsValid(place->data))
					free_place(place);
				continue;
			case TPC_PUBLICATION_WAITING:
			case TPC_PUBLICATION_SENT:
				continue;
			case TPC_PUBLICATION_REJECTED:
			case TPC_PUBLICATION_OVERDUE:
				tpc_destination_refused(&place->key, place->id, place->probe,
										state == TPC_PUBLICATION_OVERDUE, now);
				free_place(place);
				probes_held_up = false;
				continue;
			case TPC_PUBLICATION_CONFIRMED:
				confirmed[nconfirmed++] = Int64GetDatum(place->id);
				break;
			case TPC_PUBLICATION_RETURNED:
			case TPC_PUBLICATION_REFUSED:
				f = palloc(sizeof(Failed));
				f->id = place->id;
				f->kind = state == TPC_PUBLICATION_RETURNED ?
					"returned" : "refused";
				f->code = place->reply_code;
				f->reason = words_of(place->reason);
				failed = lappend(failed, f);
				break;
		}
		first = tpc_destination_took(&place->key, place->probe, !place->slow,
									 now);
		if (first > 0)
		{
			tpc_unseen_again(&unseen, first);
			more_rows = true;
		}
		/* lest it be counted twice after an error, or by a successor */
		place->probe = false;
		places[nplaces++] = place;
	}
	if (nplaces == 0)
		return;
	probes_held_up = false;

	TPC_FAILPOINT("X6.before");
	tpc_worker_begin();
	delete_rows(confirmed, nconfirmed);
	move_rows(failed);
	/* deleted for good before the place is another's, lest it be sent again */
	ForceSyncCommit();
	tpc_worker_end();
	TPC_FAILPOINT("X6.after");
	for (int i = 0; i < nplaces; i++)
	{
		if (state_of(places[i]) == TPC_PUBLICATION_RETURNED)
			tpc_node_count(node, TPC_STAT_RETURNED, 1);
		else if (state_of(places[i]) == TPC_PUBLICATION_REFUSED)
			tpc_node_count(node, TPC_STAT_REFUSED, 1);
		free_place(places[i]);
	}
}

/*-------------------------------------------------------------------------
 * Rows to be sent: step X3
 *-------------------------------------------------------------------------
 */

/*
 * watch_prepared, unwatch_prepared: before a look, and after it with its
 * snapshot.  While a transaction may be prepared that publishes, those who
 * finish prepared ones wake us.
 */
static void
watch_prepared(void)
{
	if (pg_atomic_read_u32(&node->publisher_prepared) == TPC_PREPARED_NEW)
	{
		pg_atomic_write_u32(&node->publisher_prepared, TPC_PREPARED_WATCHED);
		pg_memory_barrier();
		prepared_xid = XidFromFullTransactionId(ReadNextFullTransactionId());
	}
}

static void
unwatch_prepared(Snapshot snapshot)
{
	uint32		watched = TPC_PREPARED_WATCHED;

	if (TransactionIdIsValid(prepared_xid) &&
		TransactionIdFollowsOrEquals(snapshot->xmin, prepared_xid))
	{
		prepared_xid = InvalidTransactionId;
		(void) pg_atomic_compare_exchange_u32(&node->publisher_prepared,
											  &watched, TPC_PREPARED_NONE);
	}
}

/*
 * Put one row into a place; false if there is no room for it now.  d: where it
 * goes, if that is held.
 */
static bool
hand_over(TpcPublication *place, int64 id, Datum *values,
		  const TpcDestinationKey *key, TpcDestination *d)
{
	char	   *exchange =
	TextDatumGetCString(values[PUBLICATION_EXCHANGE - 1]);
	char	   *routing_key =
	TextDatumGetCString(values[PUBLICATION_ROUTING_KEY - 1]);
	bytea	   *properties =
	DatumGetByteaPP(values[PUBLICATION_PROPERTIES - 1]);
	bytea	   *body = DatumGetByteaPP(values[PUBLICATION_BODY - 1]);
	Size		size;
	char	   *p;

	exchange = pg_server_to_any(exchange, strlen(exchange), PG_UTF8);
	routing_key = pg_server_to_any(routing_key, strlen(routing_key), PG_UTF8);
	place->exchange_len = strlen(exchange);
	place->key_len = strlen(routing_key);
	place->properties_len = VARSIZE_ANY_EXHDR(properties);
	place->body_len = VARSIZE_ANY_EXHDR(body);
	size = (Size) place->exchange_len + place->key_len +
		place->properties_len + place->body_len;
	place->data = tpc_area_try_alloc(size);
	if (!DsaPointerIsValid(place->data))
		return false;
	p = dsa_get_address(tpc_area(), place->data);
	memcpy(p, exchange, place->exchange_len);
	p += place->exchange_len;
	memcpy(p, routing_key, place->key_len);
	p += place->key_len;
	memcpy(p, VARDATA_ANY(properties), place->properties_len);
	p += place->properties_len;
	memcpy(p, VARDATA_ANY(body), place->body_len);

	place->id = id;
	place->key = *key;
	place->probe = d != NULL;
	place->held = d != NULL ? d->hash : 0;
	place->slow = false;
	place->mandatory = DatumGetBool(values[PUBLICATION_MANDATORY - 1]);
	place->repeated = false;
	place->reply_code = 0;
	place->reason[0] = '\0';
	place->order = pg_atomic_read_u64(&window->given) + 1;
	pg_write_barrier();
	pg_atomic_write_u32(&place->state, TPC_PUBLICATION_WAITING);
	if (d != NULL)
		tpc_destination_given(d, id);
	TPC_FAILPOINT("X3.given");
	pg_write_barrier();
	pg_atomic_write_u64(&window->given, place->order);
	return true;
}

static TpcDestinationKey
key_of(Datum *values)
{
	text	   *exchange = DatumGetTextPP(values[PUBLICATION_EXCHANGE - 1]);
	text	   *routing_key =
	DatumGetTextPP(values[PUBLICATION_ROUTING_KEY - 1]);
	TpcDestinationKey key;

	key.exchange = hash_bytes_extended((unsigned char *) VARDATA_ANY(exchange),
									   VARSIZE_ANY_EXHDR(exchange),
									   window->seed);
	key.destination =
		hash_bytes_extended((unsigned char *) VARDATA_ANY(routing_key),
							VARSIZE_ANY_EXHDR(routing_key),
							hash_combine64(key.exchange, 1));
	return key;
}

/* What is in the window: ids, sorted; free places; bytes. */
typedef struct Inventory
{
	int			nids;
	int64		ids[TPC_PUBLICATIONS];
	int			nfree;
	int			free[TPC_PUBLICATIONS];
	int			ngiven;			/* of messages that are no probes */
	Size		bytes;
	int			nprobes;
	Size		probe_bytes;
} Inventory;

static void
count_given(Inventory *inv, const TpcPublication *place)
{
	if (place->probe)
	{
		inv->nprobes++;
		inv->probe_bytes += place->body_len;
	}
	else
	{
		inv->ngiven++;
		inv->bytes += place->body_len;
	}
}

static Inventory *
take_inventory(void)
{
	Inventory  *inv = palloc0(sizeof(Inventory));

	/* from the end, so that the first ones are taken first */
	for (int i = TPC_PUBLICATIONS - 1; i >= 0; i--)
	{
		TpcPublication *place = &window->places[i];

		if (state_of(place) == TPC_PUBLICATION_FREE)
			inv->free[inv->nfree++] = i;
		else
		{
			inv->ids[inv->nids++] = place->id;
			count_given(inv, place);
		}
	}
	qsort(inv->ids, inv->nids, sizeof(int64), compare_ids);
	return inv;
}

/*
 * Whether a body of this size finds room.  One that is larger than the share
 * goes when there is little else.
 */
static bool
has_room(const Inventory *inv, Size size)
{
	Size		share = (Size) tpc_max_memory * 1024 * 1024 / WINDOW_SHARE;

	if (inv->nfree <= MAX_PROBES - inv->nprobes)
		return false;
	return inv->ngiven == 0 || inv->bytes + size <= share ||
		(size > share && inv->bytes <= share / 8);
}

/* The same of a probe, which may have to wait there for long. */
static bool
has_room_for_probe(const Inventory *inv, Size size)
{
	Size		share = (Size) tpc_max_memory * 1024 * 1024 / WINDOW_SHARE;

	if (inv->nfree == 0 || inv->nprobes >= MAX_PROBES)
		return false;
	return inv->nprobes == 0 || inv->probe_bytes + size <= share / 2;
}

/* A look at the table. */
typedef struct Look
{
	Relation	rel;
	Relation	index;
	Snapshot	snapshot;
	Inventory  *inv;
	MemoryContext row_context;
	List	   *failed;			/* rows that cannot be sent, as Failed */
	bool		awaited;		/* standbys have what the snapshot shows */
	int64		highest;		/* id met; 0: none */
} Look;

typedef enum RowFate
{
	ROW_PASSED_OVER,
	ROW_GIVEN,
	ROW_STOPS					/* there is no room for it */
} RowFate;

static SysScanDesc
begin_scan(Look *look, int64 first)
{
	ScanKeyData key;

	ScanKeyInit(&key, PUBLICATION_ID, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(first));
	return systable_beginscan_ordered(look->rel, look->index, look->snapshot,
									  1, &key);
}

static void
add_too_large(Look *look, int64 id, Size size)
{
	Failed	   *f = palloc(sizeof(Failed));

	f->id = id;
	f->kind = "refused";
	f->code = 0;
	f->reason = psprintf("the body has %zu bytes; tpc_amqp.max_payload allows %zu",
						 size, tpc_publication_max_body());
	look->failed = lappend(look->failed, f);
}

/*
 * Deal with a row.  held: only rows that go there are meant; else all that go
 * where nothing is held.
 *
 * Who committed them has waited for the synchronous standbys, unless that was
 * cancelled, or it was a COMMIT PREPARED that did not care.
 */
static RowFate
take_row(Look *look, HeapTuple tuple, TpcDestination *held)
{
	Inventory  *inv = look->inv;
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[PUBLICATION_NATTS];
	bool		nulls[PUBLICATION_NATTS];
	TpcDestinationKey key;
	TpcDestination *d;
	TpcPublication *place;
	int64		id;
	Size		size;
	bool		room;

	CHECK_FOR_INTERRUPTS();
	heap_deform_tuple(tuple, RelationGetDescr(look->rel), values, nulls);
	id = DatumGetInt64(values[PUBLICATION_ID - 1]);
	look->highest = Max(look->highest, id);
	if (DatumGetObjectId(values[PUBLICATION_DATABASE - 1]) != MyDatabaseId ||
		bsearch(&id, inv->ids, inv->nids, sizeof(int64), compare_ids))
		return ROW_PASSED_OVER;

	MemoryContextReset(look->row_context);
	MemoryContextSwitchTo(look->row_context);
	key = key_of(values);
	MemoryContextSwitchTo(caller);
	d = tpc_destination_find(&key);
	if (held != NULL && d != held)
		return ROW_PASSED_OVER;

	size = toast_raw_datum_size(values[PUBLICATION_BODY - 1]) - VARHDRSZ;
	if (size > tpc_publication_max_body())
	{
		add_too_large(look, id, size);
		return ROW_PASSED_OVER;
	}
	if (held == NULL && d != NULL)
	{
		tpc_destination_met(d, id);
		return ROW_PASSED_OVER;
	}
	if (held != NULL ? !has_room_for_probe(inv, size) : !has_room(inv, size))
		return ROW_STOPS;

	if (!look->awaited && tpc_worker_has_standbys() &&
		!tpc_worker_await_standbys())
		proc_exit(0);
	look->awaited = true;
	place = &window->places[inv->free[inv->nfree - 1]];
	MemoryContextSwitchTo(look->row_context);
	room = hand_over(place, id, values, &key, held);
	MemoryContextSwitchTo(caller);
	if (!room)
	{
		/* others have the memory, and give it back */
		look_at = Min(look_at,
					  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 100));
		return ROW_STOPS;
	}
	inv->nfree--;
	count_given(inv, place);
	return ROW_GIVEN;
}

/*
 * Try destinations that are held and whose time has come: hand over as many of
 * their rows as may be on their way.
 */
static void
look_for_held(Look *look)
{
	TimestampTz now = GetCurrentTimestamp();
	int			budget = HELD_ROWS;
	TpcDestination *d;

	probes_held_up = false;
	pg_atomic_write_u32(&window->probes_held_up, 0);
	while (budget > 0 && !probes_held_up &&
		   (d = tpc_destination_next()) != NULL && d->until <= now)
	{
		SysScanDesc scan = begin_scan(look, d->first);
		int64		last = d->last;

		look->highest = 0;
		while (d->waits && budget > 0 && !probes_held_up &&
			   look->highest < last)
		{
			HeapTuple	tuple = systable_getnext_ordered(scan,
														 ForwardScanDirection);

			budget--;
			if (tuple == NULL)
			{
				look->highest = last;
				break;
			}
			probes_held_up = take_row(look, tuple, d) == ROW_STOPS;
		}
		systable_endscan_ordered(scan);
		/* beyond the last row of it that it knows, there are others' only */
		tpc_destination_passed(d, Min(look->highest, last) +
							   (probes_held_up ? 0 : 1));
	}

	/* the messenger then takes back one of which nothing is heard */
	if (probes_held_up && look->inv->nprobes > 0)
		pg_atomic_write_u32(&window->probes_held_up, 1);
}

/* Hand over the others, in order of ids, as far as there is room. */
static void
look_for_new(Look *look, int64 first)
{
	SysScanDesc scan = begin_scan(look, first);
	HeapTuple	tuple;
	int64		done = unseen.done;
	MemoryContext old;

	more_rows = false;
	look->highest = 0;
	while ((tuple = systable_getnext_ordered(scan, ForwardScanDirection)) != NULL)
	{
		if (take_row(look, tuple, NULL) == ROW_STOPS)
		{
			more_rows = true;
			done = look->highest - 1;
			break;
		}
	}
	if (!more_rows)
		done = Max(done, look->highest);
	systable_endscan_ordered(scan);
	old = MemoryContextSwitchTo(TopMemoryContext);
	tpc_unseen_end(&unseen, done, look->highest,
				   XidFromFullTransactionId(ReadNextFullTransactionId()));
	MemoryContextSwitchTo(old);
}

/* Returns rows that cannot be sent, as Failed. */
static List *
look_at_rows(Inventory *inv, MemoryContext row_context)
{
	Look		look = {.inv = inv,.row_context = row_context};
	MemoryContext old;
	int64		first;

	look.rel = tpc_relation_open("publication", AccessShareLock);
	look.index = index_open(tpc_index_oid("publication_pkey"),
							AccessShareLock);
	watch_prepared();
	look.snapshot = RegisterSnapshot(GetLatestSnapshot());
	old = MemoryContextSwitchTo(TopMemoryContext);
	first = tpc_unseen_begin(&unseen, look.snapshot->xmax,
							 look.snapshot->xip, look.snapshot->xcnt);
	MemoryContextSwitchTo(old);

	look_for_held(&look);
	look_for_new(&look, first);

	unwatch_prepared(look.snapshot);
	UnregisterSnapshot(look.snapshot);
	index_close(look.index, AccessShareLock);
	table_close(look.rel, AccessShareLock);
	return look.failed;
}

static void
look(void)
{
	Inventory  *inv = take_inventory();
	MemoryContext row_context = AllocSetContextCreate(turn_context,
													  "tpc_amqp row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	uint64		given = pg_atomic_read_u64(&window->given);
	List	   *failed;

	requests = pg_atomic_read_u32(&node->relay_requests);
	pg_memory_barrier();
	look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), POLL_MS);

	TPC_FAILPOINT("X3.before");
	tpc_worker_begin();
	MemoryContextSwitchTo(old);
	failed = look_at_rows(inv, row_context);
	if (failed != NIL)
	{
		move_rows(failed);
		ForceSyncCommit();
	}
	tpc_worker_end();
	MemoryContextSwitchTo(old);
	if (failed != NIL)
		tpc_node_count(node, TPC_STAT_REFUSED, list_length(failed));
	if (pg_atomic_read_u64(&window->given) != given)
		tpc_wake_messenger(node);
	TPC_FAILPOINT("X3.after");
}

/* When a destination that is held is to be tried; 0: none is. */
static TimestampTz
probe_at(void)
{
	TpcDestination *d = tpc_destination_next();

	return d == NULL || probes_held_up ? 0 : d->until;
}

static bool
look_is_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			nfree = 0;

	if (now >= look_at || (probe_at() != 0 && now >= probe_at()) ||
		(!more_rows && requests != pg_atomic_read_u32(&node->relay_requests)))
		return true;
	if (!more_rows)
		return false;
	for (int i = 0; i < TPC_PUBLICATIONS; i++)
	{
		if (state_of(&window->places[i]) == TPC_PUBLICATION_FREE)
			nfree++;
	}
	return nfree >= REFILL;
}

/*-------------------------------------------------------------------------
 * The process
 *-------------------------------------------------------------------------
 */

/*
 * What the relay has to do; an error in one must not hold up the other.  act
 * returns how long there is nothing more to do, in ms.
 */
typedef struct Duty
{
	long		(*act) (void);
	TimestampTz pause_until;	/* after an error */
} Duty;

static long
publish_rows(void)
{
	static bool failed = false; /* or it is being done just now */
	TimestampTz next;

	if (failed)
	{
		window = NULL;
		more_rows = true;
		tpc_unseen_forget(&unseen);
	}
	failed = true;
	if (!find_window())
		return 100;
	take_outcomes();
	MemoryContextSwitchTo(turn_context);
	if (look_is_due())
		look();
	failed = false;
	next = look_at;
	if (probe_at() != 0)
		next = Min(next, probe_at());
	return Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												  next));
}

static long
follow_subscriptions(void)
{
	return tpc_subscription_follow(node);
}

static Duty duties[] = {{follow_subscriptions, 0}, {publish_rows, 0}};

/* Do it; an error is logged, and it is tried again later. */
static long
do_safely(Duty *duty)
{
	volatile long timeout = ERROR_WAIT_MS;

	/* wake-ups must not make errors more frequent */
	if (GetCurrentTimestamp() < duty->pause_until)
		return Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													  duty->pause_until));
	MemoryContextSwitchTo(turn_context);
	PG_TRY();
	{
		timeout = duty->act();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		duty->pause_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														ERROR_WAIT_MS);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	return timeout;
}

void
tpc_relay_main(Datum arg)
{
	node = tpc_worker_attach(arg, NULL, NULL);
	tpc_worker_connect(node, false);
	turn_context = AllocSetContextCreate(TopMemoryContext,
										 "tpc_amqp relay turn",
										 ALLOCSET_DEFAULT_SIZES);
	tpc_destinations_init();
	/* what was prepared before our time */
	pg_atomic_write_u32(&node->publisher_prepared, TPC_PREPARED_NEW);
	pgstat_report_activity(STATE_RUNNING, "relaying to the messenger");

	for (;;)
	{
		long		timeout = LONG_MAX;

		ResetLatch(MyLatch);
		if (tpc_worker_should_exit(node))
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);

		for (int i = 0; i < (int) lengthof(duties); i++)
			timeout = Min(timeout, do_safely(&duties[i]));
		pgstat_report_stat(false);

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout,
						 tpc_wait_event(&wait_event_main, "TpcAmqpRelay"));
	}
}
