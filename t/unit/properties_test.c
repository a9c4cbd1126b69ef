/*-------------------------------------------------------------------------
 *
 * properties_test.c
 *	  AMQP's properties and tables: what becomes of bytes, good and bad.
 *
 * Every input is handed over in a chunk of exactly its size, so that an
 * address sanitizer sees the first byte read beyond it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"
#include "properties.h"
#include "tap.h"

/* Bytes given as a literal, which may have NULs in it. */
#define BYTES(literal) "" literal, sizeof(literal) - 1

/* format: into one of a few buffers, used in turn. */
static char *
format(const char *fmt,...)
{
	static char buffers[8][512];
	static int	next = 0;
	char	   *buffer = buffers[next++ % lengthof(buffers)];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(buffer, sizeof(buffers[0]), fmt, args);
	va_end(args);
	return buffer;
}

static char *
copy_of(const char *bytes, size_t len)
{
	char	   *chunk = malloc(len);

	if (len > 0)
		memcpy(chunk, bytes, len);
	return chunk;
}

typedef bool (*ToJson) (StringInfo out, const char *bytes, size_t len,
						TpcTextFits fits);

static bool
only_ascii(const char *utf8, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		if (IS_HIGHBIT_SET(utf8[i]))
			return false;
	}
	return true;
}

/* These bytes are this JSON; NULL: they are refused. */
static void
becomes_fitting(ToJson to_json, TpcTextFits fits, const char *bytes,
				size_t len, const char *json, const char *name)
{
	char	   *chunk = copy_of(bytes, len);
	StringInfoData out;
	bool		decoded;

	initStringInfo(&out);
	appendStringInfoString(&out, "before ");
	decoded = to_json(&out, chunk, len, fits);
	tap_note = out.data;
	ok(decoded == (json != NULL) &&
	   strncmp(out.data, "before ", 7) == 0 &&
	   strlen(out.data) == (size_t) out.len &&
	   strcmp(out.data + 7, json ? json : "") == 0, name);
	pfree(out.data);
	free(chunk);
}

static void
becomes(ToJson to_json, const char *bytes, size_t len, const char *json,
		const char *name)
{
	becomes_fitting(to_json, NULL, bytes, len, json, name);
}

/* A table of the one value with the name "a". */
static void
value(const char *bytes, size_t len, const char *json, const char *name)
{
	StringInfoData table;
	StringInfoData wanted;

	initStringInfo(&table);
	initStringInfo(&wanted);
	appendBinaryStringInfo(&table, "\1a", 2);
	appendBinaryStringInfo(&table, bytes, (int) len);
	appendStringInfo(&wanted, "{\"a\":%s}", json ? json : "");
	becomes(tpc_table_to_json, table.data, table.len,
			json ? wanted.data : NULL, name);
	pfree(table.data);
	pfree(wanted.data);
}

