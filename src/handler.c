/*-------------------------------------------------------------------------
 *
 * handler.c
 *	  Functions other nodes may call by a name.
 *
 * A row of table handler gives a function a name, says which role it runs as,
 * and which nodes may call it.  A handler belongs to the role it runs as: who
 * may become that role may replace and remove it.  This file is the only
 * reader and writer of the table.
 *
 * The function is stored as text, not as an oid, so that the table can be
 * dumped and restored, and is looked up at each call: whatever happened to it
 * meanwhile shows as an error of that call, which is a vote of no.
 *
 * A worker runs handlers as the superuser it is connected as, having put on
 * the role of the handler.  With SECURITY_LOCAL_USERID_CHANGE the server
 * refuses SET ROLE, SET SESSION AUTHORIZATION and their RESET, by which the
 * role could be put off again; it leaves them alone otherwise, as it does in
 * a SECURITY DEFINER function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "commands/prepare.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "compat.h"
#include "handler.h"
#include "kind.h"
#include "message.h"
#include "node.h"
#include "relation.h"

/* columns of handler */
#define HANDLER_NAME		1
#define HANDLER_FUNCTION	2
#define HANDLER_RUN_AS		3
#define HANDLER_CALLERS		4
#define HANDLER_KIND		5
#define HANDLER_WORKERS		6
#define HANDLER_NATTS		6

/* Where this process found a handler's row last: only ever a hint. */
typedef struct SeenHandler
{
	char		name[TPC_HANDLER_MAXLEN + 1];
	ItemPointerData tid;
} SeenHandler;

#define NSEEN_HANDLERS	64		/* places; who needs one takes it */

static SeenHandler seen_handlers[NSEEN_HANDLERS];

/* A row, palloc'd in the caller's context. */
typedef struct HandlerRow
{
	ItemPointerData tid;
	char	   *function;
	Oid			run_as;
	ArrayType  *callers;		/* NULL: all nodes */
	char	   *kind;			/* NULL: none */
} HandlerRow;

/* Raises 42602. */
static void
check_name(const char *name)
{
	char	   *wire = pg_server_to_any(name, strlen(name), PG_UTF8);

	if (name[0] == '\0' || strlen(name) > TPC_HANDLER_MAXLEN ||
		strlen(wire) > TPC_HANDLER_MAXLEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid handler name \"%s\"", name),
				 errdetail("A handler name has 1 to %d bytes.",
						   TPC_HANDLER_MAXLEN)));
}

/* Raises 22004, 2202E or 42602. */
static void
check_callers(ArrayType *callers)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(callers) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("callers have to be a one-dimensional array")));
	deconstruct_array(callers, TEXTOID, -1, false, TYPALIGN_INT, &elems,
					  &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("the name of a caller cannot be null")));
		tpc_node_check_name(TextDatumGetCString(elems[i]));
	}
}

/* Raises 42602, 22023. */
static void
check_kind(const char *kind, int workers, bool workers_given)
{
	if (kind == NULL)
	{
		if (workers_given)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a handler without a kind has no workers of its own"),
					 errhint("\"tpc_amqp.prepare_workers\" is their number.")));
		return;
	}
	tpc_kind_check_name(kind);
	if (workers < 1 || workers > TPC_MAX_PREPARE_WORKERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("workers of a kind must be between 1 and %d",
						TPC_MAX_PREPARE_WORKERS)));
}

static bool
callers_include(ArrayType *callers, const char *node)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;

	deconstruct_array(callers, TEXTOID, -1, false, TYPALIGN_INT, &elems,
					  &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i] && strcmp(TextDatumGetCString(elems[i]), node) == 0)
			return true;
	}
	return false;
}

/*
 * check_function: raises 42883 if there is no such function, 42P13 if it is
 * none that can be a handler.
 */
static void
check_function(Oid funcid)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;
	const char *why = NULL;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function does not exist")));
	proc = (Form_pg_proc) GETSTRUCT(tuple);

	if (proc->prokind != PROKIND_FUNCTION)
		why = "It is not a plain function.";
	else if (proc->pronargs != 1 || proc->proargtypes.values[0] != JSONBOID)
		why = "A handler takes one argument of type jsonb.";
	else if (proc->proretset)
		why = "A handler does not return a set.";
	else if (isAnyTempNamespace(proc->pronamespace))
		why = "Temporary functions exist in one session only.";
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be a handler",
						format_procedure(funcid)),
				 errdetail("%s", why)));
	ReleaseSysCache(tuple);
}

