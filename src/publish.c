/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  Publishing as part of the transaction: what sessions see of it.
 *
 * publish() inserts a row into table publication, in the user's own
 * transaction: it is there if and only if that commits, whichever way, and
 * stays until the broker has confirmed the message.  The relay (relay.c) finds
 * it.  All that is left to do after the commit record is to wake the relay,
 * which would come by in a second anyway.
 *
 * A message that has gone out cannot be taken back, so the commit is made
 * durable first, whatever synchronous_commit says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "failpoint.h"
#include "message.h"
#include "node.h"
#include "properties.h"
#include "publish.h"
#include "relation.h"
#include "settings.h"
#include "txn.h"

/*
 * The node to wake when this transaction commits; NULL: it publishes nothing.
 */
static TpcNode *publishes = NULL;

/*-------------------------------------------------------------------------
 * What becomes of the transaction (txn.c calls these).
 *-------------------------------------------------------------------------
 */

void
tpc_publish_at_pre_commit(void)
{
	if (publishes != NULL)
		tpc_txn_make_synchronous();
}

/* Step X2.  Never raises. */
void
tpc_publish_at_commit(void)
{
	if (publishes == NULL)
		return;
	TPC_FAILPOINT("X2.before");
	tpc_wake_relay(publishes);
	publishes = NULL;
}

/*
 * Who finishes the prepared transaction does not know what is in it, so all
 * who finish one wake the relay from now on.  Never raises.
 */
void
tpc_publish_at_prepare(void)
{
	if (publishes == NULL)
		return;
	pg_atomic_write_u32(&publishes->publisher_prepared, TPC_PREPARED_NEW);
	tpc_wake_relay(publishes);
	publishes = NULL;
}

void
tpc_publish_at_abort(void)
{
	publishes = NULL;
}

/*
 * tpc_publish_after_prepared: a prepared transaction of this database has been
 * finished; node NULL: find it.  Never raises.
 */
void
tpc_publish_after_prepared(TpcNode *node)
{
	if (tpc_shared == NULL)
		return;
	if (node == NULL)
	{
		LWLockAcquire(&tpc_shared->control, LW_SHARED);
		node = tpc_node_find(MyDatabaseId);
		LWLockRelease(&tpc_shared->control);
	}
	if (node != NULL && pg_atomic_read_u32(&node->publisher_prepared) != TPC_PREPARED_NONE)
		tpc_wake_relay(node);
}

/*-------------------------------------------------------------------------
 * publish()
 *-------------------------------------------------------------------------
 */

/* A text argument, which goes over the wire as UTF-8. */
static char *
utf8_of(const char *text, size_t *len)
{
	char	   *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	*len = strlen(utf8);
	return utf8;
}

static void
check_name(const char *what, const char *name)
{
	size_t		len;

	(void) utf8_of(name, &len);
	if (len > TPC_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes; the limit is %d.",
						   len, TPC_NAME_MAX)));
}

static bool
has_entry(Jsonb *properties, const char *name, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(&properties->root, name,
										strlen(name), value) != NULL &&
		value->type != jbvNull;
}

/*
 * The properties, encoded, in a bytea.  Those that are missing and have a
 * default get it; message_id is set to the one it has.
 */
static bytea *
complete_properties(Jsonb *given, const char *content_type, char **message_id)
{
	StringInfoData defaults;
	StringInfoData encoded;
	JsonbValue	value;
	Datum		all;

	if (given != NULL && !JB_ROOT_IS_OBJECT(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("AMQP properties must be an object")));
	if (given != NULL && has_entry(given, "app_id", &value) &&
		value.type == jbvString &&
		value.val.string.len == strlen(TPC_APP_ID) &&
		memcmp(value.val.string.val, TPC_APP_ID, value.val.string.len) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("app_id \"%s\" is reserved", TPC_APP_ID),
				 errdetail("Messages between nodes have it.")));

	/* an entry that is null, too, is one that is given: there shall be none */
	initStringInfo(&defaults);
	appendStringInfo(&defaults,
					 "{\"delivery_mode\": 2, \"content_type\": \"%s\"}",
					 content_type);
	all = DirectFunctionCall1(jsonb_in, CStringGetDatum(defaults.data));
	if (given != NULL)
		all = DirectFunctionCall2(jsonb_concat, all, JsonbPGetDatum(given));

	/* but every message has an id */
	if (!has_entry(DatumGetJsonbP(all), "message_id", &value))
	{
		Datum		uuid = OidFunctionCall0(F_GEN_RANDOM_UUID);

		*message_id = DatumGetCString(DirectFunctionCall1(uuid_out, uuid));
		resetStringInfo(&defaults);
		appendStringInfo(&defaults, "{\"message_id\": \"%s\"}", *message_id);
		all = DirectFunctionCall2(jsonb_concat, all,
								  DirectFunctionCall1(jsonb_in,
													  CStringGetDatum(defaults.data)));
	}
	else if (value.type == jbvString)
		*message_id = pnstrdup(value.val.string.val, value.val.string.len);

	initStringInfo(&encoded);
	appendStringInfoSpaces(&encoded, VARHDRSZ);
	/* raises for a message_id that is none */
	tpc_properties_encode(&encoded, (struct varlena *) DatumGetPointer(all));
	SET_VARSIZE(encoded.data, encoded.len);
	return (bytea *) encoded.data;
}

