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

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "consumed.h"
#include "relation.h"

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
	bool		first;

	values[0] = CStringGetTextDatum(queue);
	values[1] = CStringGetTextDatum(message_id);
	SPI_connect();
	tpc_spi_execute("INSERT INTO tpc_amqp.consumed (queue, message_id)"
					" VALUES ($1, $2) ON CONFLICT DO NOTHING",
					2, types, values, NULL, false, SPI_OK_INSERT);
	first = SPI_processed > 0;
	SPI_finish();
	return first;
}