/*
 * find_function: the oid of a function stored by tpc_register_handler();
 * InvalidOid if there is none of that name any more.
 *
 * It looks where the text says and nowhere else, whatever search_path is and
 * whichever schemas the current role may use.
 */
static Oid
find_function(const char *signature)
{
	const char *paren = strrchr(signature, '(');
	Oid			argtype = JSONBOID;
	List	   *names;
	Oid			nspid;

	if (paren == NULL ||
		!SplitIdentifierString(pnstrdup(signature, paren - signature), '.',
							   &names) ||
		list_length(names) != 2)
		return InvalidOid;
	nspid = get_namespace_oid(linitial(names), true);
	if (!OidIsValid(nspid))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum(lsecond(names)),
						   PointerGetDatum(buildoidvector(&argtype, 1)),
						   ObjectIdGetDatum(nspid));
}

/* find_handler: as a snapshot taken now shows it; false if there is none. */
static bool
find_handler(Relation rel, const char *name, HandlerRow *row)
{
	SeenHandler *seen = &seen_handlers[string_hash(name, sizeof(seen->name)) %
									   NSEEN_HANDLERS];
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData tid;
	ScanKeyData key;
	bool		found;

	if (strcmp(seen->name, name) == 0)
		tid = seen->tid;
	else
		ItemPointerSetInvalid(&tid);
	ScanKeyEntryInitialize(&key, 0, HANDLER_NAME, BTEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(name));
	found = tpc_relation_lookup(rel, "handler_pkey", &key, 1, &tid, slot);
	if (found)
	{
		bool		isnull;
		Datum		datum;

		strlcpy(seen->name, name, sizeof(seen->name));
		seen->tid = tid;
		row->tid = tid;
		datum = slot_getattr(slot, HANDLER_FUNCTION, &isnull);
		row->function = TextDatumGetCString(datum);
		datum = slot_getattr(slot, HANDLER_RUN_AS, &isnull);
		row->run_as = DatumGetObjectId(datum);
		datum = slot_getattr(slot, HANDLER_CALLERS, &isnull);
		row->callers = isnull ? NULL : DatumGetArrayTypePCopy(datum);
		datum = slot_getattr(slot, HANDLER_KIND, &isnull);
		row->kind = isnull ? NULL : TextDatumGetCString(datum);
	}
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

/* Add what a handler of a kind asks for to a list of TpcKind. */
static List *
add_kind(List *kinds, const char *name, int workers)
{
	TpcKind    *kind;
	ListCell   *lc;

	foreach(lc, kinds)
	{
		kind = lfirst(lc);
		if (strcmp(kind->name, name) == 0)
		{
			kind->workers = Max(kind->workers, workers);
			return kinds;
		}
	}
	kind = palloc0(sizeof(TpcKind));
	strlcpy(kind->name, name, sizeof(kind->name));
	kind->workers = workers;
	return lappend(kinds, kind);
}

/* The kinds of all handlers but one, which may be NULL. */
static List *
read_kinds(Relation rel, const char *except)
{
	List	   *kinds = NIL;
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0,
										  NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		bool		never;
		Datum		kind = heap_getattr(tuple, HANDLER_KIND, desc, &isnull);
		Datum		workers = heap_getattr(tuple, HANDLER_WORKERS, desc,
										   &never);
		Datum		name = heap_getattr(tuple, HANDLER_NAME, desc, &never);

		if (isnull ||
			(except != NULL &&
			 strcmp(TextDatumGetCString(name), except) == 0))
			continue;
		kinds = add_kind(kinds, TextDatumGetCString(kind),
						 DatumGetInt32(workers));
	}
	systable_endscan(scan);
	return kinds;
}

/*
 * tpc_handler_kinds: what kinds there are to be, as a list of TpcKind in the
 * current context.  With a transaction, and the extension installed.
 */
List *
tpc_handler_kinds(void)
{
	Relation	rel = tpc_relation_open("handler", AccessShareLock);
	List	   *kinds = read_kinds(rel, NULL);

	table_close(rel, AccessShareLock);
	return kinds;
}