/* Step X1. */
static void
insert_row(const char *exchange, const char *routing_key, bytea *body,
		   bytea *properties, bool mandatory, const char *message_id)
{
	Relation	rel = tpc_relation_open("publication", RowExclusiveLock);
	Datum		values[PUBLICATION_NATTS];
	bool		nulls[PUBLICATION_NATTS] = {false};
	HeapTuple	tuple;

	/*
	 * The transaction's id before the row's: the relay concludes from the one
	 * that no lower one of the other can turn up any more.
	 */
	(void) GetTopTransactionId();
	values[PUBLICATION_ID - 1] =
		Int64GetDatum(nextval_internal(tpc_index_oid("publication_id_seq"),
									   false));
	values[PUBLICATION_DATABASE - 1] = ObjectIdGetDatum(MyDatabaseId);
	values[PUBLICATION_EXCHANGE - 1] = CStringGetTextDatum(exchange);
	values[PUBLICATION_ROUTING_KEY - 1] = CStringGetTextDatum(routing_key);
	values[PUBLICATION_BODY - 1] = PointerGetDatum(body);
	values[PUBLICATION_PROPERTIES - 1] = PointerGetDatum(properties);
	values[PUBLICATION_MANDATORY - 1] = BoolGetDatum(mandatory);
	values[PUBLICATION_MESSAGE_ID - 1] = CStringGetTextDatum(message_id);
	values[PUBLICATION_PUBLISHED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	TPC_FAILPOINT("X1.before");
	CatalogTupleInsert(rel, tuple);
	TPC_FAILPOINT("X1.after");
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/* tpc_publication_max_body: in bytes; it has to find room in the area, too. */
size_t
tpc_publication_max_body(void)
{
	return Min((size_t) tpc_max_payload * 1024,
			   (size_t) tpc_max_memory * 1024 * 1024 / 2);
}

/* What all of them do: arguments are checked, the body is in bytes. */
static Datum
publish(FunctionCallInfo fcinfo, bytea *body, const char *content_type)
{
	char	   *exchange = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *routing_key = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Jsonb	   *given = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	bytea	   *properties;
	char	   *message_id = NULL;
	TpcNode    *node;

	check_name("exchange name", exchange);
	check_name("routing key", routing_key);
	properties = complete_properties(given, content_type, &message_id);
	if (VARSIZE_ANY_EXHDR(body) > tpc_publication_max_body())
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message is too large"),
				 errdetail("Its body has %zu bytes; the limit is %zu.",
						   (size_t) VARSIZE_ANY_EXHDR(body),
						   tpc_publication_max_body()),
				 errhint("Increase \"tpc_amqp.max_payload\", or pass less data.")));

	node = tpc_node_ready();
	insert_row(exchange, routing_key, body, properties,
			   !PG_ARGISNULL(4) && PG_GETARG_BOOL(4), message_id);
	publishes = node;
	tpc_xact_pending = true;
	PG_RETURN_VOID();
}

static void
begin_publish(FunctionCallInfo fcinfo)
{
	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.publish()");
	PreventCommandDuringRecovery("tpc_amqp.publish()");

	/* Not STRICT: a message must not be left out in silence. */
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("exchange, routing key and body of a message cannot be null")));
}

static bytea *
utf8_bytea(const char *text)
{
	size_t		len;
	char	   *utf8 = utf8_of(text, &len);

	return (bytea *) cstring_to_text_with_len(utf8, (int) len);
}

/*
 * tpc_publish_text, _jsonb, _bytea(exchange text, routing_key text, body,
 * properties jsonb, mandatory boolean) returns void
 *
 * Publish a message once the transaction has committed.
 */
PG_FUNCTION_INFO_V1(tpc_publish_text);
Datum
tpc_publish_text(PG_FUNCTION_ARGS)
{
	begin_publish(fcinfo);
	return publish(fcinfo, utf8_bytea(text_to_cstring(PG_GETARG_TEXT_PP(2))),
				   "text/plain");
}