static void
test_values(void)
{
	value(BYTES("V"), "null", "value: none");
	value(BYTES("t\0"), "false", "value: false");
	value(BYTES("t\1"), "true", "value: true");
	value(BYTES("t\xff"), "true", "value: another true");
	value(BYTES("I\0\0\0\x2a"), "42", "value: int32");
	value(BYTES("I\x80\0\0\0"), "-2147483648", "value: the least int32");
	value(BYTES("l\0\0\0\0\0\0\0\1"), "1", "value: a small int64");
	value(BYTES("l\x80\0\0\0\0\0\0\0"), "-9223372036854775808",
		  "value: the least int64");
	value(BYTES("L\x7f\xff\xff\xff\xff\xff\xff\xff"), "9223372036854775807",
		  "value: the greatest int64, by its other letter");
	value(BYTES("L\xff\xff\xff\xff\xff\xff\xff\xff"), "-1",
		  "value: that is signed");
	value(BYTES("b\x80"), "{\"@int8\":-128}", "value: int8");
	value(BYTES("B\x80"), "{\"@uint8\":128}", "value: uint8");
	value(BYTES("s\xff\xfe"), "{\"@int16\":-2}", "value: int16");
	value(BYTES("u\xff\xfe"), "{\"@uint16\":65534}", "value: uint16");
	value(BYTES("i\xff\xff\xff\xff"), "{\"@uint32\":4294967295}",
		  "value: uint32");
	value(BYTES("S\0\0\0\0"), "\"\"", "value: an empty string");
	value(BYTES("S\0\0\0\x0bz\xc3\xa4\"\\\n\x01\xe2\x82\xac"),
		  NULL, "value: a string that is longer than the rest");
	value(BYTES("S\0\0\0\x0az\xc3\xa4\"\\\n\x01\xe2\x82\xac"),
		  "\"z\xc3\xa4\\\"\\\\\\n\\u0001\xe2\x82\xac\"", "value: a string");
	value(BYTES("S\0\0\0\2a\0"), "{\"@bytes\":\"YQA=\"}",
		  "value: a string with a NUL");
	value(BYTES("S\0\0\0\3\xed\xa0\x80"), "{\"@bytes\":\"7aCA\"}",
		  "value: a string with half of a surrogate pair");
	value(BYTES("S\0\0\0\1\xff"), "{\"@bytes\":\"/w==\"}",
		  "value: a string that is not UTF-8");
	value(BYTES("x\0\0\0\0"), "{\"@bytes\":\"\"}", "value: no bytes");
	value(BYTES("x\0\0\0\3abc"), "{\"@bytes\":\"YWJj\"}", "value: bytes");
	value(BYTES("F\0\0\0\0"), "{}", "value: an empty table");
	value(BYTES("F\0\0\0\5\1bt\1" "\0"), NULL,
		  "value: a table that ends in a name");
	value(BYTES("F\0\0\0\4\1bt\1"), "{\"b\":true}", "value: a table");
	value(BYTES("F\0\0\0\4\1bt\1\1cV"), "{\"b\":true},\"c\":null",
		  "value: what comes after a table is not in it");
	value(BYTES("F\0\0\0\3\1bt\1"), NULL,
		  "value: a table does not reach beyond its end");
	value(BYTES("A\0\0\0\0"), "[]", "value: an empty array");
	value(BYTES("A\0\0\0\x09Vt\1A\0\0\0\0t"), NULL,
		  "value: an array with a bad element");
	value(BYTES("A\0\0\0\x09Vt\1A\0\0\0\0V"), "[null,true,[],null]",
		  "value: an array");
	value(BYTES("T\0\0\0\0\0\0\0\0"),
		  "{\"@timestamp\":\"1970-01-01T00:00:00Z\"}",
		  "value: a timestamp");
	value(BYTES("T\0\0\0\x3a\xff\xf4\x41\x7f"),
		  "{\"@timestamp\":\"9999-12-31T23:59:59Z\"}",
		  "value: the last date");
	value(BYTES("T\0\0\0\x3a\xff\xf4\x41\x80"), "{\"@timestamp\":253402300800}",
		  "value: no date any more");
	value(BYTES("T\xff\xff\xff\xff\xff\xff\xff\xff"),
		  "{\"@timestamp\":18446744073709551615}",
		  "value: the last timestamp");
	value(BYTES("D\0\0\0\0\x7d"), "{\"@decimal\":\"125\"}",
		  "value: a whole decimal");
	value(BYTES("D\1\0\0\0\x7d"), "{\"@decimal\":\"12.5\"}",
		  "value: a decimal");
	value(BYTES("D\3\0\0\0\x7d"), "{\"@decimal\":\"0.125\"}",
		  "value: a decimal below 1");
	value(BYTES("D\4\0\0\0\0"), "{\"@decimal\":\"0.0000\"}",
		  "value: zero as a decimal");
	value(BYTES("D\2\xff\xff\xff\xff"), "{\"@decimal\":\"42949672.95\"}",
		  "value: the greatest digits of a decimal");
	value(BYTES("d\x3f\xb9\x99\x99\x99\x99\x99\x9a"), "0.1",
		  "value: a double");
	value(BYTES("d\x40\x08\0\0\0\0\0\0"), "{\"@double\":3}",
		  "value: a double that is a whole number");
	value(BYTES("d\x7e\x37\xe4\x3c\x88\0\x75\x9c"), "{\"@double\":1e+300}",
		  "value: a great double");
	value(BYTES("d\0\0\0\0\0\0\0\1"), "5e-324", "value: the least double");
	value(BYTES("d\x80\0\0\0\0\0\0\0"), "{\"@double\":\"-0\"}",
		  "value: minus zero");
	value(BYTES("d\x7f\xf0\0\0\0\0\0\0"), "{\"@double\":\"Infinity\"}",
		  "value: infinity");
	value(BYTES("d\xff\xf0\0\0\0\0\0\0"), "{\"@double\":\"-Infinity\"}",
		  "value: minus infinity");
	value(BYTES("d\x7f\xf8\0\0\0\0\0\1"), "{\"@double\":\"NaN\"}",
		  "value: not a number");
	value(BYTES("f\x3f\0\0\0"), "{\"@float\":0.5}", "value: a float");
	value(BYTES("f\xff\xc0\0\0"), "{\"@float\":\"NaN\"}",
		  "value: not a float");
	value(BYTES("f\x80\0\0\0"), "{\"@float\":\"-0\"}",
		  "value: minus zero as a float");
}