/* Raises 53400 if there are too many kinds already. */
static void
check_kind_room(Relation rel, const char *kind, const char *handler)
{
	List	   *kinds = add_kind(read_kinds(rel, handler), kind, 1);

	if (list_length(kinds) > TPC_MAX_KINDS)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many kinds of handlers"),
				 errdetail("The limit is %d.", TPC_MAX_KINDS)));
}

/*
 * check_role: raises 42501 unless the current role can become the other, and
 * is a superuser if that one is.
 */
static void
check_role(Oid role, const char *action)
{
	char	   *rolename = GetUserNameFromId(role, true);

	if (superuser())
		return;
	if (superuser_arg(role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s", action),
				 errdetail("It runs as \"%s\", and only superusers decide on what runs as a superuser.",
						   rolename)));
	/* A role that is gone is nobody's to become. */
	if (rolename == NULL || !tpc_can_become(GetUserId(), role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s", action),
				 rolename != NULL ?
				 errdetail("It runs as \"%s\", which \"%s\" cannot become.",
						   rolename, GetUserNameFromId(GetUserId(), false)) :
				 errdetail("The role it runs as does not exist any more.")));
}

/*
 * tpc_register_handler(name text, function regprocedure, run_as regrole,
 *						callers text[], kind text, workers integer)
 *	returns void
 *
 * Let other nodes call a function by a name.  A name that is taken is given
 * to the new function.  With a kind, calls come through a queue of that name
 * and are run by workers of their own, as many as the handlers of the kind ask
 * for; from a second after the commit on.
 */
PG_FUNCTION_INFO_V1(tpc_register_handler);
Datum
tpc_register_handler(PG_FUNCTION_ARGS)
{
	char	   *name;
	Oid			funcid;
	Oid			run_as = PG_ARGISNULL(2) ? GetUserId() : PG_GETARG_OID(2);
	ArrayType  *callers = PG_ARGISNULL(3) ? NULL : PG_GETARG_ARRAYTYPE_P(3);
	char	   *kind = PG_ARGISNULL(4) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(4));
	int			workers = PG_ARGISNULL(5) ? 1 : PG_GETARG_INT32(5);
	Relation	rel;
	HandlerRow	row;
	HeapTuple	tuple;
	Datum		values[HANDLER_NATTS];
	bool		nulls[HANDLER_NATTS] = {false};

	PreventCommandIfReadOnly("tpc_amqp.register_handler()");

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name and function of a handler cannot be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	funcid = PG_GETARG_OID(1);
	check_name(name);
	check_function(funcid);
	if (callers != NULL)
		check_callers(callers);
	check_kind(kind, workers, !PG_ARGISNULL(5));

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(run_as)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role to run as does not exist")));
	check_role(run_as, psprintf("register handler \"%s\"", name));
	if (tpc_function_aclcheck(funcid, run_as, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to register handler \"%s\"", name),
				 errdetail("Role \"%s\" may not execute function %s.",
						   GetUserNameFromId(run_as, false),
						   format_procedure(funcid))));

	/* The lock has registrations wait for each other, and nobody else. */
	rel = tpc_relation_open("handler", ShareRowExclusiveLock);
	if (kind != NULL)
		check_kind_room(rel, kind, name);
	values[HANDLER_NAME - 1] = CStringGetTextDatum(name);
	values[HANDLER_FUNCTION - 1] =
		CStringGetTextDatum(format_procedure_qualified(funcid));
	values[HANDLER_RUN_AS - 1] = ObjectIdGetDatum(run_as);
	values[HANDLER_CALLERS - 1] = PointerGetDatum(callers);
	nulls[HANDLER_CALLERS - 1] = callers == NULL;
	if (kind != NULL)
		values[HANDLER_KIND - 1] = CStringGetTextDatum(kind);
	nulls[HANDLER_KIND - 1] = kind == NULL;
	values[HANDLER_WORKERS - 1] = Int32GetDatum(workers);
	nulls[HANDLER_WORKERS - 1] = kind == NULL;
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	if (find_handler(rel, name, &row))
	{
		check_role(row.run_as, psprintf("replace handler \"%s\"", name));
		CatalogTupleUpdate(rel, &row.tid, tuple);
	}
	else
		CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
	CommandCounterIncrement();

	PG_RETURN_VOID();
}

