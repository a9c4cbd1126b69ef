/*-------------------------------------------------------------------------
 *
 * object.c
 *	  The broker's queues and exchanges, from SQL.
 *
 * What these functions ask for is done at once, over the connection of the
 * node: the broker knows nothing of our transactions.  A refusal is an error
 * with the broker's words.
 *
 * The protocol between nodes has an exchange and queues of its own.  Who may
 * declare queues is not to change those, so their names are refused, also
 * where a queue could hand its messages on to them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "node.h"
#include "object.h"
#include "properties.h"
#include "report.h"
#include "request.h"

/* Names of the protocol's queues begin with this. */
#define RESERVED_PREFIX		TPC_EXCHANGE "."

/*
 * tpc_object_no_nulls: not STRICT, so that nothing is left out in silence.
 */
void
tpc_object_no_nulls(FunctionCallInfo fcinfo)
{
	for (int i = 0; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of %s() cannot be null",
							get_func_name(fcinfo->flinfo->fn_oid))));
	}
}

/*
 * tpc_object_name: in UTF-8, in the current context.  what: of which thing,
 * for a message.
 */
TpcSlice
tpc_object_name(text * name, const char *what)
{
	char	   *s = text_to_cstring(name);
	char	   *utf8 = pg_server_to_any(s, strlen(s), PG_UTF8);
	TpcSlice	slice = tpc_slice(utf8);

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		(void) pg_verify_mbstr(PG_UTF8, utf8, (int) slice.len, false);
	if (slice.len > TPC_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes in UTF-8; AMQP allows for %d.",
						   slice.len, TPC_NAME_MAX)));
	return slice;
}

/* tpc_object_is_reserved_queue: a name, in UTF-8 or not, of the protocol. */
bool
tpc_object_is_reserved_queue(const char *name, size_t len)
{
	return len >= strlen(RESERVED_PREFIX) &&
		memcmp(name, RESERVED_PREFIX, strlen(RESERVED_PREFIX)) == 0;
}

bool
tpc_object_is_reserved_exchange(const char *name, size_t len)
{
	return len == strlen(TPC_EXCHANGE) &&
		memcmp(name, TPC_EXCHANGE, len) == 0;
}

/* tpc_object_queue: a queue that is not the protocol's. */
TpcSlice
tpc_object_queue(text * name)
{
	TpcSlice	slice = tpc_object_name(name, "name of a queue");

	if (tpc_object_is_reserved_queue(slice.ptr, slice.len))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("queue name \"%s\" is reserved",
						text_to_cstring(name)),
				 errdetail("Queues with the prefix \"%s\" are those of the nodes.",
						   RESERVED_PREFIX)));
	return slice;
}

/* tpc_object_exchange: an exchange that is not the protocol's. */
TpcSlice
tpc_object_exchange(text * name)
{
	TpcSlice	slice = tpc_object_name(name, "name of an exchange");

	if (tpc_object_is_reserved_exchange(slice.ptr, slice.len))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("exchange name \"%s\" is reserved",
						text_to_cstring(name)),
				 errdetail("It is the exchange of the nodes.")));
	return slice;
}

/* tpc_object_arguments: those of a queue, an exchange or a binding. */
TpcSlice
tpc_object_arguments(struct varlena *arguments)
{
	static const struct
	{
		const char *name;
		bool		(*reserved) (const char *name, size_t len);
	}			checked[] = {
		{"x-dead-letter-exchange", tpc_object_is_reserved_exchange},
		{"x-dead-letter-routing-key", tpc_object_is_reserved_queue},
		{"alternate-exchange", tpc_object_is_reserved_exchange},
	};
	Jsonb	   *jb = (Jsonb *) arguments;
	StringInfoData table;
	TpcSlice	slice;

	initStringInfo(&table);
	tpc_table_encode(&table, arguments);
	for (size_t i = 0; i < lengthof(checked); i++)
	{
		JsonbValue	v;

		if (getKeyJsonValueFromContainer(&jb->root, checked[i].name,
										 strlen(checked[i].name),
										 &v) != NULL &&
			v.type == jbvString &&
			checked[i].reserved(v.val.string.val, v.val.string.len))
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("argument \"%s\" names what is reserved",
							checked[i].name),
					 errdetail("\"%s\" is the exchange of the nodes, and \"%s\" the prefix of their queues.",
							   TPC_EXCHANGE, RESERVED_PREFIX)));
	}
	slice.ptr = table.data;
	slice.len = table.len;
	return slice;
}

/* One call, and its answer; what the broker refuses is raised. */
static void
call_broker(const TpcBrokerCall *call, TpcAnswer *answer)
{
	TpcNode    *node = tpc_node_ready();

	tpc_request_call(node, call, 1, answer);
	if (answer->error.sqlstate != 0)
		tpc_request_raise(node, answer);
}

static void
begin(FunctionCallInfo fcinfo, TpcBrokerCall *call, TpcCallKind kind)
{
	tpc_object_no_nulls(fcinfo);
	memset(call, 0, sizeof(*call));
	call->kind = kind;
}

/* A queue that there has to be. */
static TpcSlice
existing_queue(text * name)
{
	TpcSlice	slice = tpc_object_queue(name);

	/* to the broker that would be the last one declared */
	if (slice.len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("name of a queue is missing")));
	return slice;
}

/*
 * tpc_declare_queue(queue text, passive boolean, durable boolean,
 *	exclusive boolean, auto_delete boolean, arguments jsonb,
 *	OUT name text, OUT messages bigint, OUT consumers bigint)
 */