/* Of each type, and each too short by one byte and more. */
static void
test_short_values(void)
{
	static const char kinds[] = "tbBsuIilLfdDTSxFA";
	char		bytes[3 + 9] = "\1a";

	for (const char *kind = kinds; *kind != '\0'; kind++)
	{
		int			len = 0;
		bool		refused = true;
		StringInfoData out;

		initStringInfo(&out);
		bytes[2] = *kind;
		memset(bytes + 3, 0, 9);
		for (;; len++)
		{
			char	   *chunk = copy_of(bytes, 3 + len);
			bool		decoded = tpc_table_to_json(&out, chunk, 3 + len,
													NULL);

			free(chunk);
			if (decoded || len == 9)
				break;
			refused = refused && out.len == 0;
		}
		tap_note = out.data;
		ok(refused && len == (strchr("tbB", *kind) ? 1 :
							  strchr("su", *kind) ? 2 :
							  strchr("lLdT", *kind) ? 8 :
							  *kind == 'D' ? 5 : 4),
		   format("value: of type %c is refused while it is too short",
				  *kind));
		pfree(out.data);
	}

	for (int kind = 0; kind < 256; kind++)
	{
		char		unknown[] = "\1a?\0\0\0\0\0\0\0\0";
		StringInfoData out;

		if (kind == 'V' || (kind != 0 && strchr(kinds, kind) != NULL))
			continue;
		initStringInfo(&out);
		unknown[2] = (char) kind;
		for (size_t len = 2; len < sizeof(unknown); len++)
		{
			if (tpc_table_to_json(&out, unknown, len, NULL))
				ok(false, format("value: of type %d is unknown", kind));
		}
		pfree(out.data);
	}
	ok(true, "value: of any other type is refused");
}

/* A table of tables and arrays in turn, depth of them. */
static void
nest(StringInfo table, int depth)
{
	initStringInfo(table);
	for (int i = 1; i <= depth; i++)
	{
		StringInfoData inner = *table;

		initStringInfo(table);
		if (i % 2 == depth % 2)
			tpc_properties_put_int(table, 0, 1);	/* a name */
		if (i == 1)
			appendStringInfoChar(table, 'V');
		else
		{
			appendStringInfoChar(table, i % 2 == depth % 2 ? 'A' : 'F');
			tpc_properties_put_long(table, inner.data, inner.len);
		}
		pfree(inner.data);
	}
}

static void
test_tables(void)
{
	StringInfoData nested;

	becomes(tpc_table_to_json, BYTES(""), "{}", "table: empty");
	becomes(tpc_table_to_json, NULL, 0, "{}", "table: none");
	becomes(tpc_table_to_json, BYTES("\0"), NULL, "table: no type");
	becomes(tpc_table_to_json, BYTES("\0V"), "{\"\":null}",
			"table: an empty name");
	becomes(tpc_table_to_json, BYTES("\1aV\1bV"), "{\"a\":null,\"b\":null}",
			"table: two entries");
	becomes(tpc_table_to_json, BYTES("\1aV\1aV"), "{\"a\":null,\"a\":null}",
			"table: one entry twice");
	becomes(tpc_table_to_json, BYTES("\1aV\2b"), NULL,
			"table: a name longer than the rest");
	becomes(tpc_table_to_json, BYTES("\5@int8V"), "{\"@@int8\":null}",
			"table: a name as that of a type");
	becomes(tpc_table_to_json, BYTES("\2@@V"), "{\"@@@\":null}",
			"table: a name with more of it");
	becomes(tpc_table_to_json, BYTES("\6\xff" "a\0\xc3\xa4\xc3V"),
			"{\"?a?\xc3\xa4?\":null}", "table: a name that is no text");
	becomes_fitting(tpc_table_to_json, only_ascii,
					BYTES("\3\xc3\xa4zS\0\0\0\2\xc3\xa4\1bS\0\0\0\1z"),
					"{\"?z\":{\"@bytes\":\"w6Q=\"},\"b\":\"z\"}",
					"table: what cannot be represented");

	for (int depth = TPC_TABLE_MAX_DEPTH; depth <= TPC_TABLE_MAX_DEPTH + 1;
		 depth++)
	{
		StringInfoData out;

		initStringInfo(&out);
		nest(&nested, depth);
		ok(tpc_table_to_json(&out, nested.data, nested.len, NULL) ==
		   (depth == TPC_TABLE_MAX_DEPTH),
		   format("table: nested %d deep", depth));
		pfree(out.data);
		pfree(nested.data);
	}

	initStringInfo(&nested);
	for (int i = 0; i < 100000; i++)
		appendBinaryStringInfo(&nested, "\0A\x7f\xff\xff\xff", 6);
	becomes(tpc_table_to_json, nested.data, nested.len, NULL,
			"table: lengths beyond everything");
	pfree(nested.data);
	nest(&nested, 1000);
	becomes(tpc_table_to_json, nested.data, nested.len, NULL,
			"table: very deep");
	pfree(nested.data);
}

