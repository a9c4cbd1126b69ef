/*-------------------------------------------------------------------------
 *
 * consumed.c
 *	  Which messages have taken effect here.
 *
 * A message is acknowledged after the transaction that took it has committed,
 * and an acknowledgement can be lost: then the message comes again.  So the
 * transaction also inserts the message's id here, which is there if and only
 * if the message has taken effect.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "consumed.h"
#include "properties.h"
#include "relation.h"

/*
 * tpc_consumed_text: a text of a message as text of this database, in the
 * current context.  One that the database has no characters for is shown by
 * its bytes, in hexadecimal: no two look the same.
 */
char *
tpc_consumed_text(const char *bytes, size_t len)
{
	bool		plain = true;
	char	   *result;

	for (size_t i = 0; i < len; i++)
		plain = plain && bytes[i] != '\0' && !IS_HIGHBIT_SET(bytes[i]);
	if (plain || (GetDatabaseEncoding() == PG_UTF8 &&
				  pg_encoding_verifymbstr(PG_UTF8, bytes, (int) len) ==
				  (int) len))
		return pnstrdup(bytes, len);
	result = palloc(2 + 2 * len + 1);
	strcpy(result, "\\x");
	(void) hex_encode(bytes, len, result + 2);
	result[2 + 2 * len] = '\0';
	return result;
}

/*
 * tpc_consumed_message_id: the id of a message with these properties (as they
 * came), for tpc_consumed_note(); NULL if it has none.
 */
char *
tpc_consumed_message_id(const char *properties, size_t len)
{
	const char *id;
	size_t		id_len;

	if (!tpc_properties_message_id(properties, len, &id, &id_len) ||
		id_len == 0)
		return NULL;
	return tpc_consumed_text(id, id_len);
}

/*
 * tpc_consumed_in_progress: whether a transaction that is not finished has
 * noted that the message takes effect, so that tpc_consumed_note() would wait
 * for it.
 */
bool
tpc_consumed_in_progress(const char *queue, const char *message_id)
{
	Relation	rel = tpc_relation_open("consumed", AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData keys[2];
	bool		result;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(queue));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(message_id));
	result = tpc_relation_probe(rel, "consumed_pkey", keys, 2, slot) ==
		TPC_ROW_IN_PROGRESS;
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * tpc_consumed_note: in the current transaction, note that a message of this
 * queue takes effect.  False if it has already, in a transaction that has
 * committed; one in progress is waited for.  Both are in the server's
 * encoding.  Raises 40001 in a transaction with one snapshot, if it has taken
 * effect since that was taken.
 */
bool
tpc_consumed_note(const char *queue, const char *message_id)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[2];

	values[0] = CStringGetTextDatum(queue);
	values[1] = CStringGetTextDatum(message_id);
	return tpc_spi_run("INSERT INTO tpc_amqp.consumed (queue, message_id)"
					   " VALUES ($1, $2) ON CONFLICT DO NOTHING",
					   2, types, values, NULL, false, SPI_OK_INSERT) > 0;
}