PG_FUNCTION_INFO_V1(tpc_declare_queue);
Datum
tpc_declare_queue(PG_FUNCTION_ARGS)
{
	TpcBrokerCall call;
	TpcAnswer	answer;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};

	begin(fcinfo, &call, TPC_CALL_DECLARE_QUEUE);
	call.queue = tpc_object_queue(PG_GETARG_TEXT_PP(0));
	call.passive = PG_GETARG_BOOL(1);
	call.durable = PG_GETARG_BOOL(2);
	call.exclusive = PG_GETARG_BOOL(3);
	call.auto_delete = PG_GETARG_BOOL(4);
	call.arguments = tpc_object_arguments((struct varlena *)
										  PG_GETARG_JSONB_P(5));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	call_broker(&call, &answer);
	values[0] = CStringGetTextDatum(tpc_report_wire_text(answer.name,
														 strlen(answer.name)));
	values[1] = Int64GetDatum((int64) answer.messages);
	values[2] = Int64GetDatum((int64) answer.consumers);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * tpc_delete_queue(queue text, if_unused boolean, if_empty boolean)
 *	returns bigint: the messages that went with it
 */
PG_FUNCTION_INFO_V1(tpc_delete_queue);
Datum
tpc_delete_queue(PG_FUNCTION_ARGS)
{
	TpcBrokerCall call;
	TpcAnswer	answer;

	begin(fcinfo, &call, TPC_CALL_DELETE_QUEUE);
	call.queue = existing_queue(PG_GETARG_TEXT_PP(0));
	call.if_unused = PG_GETARG_BOOL(1);
	call.if_empty = PG_GETARG_BOOL(2);
	call_broker(&call, &answer);
	PG_RETURN_INT64((int64) answer.messages);
}

/* tpc_purge_queue(queue text) returns bigint: the messages that it had */
PG_FUNCTION_INFO_V1(tpc_purge_queue);
Datum
tpc_purge_queue(PG_FUNCTION_ARGS)
{
	TpcBrokerCall call;
	TpcAnswer	answer;

	begin(fcinfo, &call, TPC_CALL_PURGE_QUEUE);
	call.queue = existing_queue(PG_GETARG_TEXT_PP(0));
	call_broker(&call, &answer);
	PG_RETURN_INT64((int64) answer.messages);
}

static void
change_binding(FunctionCallInfo fcinfo, TpcCallKind kind)
{
	TpcBrokerCall call;
	TpcAnswer	answer;

	begin(fcinfo, &call, kind);
	call.queue = existing_queue(PG_GETARG_TEXT_PP(0));
	call.exchange = tpc_object_exchange(PG_GETARG_TEXT_PP(1));
	call.routing_key = tpc_object_name(PG_GETARG_TEXT_PP(2), "routing key");
	call.arguments = tpc_object_arguments((struct varlena *)
										  PG_GETARG_JSONB_P(3));
	call_broker(&call, &answer);
}

/*
 * tpc_bind_queue(queue text, exchange text, routing_key text,
 *	arguments jsonb) returns void
 */
PG_FUNCTION_INFO_V1(tpc_bind_queue);
Datum
tpc_bind_queue(PG_FUNCTION_ARGS)
{
	change_binding(fcinfo, TPC_CALL_BIND_QUEUE);
	PG_RETURN_VOID();
}

/* tpc_unbind_queue: the same */
PG_FUNCTION_INFO_V1(tpc_unbind_queue);
Datum
tpc_unbind_queue(PG_FUNCTION_ARGS)
{
	change_binding(fcinfo, TPC_CALL_UNBIND_QUEUE);
	PG_RETURN_VOID();
}

/*
 * An exchange's type that every broker knows.  One that it does not know costs
 * the whole connection (503), not just the channel.
 */
static TpcSlice
exchange_type(text * name)
{
	static const char *const known[] = {"direct", "fanout", "topic", "headers"};
	TpcSlice	slice = tpc_object_name(name, "type of an exchange");

	for (size_t i = 0; i < lengthof(known); i++)
	{
		if (strcmp(slice.ptr, known[i]) == 0)
			return slice;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("type of an exchange must be direct, fanout, topic or headers, not \"%s\"",
					text_to_cstring(name)),
			 errhint("One of a type that a plugin adds can be declared with the broker's own tools.")));
}

/*
 * tpc_declare_exchange(exchange text, type text, passive boolean,
 *	durable boolean, auto_delete boolean, internal boolean, arguments jsonb)
 *	returns void
 */
PG_FUNCTION_INFO_V1(tpc_declare_exchange);
Datum
tpc_declare_exchange(PG_FUNCTION_ARGS)
{
	TpcBrokerCall call;
	TpcAnswer	answer;

	begin(fcinfo, &call, TPC_CALL_DECLARE_EXCHANGE);
	call.exchange = tpc_object_exchange(PG_GETARG_TEXT_PP(0));
	call.type = exchange_type(PG_GETARG_TEXT_PP(1));
	call.passive = PG_GETARG_BOOL(2);
	call.durable = PG_GETARG_BOOL(3);
	call.auto_delete = PG_GETARG_BOOL(4);
	call.internal = PG_GETARG_BOOL(5);
	call.arguments = tpc_object_arguments((struct varlena *)
										  PG_GETARG_JSONB_P(6));
	call_broker(&call, &answer);
	PG_RETURN_VOID();
}

/* tpc_delete_exchange(exchange text, if_unused boolean) returns void */
PG_FUNCTION_INFO_V1(tpc_delete_exchange);
Datum
tpc_delete_exchange(PG_FUNCTION_ARGS)
{
	TpcBrokerCall call;
	TpcAnswer	answer;

	begin(fcinfo, &call, TPC_CALL_DELETE_EXCHANGE);
	call.exchange = tpc_object_exchange(PG_GETARG_TEXT_PP(0));
	call.if_unused = PG_GETARG_BOOL(1);
	call_broker(&call, &answer);
	PG_RETURN_VOID();
}