/* All of them. */
#define ALL_LIST \
	"\4text\4gzip\0\0\0\4\1at\1\2\7\1c\1r\3" "100\2id" \
	"\0\0\0\0\x69\x25\xd4\x00\1t\5guest\3app\2cl"

static void
test_properties(void)
{
	StringInfoData bytes;
	bool		refused = true;

	becomes(tpc_properties_to_json, BYTES("\xff\xfc" ALL_LIST),
			"{\"content_type\":\"text\",\"content_encoding\":\"gzip\","
			"\"headers\":{\"a\":true},\"delivery_mode\":2,\"priority\":7,"
			"\"correlation_id\":\"c\",\"reply_to\":\"r\","
			"\"expiration\":\"100\",\"message_id\":\"id\","
			"\"timestamp\":\"2025-11-25T16:06:24Z\",\"type\":\"t\","
			"\"user_id\":\"guest\",\"app_id\":\"app\",\"cluster_id\":\"cl\"}",
			"properties: all");
	becomes(tpc_properties_to_json, BYTES("\0\0"), "{}", "properties: none");
	becomes(tpc_properties_to_json, BYTES(""), NULL, "properties: no flags");
	becomes(tpc_properties_to_json, NULL, 0, NULL, "properties: nothing");
	becomes(tpc_properties_to_json, BYTES("\0"), NULL,
			"properties: half of the flags");
	becomes(tpc_properties_to_json, BYTES("\0\0\0"), NULL,
			"properties: something behind them");
	becomes(tpc_properties_to_json, BYTES("\0\1"), NULL,
			"properties: more flags");
	becomes(tpc_properties_to_json, BYTES("\0\1\0\0"), NULL,
			"properties: more flags that follow");
	becomes(tpc_properties_to_json, BYTES("\0\2"), NULL,
			"properties: an unknown one");
	becomes(tpc_properties_to_json, BYTES("\x18\0\0\xff"),
			"{\"delivery_mode\":0,\"priority\":255}",
			"properties: octets of any value");
	becomes(tpc_properties_to_json, BYTES("\0\x80\4a\0\xff\xc3"),
			"{\"message_id\":\"a???\"}",
			"properties: a text that is none");
	becomes_fitting(tpc_properties_to_json, only_ascii,
					BYTES("\0\x80\3a\xc3\xa4"), "{\"message_id\":\"a?\"}",
					"properties: a text that cannot be represented");
	becomes(tpc_properties_to_json, BYTES("\x20\0\0\0\0\3\1aV"),
			"{\"headers\":{\"a\":null}}", "properties: headers");
	becomes(tpc_properties_to_json, BYTES("\x20\0\0\0\0\2\1aV"), NULL,
			"properties: headers that are cut");

	initStringInfo(&bytes);
	appendBinaryStringInfo(&bytes, BYTES("\xff\xfc" ALL_LIST));
	for (int len = 0; len < bytes.len; len++)
	{
		char	   *chunk = copy_of(bytes.data, len);
		StringInfoData out;
		const char *id;
		size_t		id_len;

		initStringInfo(&out);
		refused = refused &&
			!tpc_properties_to_json(&out, chunk, len, NULL) &&
			!tpc_properties_message_id(chunk, len, &id, &id_len) &&
			out.len == 0;
		pfree(out.data);
		free(chunk);
	}
	ok(refused, "properties: every truncation is refused");
	pfree(bytes.data);
}