static void
raise_unknown_handler(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("handler \"%s\" does not exist", name)));
}

/*
 * tpc_unregister_handler(name text) returns void
 *
 * Take a handler back.
 */
PG_FUNCTION_INFO_V1(tpc_unregister_handler);
Datum
tpc_unregister_handler(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Relation	rel;
	HandlerRow	row;

	PreventCommandIfReadOnly("tpc_amqp.unregister_handler()");

	rel = tpc_relation_open("handler", ShareRowExclusiveLock);
	if (!find_handler(rel, name, &row))
		raise_unknown_handler(name);
	check_role(row.run_as, psprintf("unregister handler \"%s\"", name));
	CatalogTupleDelete(rel, &row.tid);
	table_close(rel, NoLock);
	CommandCounterIncrement();

	PG_RETURN_VOID();
}

/*
 * tpc_handler_check_owner: raises 42501 unless the current role could become
 * the one the handler runs as: a subscription lets whoever may publish to a
 * queue run it.  Returns that one; InvalidOid if there is no such handler.
 */
Oid
tpc_handler_check_owner(const char *name, const char *action)
{
	Relation	rel = tpc_relation_open("handler", AccessShareLock);
	HandlerRow	row;
	bool		found = find_handler(rel, name, &row);

	table_close(rel, AccessShareLock);
	if (!found)
		return InvalidOid;
	check_role(row.run_as, action);
	return row.run_as;
}

/*
 * Nest level of what handlers of the current role have set; of this
 * transaction, valid once a handler has been run in it.
 */
static int	settings_level = 0;

static void
handler_error_context(void *arg)
{
	errcontext("handler \"%s\"", (const char *) arg);
}

/*
 * find_callable: the function of a handler, and the role it runs as.  Raises
 * unless the node may call it, as one of that kind, and the role may execute
 * it.  kind NULL: any.
 */
static Oid
find_callable(const char *name, const char *caller, const char *kind,
			  Oid *run_as)
{
	Relation	rel;
	HandlerRow	row;
	bool		found;
	Oid			funcid;

	/*
	 * Rows of a table that only has the right name, in a schema that somebody
	 * made after the extension was dropped, must not run as anybody.
	 */
	tpc_extension_require();

	rel = tpc_relation_open("handler", AccessShareLock);
	found = find_handler(rel, name, &row);
	table_close(rel, AccessShareLock);
	if (!found)
		raise_unknown_handler(name);

	if (caller != NULL && row.callers != NULL &&
		!callers_include(row.callers, caller))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("node \"%s\" may not call handler \"%s\"",
						caller, name)));

	/* else those of its kind could hold up others */
	if (kind != NULL && row.kind != NULL && strcmp(row.kind, kind) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("handler \"%s\" is of kind \"%s\"", name, row.kind),
				 kind[0] == '\0' ?
				 errdetail("It was called as one of no kind.") :
				 errdetail("It was called as one of kind \"%s\".", kind),
				 errhint("Pass its kind to tpc_amqp.call().")));

	funcid = find_function(row.function);
	if (!OidIsValid(funcid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist", row.function),
				 errdetail("It is the function of handler \"%s\".", name)));
	check_function(funcid);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(row.run_as)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role handler \"%s\" runs as does not exist any more",
						name)));
	if (tpc_function_aclcheck(funcid, row.run_as, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", row.function),
				 errdetail("Handler \"%s\" runs as role \"%s\".", name,
						   GetUserNameFromId(row.run_as, false))));
	*run_as = row.run_as;
	return funcid;
}

/*
 * Call a function as the executor would; returns the text of its result, NULL
 * if it has none.
 */
