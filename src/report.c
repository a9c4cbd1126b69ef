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

#include "catalog/namespace.h"
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
 * tpc_report_wire_text: a text of the broker's, or of anybody's who sends
 * through it, as far as it can be shown: it should be UTF-8, and the database
 * should have its characters.  What is not ASCII is "?" otherwise.
 */
char *
tpc_report_wire_text(const char *text, size_t len)
{
	int			encoding = GetDatabaseEncoding();
	char	   *result = pnstrdup(text, len);

	if (encoding != PG_SQL_ASCII &&
		pg_encoding_verifymbstr(PG_UTF8, text, (int) len) == (int) len)
	{
		Oid			proc;
		unsigned char *converted;
		int			size = (int) len * MAX_CONVERSION_GROWTH + 1;

		if (encoding == PG_UTF8)
			return result;
		proc = FindDefaultConversionProc(PG_UTF8, encoding);
		converted = palloc(size);
		if (OidIsValid(proc) &&
			pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding,
										  (unsigned char *) result, (int) len,
										  converted, size, true) == (int) len)
			return (char *) converted;
	}
	for (size_t i = 0; i < len; i++)
	{
		if (IS_HIGHBIT_SET(result[i]) || result[i] == '\0')
			result[i] = '?';
	}
	return result;
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