static void
has_id(const char *bytes, size_t len, const char *wanted, const char *name)
{
	char	   *chunk = copy_of(bytes, len);
	const char *id = NULL;
	size_t		id_len = 0;
	bool		found = tpc_properties_message_id(chunk, len, &id, &id_len);

	ok(found == (wanted != NULL) &&
	   (!found || (id_len == strlen(wanted) &&
				   memcmp(id, wanted, id_len) == 0)), name);
	free(chunk);
}

static void
test_message_id(void)
{
	has_id(BYTES("\xff\xfc" ALL_LIST), "id", "message_id: among all");
	has_id(BYTES("\0\x80\0"), "", "message_id: empty");
	has_id(BYTES("\0\x80\3z\xc3\xa4"), "z\xc3\xa4", "message_id: UTF-8");
	has_id(BYTES("\0\x80\2z\xc3"), NULL, "message_id: not UTF-8");
	has_id(BYTES("\0\x80\2z\0"), NULL, "message_id: with a NUL");
	has_id(BYTES("\0\x80\3z"), NULL, "message_id: cut");
	has_id(BYTES("\0\x80\1zz"), NULL, "message_id: with more behind it");
	has_id(BYTES("\0\x81\1z"), NULL, "message_id: with more flags");
	has_id(BYTES("\0\0"), NULL, "message_id: none");
	has_id(NULL, 0, NULL, "message_id: nothing");
	has_id(BYTES("\x20\x80\0\0\0\1\xff\1z"), "z",
		   "message_id: behind headers of any kind");
}

static void
test_decimals(void)
{
	static const struct
	{
		const char *text;
		const char *json;		/* NULL: refused; "": as the text */
	}			cases[] = {
		{"0", ""}, {"12.5", ""}, {"12.50", ""}, {"0.05", ""},
		{"4294967295", ""}, {"42949672.95", ""},
		{"007", "7"}, {"00.7", "0.7"},
		{"4294967296", NULL}, {"42949672.96", NULL}, {"-1", NULL},
		{"", NULL}, {".", NULL}, {".5", NULL}, {"5.", NULL}, {"1.2.3", NULL},
		{"1e5", NULL}, {" 1", NULL}, {"99999999999999999999999999", NULL}
	};
	StringInfoData table;
	char		digits[300];

	initStringInfo(&table);
	for (size_t i = 0; i < lengthof(cases); i++)
	{
		char	   *text = copy_of(cases[i].text, strlen(cases[i].text));
		bool		put;

		resetStringInfo(&table);
		appendStringInfoString(&table, "D");
		put = tpc_properties_put_decimal(&table, text,
										 strlen(cases[i].text));
		free(text);
		if (put)
			value(table.data, table.len, cases[i].json == NULL ? NULL :
				  format("{\"@decimal\":\"%s\"}", cases[i].json[0] ?
						 cases[i].json : cases[i].text),
				  format("decimal: %s", cases[i].text));
		else
			ok(cases[i].json == NULL && table.len == 1,
			   format("decimal: \"%s\" is refused", cases[i].text));
	}
	memset(digits, '0', sizeof(digits));
	digits[1] = '.';
	ok(tpc_properties_put_decimal(&table, digits, 2 + 255) &&
	   !tpc_properties_put_decimal(&table, digits, 2 + 256),
	   "decimal: 255 digits behind the point");
	pfree(table.data);
}