static char *
call_function(Oid funcid, const char *arg, size_t arg_len)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;
	PgStat_FunctionCallUsage usage;
	Datum		result;
	Oid			type = get_func_rettype(funcid);
	Oid			output;
	bool		is_varlena;

	InvokeFunctionExecuteHook(funcid);
	fmgr_info(funcid, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, DEFAULT_COLLATION_OID, NULL,
							 NULL);
	fcinfo->args[0].value =
		DirectFunctionCall1(jsonb_in,
							CStringGetDatum(pnstrdup(arg, arg_len)));
	fcinfo->args[0].isnull = false; /* JSON's null is not SQL's */

	pgstat_init_function_usage(fcinfo, &usage);
	result = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);
	if (fcinfo->isnull ||
		(get_typtype(type) == TYPTYPE_PSEUDO && type != RECORDOID))
		return NULL;
	getTypeOutputInfo(type, &output, &is_varlena);
	return OidOutputFunctionCall(output, result);
}

/*
 * tpc_handler_run: step P2.  Run a handler on an argument, JSON text in the
 * server's encoding, for a node, as one of this kind ("": none; NULL: whatever
 * it is), or (caller is NULL) for a subscription, which the handler's callers
 * do not concern; but then as role only_as, unless that is InvalidOid: who
 * subscribed need not be one who may decide on any other.  *result is the text
 * of what it returns, palloc'd in the caller's context, or NULL.
 *
 * The caller has begun a transaction (no subtransaction) as a superuser, with
 * an active snapshot.  *running_as is InvalidOid before the first call of the
 * transaction, and after each call the role of that handler, which stays in
 * force: deferred triggers that PREPARE fires are its work.  The caller puts
 * its own role on again after the end of the transaction.
 *
 * Raises what the handler raises; 42883 if there is no such handler or its
 * function is gone, 42704 if its role is, 55000 if it is of another kind,
 * 42501 if the node may not call it, the role may not execute it, or it is not
 * only_as.
 *
 * What handlers set (SET, SET LOCAL) holds for further ones of the same role
 * and for the triggers they defer, and is taken back before another role's
 * handler runs: it might be a search_path made to mislead that one.  After the
 * last one, tpc_handler_end() takes it back.  Prepared statements and cursors,
 * which know no owner, go when the role changes, and those that outlive a
 * transaction when the next one's first handler is about to run.
 */
void
tpc_handler_run(const char *name, const char *caller, const char *kind,
				Oid only_as, const char *arg, size_t arg_len, Oid *running_as,
				char **result)
{
	MemoryContext call_context;
	MemoryContext old_context;
	ErrorContextCallback callback;
	Oid			funcid;
	Oid			run_as;

	Assert(GetCurrentTransactionNestLevel() == 1);

	call_context = AllocSetContextCreate(CurrentMemoryContext,
										 "tpc_amqp handler",
										 ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(call_context);

	funcid = find_callable(name, caller, kind, &run_as);
	if (OidIsValid(only_as) && run_as != only_as)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("handler \"%s\" runs as another role than when it was subscribed",
						name),
				 errhint("Subscribe it again.")));

	/*
	 * Deferred triggers run as whoever is current when they fire, so those of
	 * the previous role have to before the role changes.  SET CONSTRAINTS ALL
	 * IMMEDIATE would fire them as well, but would also leave the deferred
	 * constraints of all further handlers immediate.
	 */
	if (OidIsValid(*running_as) && *running_as != run_as)
	{
		AfterTriggerFireDeferred();
		CommandCounterIncrement();
		AtEOXact_GUC(false, settings_level);
	}
	if (*running_as != run_as)
	{
		DropAllPreparedStatements();
		PortalHashTableDeleteAll();
		settings_level = NewGUCNestLevel();
		SetUserIdAndSecContext(run_as, SECURITY_LOCAL_USERID_CHANGE);
		*running_as = run_as;
	}

	callback.callback = handler_error_context;
	callback.arg = unconstify(char *, name);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	PushActiveSnapshot(GetTransactionSnapshot());
	*result = call_function(funcid, arg, arg_len);
	if (*result != NULL)
		*result = MemoryContextStrdup(old_context, *result);
	PopActiveSnapshot();
	CommandCounterIncrement();

	error_context_stack = callback.previous;

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(call_context);
}

/*
 * tpc_handler_end: take back what handlers have set, before the transaction
 * ends and makes it the session's.  The caller has fired the deferred
 * triggers.  (If the transaction aborts instead, that takes it back.)
 */
void
tpc_handler_end(Oid running_as)
{
	if (OidIsValid(running_as))
		AtEOXact_GUC(false, settings_level);
}
