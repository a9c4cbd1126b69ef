/*-------------------------------------------------------------------------
 *
 * properties_fuzz.c
 *	  Fuzz target: bytes as AMQP's properties, or as a table, up to JSON.
 *
 * The first byte of the input says which of them, and whether the JSON may
 * have anything but ASCII.  The rest is also tried as the text of a timestamp
 * and of a decimal.
 *
 * What comes out has to be an object, and nothing else, to PostgreSQL's parser
 * of JSON: in the server nothing that the parser raises would be caught.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "fuzz.h"
#include "properties.h"

/* Seen by whoever debugs what a fuzzer has found. */
#define REQUIRE(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not so: %s\n", \
					__FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

static bool
is_ascii(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		if (IS_HIGHBIT_SET(text[i]))
			return false;
	}
	return true;
}

/* What properties.h promises of the texts that it asks about. */
static bool
only_ascii(const char *utf8, size_t len)
{
	REQUIRE(memchr(utf8, '\0', len) == NULL);
	REQUIRE(pg_encoding_verifymbstr(PG_UTF8, utf8, (int) len) == (int) len);
	return is_ascii(utf8, len);
}

static void
check_json(StringInfo json, bool must_be_ascii)
{
	JsonLexContext *lex;

	REQUIRE(json->data[json->len] == '\0');
	REQUIRE(strlen(json->data) == (size_t) json->len);
	REQUIRE(json->data[0] == '{');
	REQUIRE(pg_encoding_verifymbstr(PG_UTF8, json->data, json->len) ==
			json->len);
	REQUIRE(!must_be_ascii || is_ascii(json->data, json->len));
	REQUIRE(strstr(json->data, "\\u0000") == NULL ||
			strstr(json->data, "\\\\u0000") != NULL);
	lex = tpc_json_lexer_make(json->data, json->len);
	REQUIRE(pg_parse_json(lex, &nullSemAction) == JSON_SUCCESS);
	tpc_json_lexer_free(lex);
}

static void
check_properties(const char *bytes, size_t len, bool ascii)
{
	StringInfoData json;
	const char *id;
	size_t		id_len;
	bool		decoded;

	initStringInfo(&json);
	decoded = tpc_properties_to_json(&json, bytes, len,
									 ascii ? only_ascii : NULL);
	if (decoded)
		check_json(&json, ascii);
	else
		REQUIRE(json.len == 0);
	if (tpc_properties_message_id(bytes, len, &id, &id_len))
	{
		/* the property is there as it is, if what it needs is */
		StringInfoData wanted;

		REQUIRE(id >= bytes && id + id_len <= bytes + len && id_len <= 255);
		initStringInfo(&wanted);
		appendStringInfoString(&wanted, "\"message_id\":\"");
		if (decoded && is_ascii(id, id_len) && id_len > 0 && id[0] >= 'a' &&
			id[0] <= 'z')
			appendStringInfoChar(&wanted, id[0]);
		REQUIRE(!decoded || strstr(json.data, wanted.data) != NULL);
		pfree(wanted.data);
	}
	pfree(json.data);
}

static void
check_table(const char *bytes, size_t len, bool ascii)
{
	StringInfoData json;

	initStringInfo(&json);
	if (tpc_table_to_json(&json, bytes, len, ascii ? only_ascii : NULL))
		check_json(&json, ascii);
	else
		REQUIRE(json.len == 0);
	pfree(json.data);
}

/* A timestamp that was read is written, and the same when read again. */
static void
check_timestamp(const char *text, size_t len)
{
	StringInfoData bytes;
	StringInfoData json;
	uint64		seconds;
	uint64		again;

	if (!tpc_properties_parse_timestamp(text, len, &seconds))
		return;
	initStringInfo(&bytes);
	initStringInfo(&json);
	tpc_properties_put_short(&bytes, "", 0);
	appendStringInfoChar(&bytes, 'T');
	tpc_properties_put_int(&bytes, seconds, 8);
	REQUIRE(tpc_table_to_json(&json, bytes.data, bytes.len, NULL));
	/* {"":{"@timestamp":"…"}}; in the year 10000 it is a number */
	if (json.data[18] == '"')
		REQUIRE(tpc_properties_parse_timestamp(json.data + 19,
											   json.len - 22, &again) &&
				again == seconds);
	pfree(bytes.data);
	pfree(json.data);
}

/* So is a decimal. */
static void
check_decimal(const char *text, size_t len)
{
	StringInfoData bytes;
	StringInfoData again;
	StringInfoData json;

	initStringInfo(&bytes);
	initStringInfo(&again);
	initStringInfo(&json);
	appendBinaryStringInfo(&bytes, "\0D", 2);
	if (tpc_properties_put_decimal(&bytes, text, len))
	{
		REQUIRE(bytes.len == 7);
		REQUIRE(tpc_table_to_json(&json, bytes.data, bytes.len, NULL));
		/* {"":{"@decimal":"…"}} */
		REQUIRE(tpc_properties_put_decimal(&again, json.data + 17,
										   json.len - 20));
		REQUIRE(again.len == 5 && memcmp(again.data, bytes.data + 2, 5) == 0);
	}
	else
		REQUIRE(bytes.len == 2);
	pfree(bytes.data);
	pfree(again.data);
	pfree(json.data);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *bytes;
	bool		ascii;

	if (size == 0)
		return 0;
	/* in a chunk of exact size */
	bytes = malloc(size - 1);
	if (size > 1)
		memcpy(bytes, data + 1, size - 1);
	ascii = (data[0] & 2) != 0;
	if (data[0] & 1)
		check_table(bytes, size - 1, ascii);
	else
		check_properties(bytes, size - 1, ascii);
	check_timestamp(bytes, size - 1);
	check_decimal(bytes, size - 1);
	free(bytes);
	return 0;
}
