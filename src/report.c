/*-------------------------------------------------------------------------
 *
 * report.c
 *	  Errors as they pass between nodes.
 *
 * The one place where a participant's error becomes the client's, and where
 * an error here becomes what the coordinator is told.  Texts travel in UTF-8.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "report.h"

/*
 * tpc_report_to_server: a text of a message, in the database's encoding; NULL
 * remains.  In a transaction.  Raises for what that encoding does not have.
 */
char *
tpc_report_to_server(char *utf8)
{
	return utf8 == NULL ? NULL : pg_any_to_server(utf8, strlen(utf8), PG_UTF8);
}

/*
 * Bytes of a SQL_ASCII database go as they are: the codec replaces those that
 * are not UTF-8.
 */
static char *
to_wire(const char *text)
{
	if (text == NULL)
		return NULL;
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return pstrdup(text);
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/*
 * tpc_report_remote_error: raise what the participant said, with its own
 * SQLSTATE, message and detail; body is that of its vote.  hint: instead of
 * the participant's, or NULL.
 */
void
tpc_report_remote_error(const char *node, const char *gtid, const char *body,
						uint32 len, const char *hint)
{
	TpcMessage	msg;
	const char *why;
	const char *s;
	char	   *detail;
	char	   *context;

	memset(&msg, 0, sizeof(msg));
	msg.type = TPC_MSG_VOTE;
	if (body == NULL || !tpc_message_decode_body(body, len, &msg, &why) ||
		msg.error.sqlstate[0] == '\0' || msg.error.message == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_TRANSACTION_ROLLBACK),
				 errmsg("node \"%s\" voted no and gave no reason", node),
				 hint ? errhint("%s", hint) : 0,
				 errcontext("node \"%s\", transaction %s", node, gtid)));

	s = msg.error.sqlstate;
	detail = tpc_report_to_server(msg.error.detail);
	if (hint == NULL)
		hint = tpc_report_to_server(msg.error.hint);
	context = tpc_report_to_server(msg.error.context);
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4])),
			 errmsg_internal("%s", tpc_report_to_server(msg.error.message)),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0,
			 context ? errcontext("%s", context) : 0,
			 errcontext("node \"%s\", transaction %s", node, gtid)));
}

/*
 * tpc_report_from_error_data: in the current context; texts in UTF-8.  In a
 * transaction; raises if a text cannot be converted.
 */
void
tpc_report_from_error_data(ErrorData *edata, TpcRemoteError *error)
{
	memset(error, 0, sizeof(*error));
	strlcpy(error->sqlstate, unpack_sql_state(edata->sqlerrcode),
			sizeof(error->sqlstate));
	error->message = to_wire(edata->message ? edata->message :
							 "missing error text");
	error->detail = to_wire(edata->detail);
	error->hint = to_wire(edata->hint);
	error->context = to_wire(edata->context);
}