static void
test_timestamps(void)
{
	static const struct
	{
		const char *text;
		int64		seconds;	/* -1: refused */
	}			cases[] = {
		{"1970-01-01T00:00:00Z", 0},
		{"1970-01-01 00:00z", 0},
		{"1970-01-01T01:00:00+01", 0},
		{"1970-01-01T01:30:00+0130", 0},
		{"1969-12-31 21:00:00-03:00", 0},
		{"1970-01-01T00:00:00+00:01", -1},
		{"1969-12-31T23:59:59Z", -1},
		{"2026-11-25T16:00:00Z", 1795622400},
		{"2026-11-25 16:00:00.999999+00", 1795622400},
		{"2026-11-25T16:00:00,5Z", 1795622400},
		{"2000-02-29T00:00:00Z", 951782400},
		{"2024-02-29T23:59:59Z", 1709251199},
		{"2016-12-31T23:59:60Z", 1483228800},
		{"9999-12-31T23:59:59Z", INT64CONST(253402300799)},
		{"9999-12-31T23:59:59-15:59", INT64CONST(253402358339)},
		{"0000-01-01T00:00:00Z", -1},
		{"2100-02-29T00:00:00Z", -1},
		{"2023-02-29T00:00:00Z", -1},
		{"2024-02-30T00:00:00Z", -1},
		{"2024-04-31T00:00:00Z", -1},
		{"2024-00-01T00:00:00Z", -1},
		{"2024-13-01T00:00:00Z", -1},
		{"2024-01-00T00:00:00Z", -1},
		{"2024-01-32T00:00:00Z", -1},
		{"2024-01-01T24:00:00Z", -1},
		{"2024-01-01T00:60:00Z", -1},
		{"2024-01-01T00:00:61Z", -1},
		{"2024-01-01T00:00:00", -1},
		{"2024-01-01T00:00:00.Z", -1},
		{"2024-01-01T00:00:00+", -1},
		{"2024-01-01T00:00:00+1", -1},
		{"2024-01-01T00:00:00+16", -1},
		{"2024-01-01T00:00:00+01:", -1},
		{"2024-01-01T00:00:00+01:60", -1},
		{"2024-01-01T00:00:00Zulu", -1},
		{"2024-01-01", -1},
		{"24-01-01T00:00:00Z", -1},
		{"+2024-01-01T00:00:00Z", -1},
		{"now", -1},
		{"", -1}
	};
	bool		same = true;
	StringInfoData bytes;
	StringInfoData out;

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		uint64		seconds = 0;
		size_t		len = strlen(cases[i].text);
		char	   *text = copy_of(cases[i].text, len);
		bool		parsed = tpc_properties_parse_timestamp(text, len,
															&seconds);

		free(text);
		ok(parsed == (cases[i].seconds >= 0) &&
		   (!parsed || seconds == (uint64) cases[i].seconds),
		   format("timestamp: \"%s\"", cases[i].text));
	}

	/* What is written is read, on days of all months and years. */
	initStringInfo(&bytes);
	initStringInfo(&out);
	for (int64 seconds = 0; same && seconds < INT64CONST(253402300800);
		 seconds += 86400 * 17 + 3599)
	{
		uint64		again = 0;

		resetStringInfo(&bytes);
		resetStringInfo(&out);
		tpc_properties_put_int(&bytes, TPC_PROPERTY_FLAG(9), 2);
		tpc_properties_put_int(&bytes, seconds, 8);
		same = tpc_properties_to_json(&out, bytes.data, bytes.len, NULL) &&
			strlen("{\"timestamp\":\"2026-11-25T16:00:00Z\"}") ==
			(size_t) out.len &&
			tpc_properties_parse_timestamp(out.data + 14, out.len - 16,
										   &again) &&
			again == (uint64) seconds;
		tap_note = out.data;
	}
	ok(same, "timestamp: what is written is read");
	pfree(bytes.data);
	pfree(out.data);
}

static void
test_encoders(void)
{
	StringInfoData out;
	char		text[256];
	int			start;

	initStringInfo(&out);
	tpc_properties_put_int(&out, UINT64CONST(0x0102030405060708), 8);
	tpc_properties_put_int(&out, 0xfffe, 2);
	ok(out.len == 10 &&
	   memcmp(out.data, "\1\2\3\4\5\6\7\x08\xff\xfe", 10) == 0,
	   "encoder: integers");

	resetStringInfo(&out);
	memset(text, 'x', sizeof(text));
	ok(!tpc_properties_put_short(&out, text, 256) && out.len == 0,
	   "encoder: a short string that is too long");
	ok(tpc_properties_put_short(&out, text, 255) && out.len == 256 &&
	   (unsigned char) out.data[0] == 255, "encoder: the longest");

	resetStringInfo(&out);
	appendStringInfoString(&out, "abc");
	start = tpc_properties_begin_nested(&out);
	for (int i = 0; i < 300; i++)
		appendStringInfoChar(&out, 'x');
	tpc_properties_end_nested(&out, start);
	ok(out.len == 307 && memcmp(out.data, "abc\0\0\1\x2cx", 8) == 0,
	   "encoder: something nested");

	ok(tpc_field_type("@int8", 5)->kind == 'b' &&
	   tpc_field_type("@string", 7)->kind == 'S' &&
	   tpc_field_type("@int", 4) == NULL && tpc_field_type("", 0) == NULL &&
	   tpc_field_type("int8", 4) == NULL, "encoder: types by their names");
	pfree(out.data);
}

int
main(void)
{
	test_values();
	test_short_values();
	test_tables();
	test_properties();
	test_message_id();
	test_decimals();
	test_timestamps();
	test_encoders();
	return done_testing();
}
