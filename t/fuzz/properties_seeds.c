/*-------------------------------------------------------------------------
 *
 * properties_seeds.c
 *	  Seeds of properties_fuzz: lists of properties, and tables with values of
 *	  all types.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"

#include "fuzz.h"
#include "properties.h"

/* Of the first byte of an input. */
#define PROPERTIES 0
#define TABLE 1
#define ASCII 2

static FuzzEmit emit_seed;

static void
emit(const char *name, int what, StringInfo bytes)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoChar(&out, (char) what);
	appendBinaryStringInfo(&out, bytes->data, bytes->len);
	emit_seed(name, (const uint8_t *) out.data, out.len);
	pfree(out.data);
}

static void
put_entry(StringInfo out, const char *name, char kind)
{
	(void) tpc_properties_put_short(out, name, strlen(name));
	appendStringInfoChar(out, kind);
}

static void
put_string(StringInfo out, const char *name, char kind, const char *value)
{
	put_entry(out, name, kind);
	tpc_properties_put_long(out, value, strlen(value));
}

static void
put_integer(StringInfo out, const char *name, char kind, uint64 value,
			int size)
{
	put_entry(out, name, kind);
	tpc_properties_put_int(out, value, size);
}

/* One value of each type. */
static void
put_values(StringInfo out)
{
	int			nested;

	put_entry(out, "none", 'V');
	put_integer(out, "truth", 't', 1, 1);
	put_integer(out, "int8", 'b', 0x80, 1);
	put_integer(out, "uint8", 'B', 0x80, 1);
	put_integer(out, "int16", 's', 0x8000, 2);
	put_integer(out, "uint16", 'u', 0x8000, 2);
	put_integer(out, "int32", 'I', 0x80000000, 4);
	put_integer(out, "uint32", 'i', 0x80000000, 4);
	put_integer(out, "int64", 'l', UINT64CONST(0x8000000000000000), 8);
	put_integer(out, "other int64", 'L', 5, 8);
	put_integer(out, "float", 'f', 0x3f800000, 4);
	put_integer(out, "double", 'd', UINT64CONST(0x3fb999999999999a), 8);
	put_integer(out, "infinity", 'd', UINT64CONST(0x7ff0000000000000), 8);
	put_entry(out, "decimal", 'D');
	(void) tpc_properties_put_decimal(out, "12.50", 5);
	put_integer(out, "timestamp", 'T', 1795622400, 8);
	put_integer(out, "late timestamp", 'T', PG_UINT64_MAX, 8);
	put_string(out, "string", 'S', "z\xc3\xa4hle \"\\\n");
	put_string(out, "not UTF-8", 'S', "z\xe4hle");
	put_string(out, "bytes", 'x', "\x01\xff");
	put_string(out, "@int8", 'S', "a name");
	put_string(out, "\xff", 'F', "");
	put_entry(out, "array", 'A');
	nested = tpc_properties_begin_nested(out);
	appendBinaryStringInfo(out, "Vt\1", 3);
	tpc_properties_end_nested(out, nested);
}

/* As RabbitMQ says why a message was dead-lettered. */
static void
put_deaths(StringInfo out)
{
	int			array;
	int			table;
	int			keys;

	put_entry(out, "x-death", 'A');
	array = tpc_properties_begin_nested(out);
	appendStringInfoChar(out, 'F');
	table = tpc_properties_begin_nested(out);
	put_integer(out, "count", 'l', 1, 8);
	put_string(out, "exchange", 'S', "");
	put_string(out, "queue", 'S', "q");
	put_string(out, "reason", 'S', "expired");
	put_entry(out, "routing-keys", 'A');
	keys = tpc_properties_begin_nested(out);
	appendStringInfoChar(out, 'S');
	tpc_properties_put_long(out, "q", 1);
	tpc_properties_end_nested(out, keys);
	put_integer(out, "time", 'T', 1795622400, 8);
	tpc_properties_end_nested(out, table);
	tpc_properties_end_nested(out, array);
}

static void
put_list(StringInfo out, int flags)
{
	int			nested;

	tpc_properties_put_int(out, flags, 2);
	for (int i = 0; i < TPC_NPROPERTIES; i++)
	{
		if ((flags & TPC_PROPERTY_FLAG(i)) == 0)
			continue;
		switch (tpc_properties[i].kind)
		{
			case TPC_PROPERTY_TEXT:
				(void) tpc_properties_put_short(out, tpc_properties[i].name,
												strlen(tpc_properties[i].name));
				break;
			case TPC_PROPERTY_OCTET:
				tpc_properties_put_int(out, 2, 1);
				break;
			case TPC_PROPERTY_TIMESTAMP:
				tpc_properties_put_int(out, 1795622400, 8);
				break;
			case TPC_PROPERTY_TABLE:
				nested = tpc_properties_begin_nested(out);
				put_deaths(out);
				tpc_properties_end_nested(out, nested);
				break;
		}
	}
}

static void
put_nested(StringInfo out, int depth)
{
	int			nested;

	put_entry(out, "t", depth % 2 == 0 ? 'A' : 'F');
	nested = tpc_properties_begin_nested(out);
	if (depth % 2 == 0)
	{
		int			table;

		appendStringInfoChar(out, 'F');
		table = tpc_properties_begin_nested(out);
		put_nested(out, depth - 1);
		tpc_properties_end_nested(out, table);
	}
	else if (depth > 1)
		put_nested(out, depth - 1);
	tpc_properties_end_nested(out, nested);
}

void
fuzz_seeds(FuzzEmit emit_to)
{
	StringInfoData bytes;
	static const char *const texts[][2] = {
		{"text-timestamp", "2026-11-25T16:00:00Z"},
		{"text-offset", "1970-01-02 00:00:00.5+01:30"},
		{"text-decimal", "12.50"}
	};

	emit_seed = emit_to;
	initStringInfo(&bytes);
	emit("table-empty", TABLE, &bytes);
	put_values(&bytes);
	emit("table-values", TABLE, &bytes);
	emit("table-ascii", TABLE | ASCII, &bytes);
	resetStringInfo(&bytes);
	put_deaths(&bytes);
	emit("table-deaths", TABLE, &bytes);
	resetStringInfo(&bytes);
	put_nested(&bytes, 20);
	emit("table-nested", TABLE, &bytes);

	resetStringInfo(&bytes);
	put_list(&bytes, 0);
	emit("list-empty", PROPERTIES, &bytes);
	resetStringInfo(&bytes);
	put_list(&bytes, 0xfffc);
	emit("list-all", PROPERTIES, &bytes);
	emit("list-ascii", PROPERTIES | ASCII, &bytes);
	for (size_t i = 0; i < lengthof(texts); i++)
	{
		resetStringInfo(&bytes);
		appendStringInfoString(&bytes, texts[i][1]);
		emit(texts[i][0], PROPERTIES, &bytes);
	}
	pfree(bytes.data);
}