PG_FUNCTION_INFO_V1(tpc_publish_jsonb);
Datum
tpc_publish_jsonb(PG_FUNCTION_ARGS)
{
	Jsonb	   *body;

	begin_publish(fcinfo);
	body = PG_GETARG_JSONB_P(2);
	return publish(fcinfo,
				   utf8_bytea(JsonbToCString(NULL, &body->root,
											 VARSIZE(body))),
				   "application/json");
}

PG_FUNCTION_INFO_V1(tpc_publish_bytea);
Datum
tpc_publish_bytea(PG_FUNCTION_ARGS)
{
	begin_publish(fcinfo);
	return publish(fcinfo, PG_GETARG_BYTEA_P(2), "application/octet-stream");
}

/*-------------------------------------------------------------------------
 * Rows that wait, and those that came back.
 *-------------------------------------------------------------------------
 */

/*
 * tpc_publication_exists: whether a row is there, or may turn up because its
 * transaction is prepared.  With a transaction.
 */
bool
tpc_publication_exists(void)
{
	Relation	rel;
	TupleTableSlot *slot;
	TpcDirtyScan scan;
	bool		found;

	if (!tpc_relation_exists("publication"))
		return false;
	rel = tpc_relation_open("publication", AccessShareLock);
	slot = table_slot_create(rel, NULL);
	tpc_relation_begin_dirty(&scan, rel, "publication_pkey");
	found = tpc_relation_next_dirty(&scan, slot) != TPC_ROW_NONE;
	tpc_relation_end_dirty(&scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

/* tpc_publication_count: of this database, as the active snapshot sees them. */
int64
tpc_publication_count(void)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};
	bool		isnull;
	int64		count;

	if (!tpc_relation_exists("publication"))
		return 0;
	SPI_connect();
	tpc_spi_execute("SELECT pg_catalog.count(*) FROM tpc_amqp.publication"
					" WHERE database OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, false, SPI_OK_SELECT);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return count;
}

/*
 * tpc_republish(id bigint) returns boolean
 *
 * Publish a returned or refused message again, as part of this transaction,
 * with the message_id it has.
 */
PG_FUNCTION_INFO_V1(tpc_republish);
Datum
tpc_republish(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2];
	TpcNode    *node;
	bool		found;

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.republish()");
	PreventCommandDuringRecovery("tpc_amqp.republish()");
	node = tpc_node_ready();
	/* as in insert_row() */
	(void) GetTopTransactionId();
	values[0] = PG_GETARG_DATUM(0);
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	found = tpc_spi_run("WITH gone AS (DELETE FROM tpc_amqp.returned"
						" WHERE id OPERATOR(pg_catalog.=) $1 RETURNING *)"
						" INSERT INTO tpc_amqp.publication"
						" (database, exchange, routing_key, body, properties,"
						" mandatory, message_id, published_at)"
						" SELECT $2, exchange, routing_key, body, properties,"
						" mandatory, message_id,"
						" pg_catalog.clock_timestamp() FROM gone",
						2, types, values, NULL, false, SPI_OK_INSERT) > 0;
	if (found)
	{
		publishes = node;
		tpc_xact_pending = true;
	}
	PG_RETURN_BOOL(found);
}

/*
 * tpc_discard(id bigint) returns boolean
 *
 * Delete a returned or refused message.
 */
PG_FUNCTION_INFO_V1(tpc_discard);
Datum
tpc_discard(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {PG_GETARG_DATUM(0)};

	tpc_shmem_require();
	PreventCommandIfReadOnly("tpc_amqp.discard()");
	PreventCommandDuringRecovery("tpc_amqp.discard()");
	PG_RETURN_BOOL(tpc_spi_run("DELETE FROM tpc_amqp.returned"
							   " WHERE id OPERATOR(pg_catalog.=) $1",
							   1, types, values, NULL, false,
							   SPI_OK_DELETE) > 0);
}

/*
 * tpc_properties_jsonb(properties bytea) returns jsonb
 *
 * AMQP's encoding as jsonb, for views; NULL if it is none.
 */
PG_FUNCTION_INFO_V1(tpc_properties_jsonb);
Datum
tpc_properties_jsonb(PG_FUNCTION_ARGS)
{
	bytea	   *bytes = PG_GETARG_BYTEA_PP(0);
	struct varlena *result = tpc_properties_decode(VARDATA_ANY(bytes),
												   VARSIZE_ANY_EXHDR(bytes));

	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(result);
}
