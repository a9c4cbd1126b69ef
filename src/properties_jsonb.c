/*-------------------------------------------------------------------------
 *
 * properties_jsonb.c
 *	  AMQP's properties and tables: jsonb to bytes, and back.
 *
 * What a jsonb says is put into bytes as it is walked through; the way back
 * is text, which properties.c makes and PostgreSQL's parser reads.  AMQP's
 * texts are UTF-8, a jsonb's are in the database's encoding.
 *
 * A value that AMQP has no place for is the user's, so errors say where it
 * is.  What was received is somebody else's: bytes that are wrong, or texts
 * that the database's encoding has no characters for, must not raise, as
 * whoever reads a message would stumble over it again and again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "properties.h"

/* Of a name in a message. */
#define MAX_SHOWN 255

/* RabbitMQ's bound, in milliseconds. */
#define MAX_EXPIRATION INT64CONST(4294967295)

/* Where we are, for messages: a chain up to the outermost object. */
typedef struct Place
{
	const struct Place *above;	/* NULL: it is the outermost */
	const char *name;			/* NULL: an element of an array */
	int			len;
	int			index;			/* of an element */
} Place;

typedef struct Encoder
{
	StringInfo	out;
	int			start;			/* of ours, in out */
	const char *what;			/* an entry of the outermost object */
} Encoder;

static void put_value(Encoder *e, const JsonbValue *v, const Place *place,
					  int depth);
static void put_table(Encoder *e, JsonbContainer *object, const Place *place,
					  int depth);

static void
append_place(StringInfo out, const Place *place)
{
	if (place->above != NULL)
		append_place(out, place->above);
	if (place->name == NULL)
		appendStringInfo(out, "[%d]", place->index);
	else
	{
		if (place->above != NULL)
			appendStringInfoChar(out, '.');
		appendBinaryStringInfo(out, place->name,
							   pg_mbcliplen(place->name, place->len,
											MAX_SHOWN));
	}
}

static char *
place_name(const Place *place)
{
	StringInfoData name;

	initStringInfo(&name);
	append_place(&name, place);
	return name.data;
}

/* Raise; wanted is a whole sentence. */
static void
bad_value(Encoder *e, const Place *place, int sqlerrcode, const char *wanted)
{
	ereport(ERROR,
			(errcode(sqlerrcode),
			 errmsg("invalid value for AMQP %s \"%s\"", e->what,
					place_name(place)),
			 errhint("%s", wanted)));
}

static void
too_long(Encoder *e)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 strcmp(e->what, "property") == 0 ?
			 errmsg("AMQP properties are too long") :
			 errmsg("AMQP arguments are too long"),
			 errdetail("Encoded, they may have %d bytes.",
					   TPC_PROPERTIES_MAX)));
}

static void
check_length(Encoder *e, size_t more)
{
	if (more + (e->out->len - e->start) > TPC_PROPERTIES_MAX)
		too_long(e);
}


/*
 * jsonb to bytes
 */

/*
 * A text of a jsonb in UTF-8.  Raises if it is not valid (a SQL_ASCII
 * database may have any bytes) or cannot be converted.
 */
static const char *
utf8_of(const JsonbValue *v, size_t *len)
{
	const char *text = v->val.string.val;
	const char *utf8;

	Assert(v->type == jbvString);
	if (v->val.string.len == 0)
	{
		*len = 0;
		return "";
	}
	utf8 = pg_server_to_any(text, v->val.string.len, PG_UTF8);
	*len = utf8 == text ? (size_t) v->val.string.len : strlen(utf8);
	return utf8;
}

static bool
starts_with_at(const JsonbValue *v)
{
	return v->val.string.len > 0 && v->val.string.val[0] == '@';
}

static char *
digits_of(const JsonbValue *v)
{
	Assert(v->type == jbvNumeric);
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(v->val.numeric)));
}

/* Is it a whole number?  60000.00 is. */
static bool
is_whole(const char *digits)
{
	const char *point = strchr(digits, '.');

	return point == NULL || point[1 + strspn(point + 1, "0")] == '\0';
}

/* A whole number in the range of an int64. */
static bool
int64_of(const JsonbValue *v, int64 *value)
{
	char	   *digits;
	bool		result;

	if (v->type != jbvNumeric)
		return false;
	digits = digits_of(v);
	errno = 0;
	*value = strtoll(digits, NULL, 10);
	result = errno == 0 && is_whole(digits);
	pfree(digits);
	return result;
}

/* 22003 is for numbers; what is something else is 22023. */
static int
number_errcode(const JsonbValue *v)
{
	return v->type == jbvNumeric ? ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE :
		ERRCODE_INVALID_PARAMETER_VALUE;
}

static void
put_int(Encoder *e, const JsonbValue *v, const Place *place,
		const TpcFieldType *type)
{
	int			bits = type->size * 8;
	int64		min = type->is_signed ? -((int64) 1 << (bits - 1)) : 0;
	uint64		max = ((uint64) 1 << (bits - (type->is_signed ? 1 : 0))) - 1;
	int64		value;

	if (!int64_of(v, &value) || value < min ||
		(value > 0 && (uint64) value > max))
		bad_value(e, place, number_errcode(v),
				  psprintf("\"%s\" takes a whole number from " INT64_FORMAT
						   " to " UINT64_FORMAT ".", type->name, min, max));
	tpc_properties_put_int(e->out, (uint64) value, type->size);
}

/*
 * A number, or one of the strings that say what JSON has no number for.
 */
static void
put_real(Encoder *e, const JsonbValue *v, const Place *place, bool is_double)
{
	static const char *const words[] = {"NaN", "Infinity", "-Infinity", "-0"};
	static const double values[] = {NAN, INFINITY, -INFINITY, -0.0};
	const char *wanted = is_double ?
	"Give a number in the range of a double, or \"NaN\", \"Infinity\", \"-Infinity\" or \"-0\"." :
	"Give a number in the range of a float, or \"NaN\", \"Infinity\", \"-Infinity\" or \"-0\".";
	double		value = 0;
	float		single = 0;
	bool		known = false;

	if (v->type == jbvNumeric)
	{
		char	   *digits = digits_of(v);

		/* float8in() and float4in() would not say where it is */
		errno = 0;
		if (is_double)
			value = strtod(digits, NULL);
		else
			single = strtof(digits, NULL);
		known = errno == 0 ||
			(is_double ? isfinite(value) && value != 0 :
			 isfinite(single) && single != 0);
		pfree(digits);
	}
	else if (v->type == jbvString)
	{
		for (size_t i = 0; i < lengthof(words) && !known; i++)
		{
			known = strlen(words[i]) == (size_t) v->val.string.len &&
				memcmp(words[i], v->val.string.val, v->val.string.len) == 0;
			value = values[i];
			single = (float) values[i];
		}
	}
	if (!known)
		bad_value(e, place, number_errcode(v), wanted);

	if (is_double)
	{
		uint64		bits;

		memcpy(&bits, &value, sizeof(bits));
		tpc_properties_put_int(e->out, bits, sizeof(bits));
	}
	else
	{
		uint32		bits;

		memcpy(&bits, &single, sizeof(bits));
		tpc_properties_put_int(e->out, bits, sizeof(bits));
	}
}

/* RabbitMQ takes nothing but integers for its arguments, so these come first. */
static void
put_number(Encoder *e, const JsonbValue *v, const Place *place)
{
	int64		value;

	if (!int64_of(v, &value))
	{
		appendStringInfoChar(e->out, 'd');
		put_real(e, v, place, true);
	}
	else if (value >= PG_INT32_MIN && value <= PG_INT32_MAX)
	{
		appendStringInfoChar(e->out, 'I');
		tpc_properties_put_int(e->out, (uint64) value, 4);
	}
	else
	{
		appendStringInfoChar(e->out, 'l');
		tpc_properties_put_int(e->out, (uint64) value, 8);
	}
}

/* Seconds since 1970, or a date; fractions of seconds are cut off. */
static void
put_timestamp(Encoder *e, const JsonbValue *v, const Place *place)
{
	uint64		seconds = 0;
	bool		known = false;

	if (v->type == jbvNumeric)
	{
		char	   *digits = digits_of(v);

		errno = 0;
		seconds = strtoull(digits, NULL, 10);
		known = errno == 0 && digits[0] != '-';
		pfree(digits);
	}
	else if (v->type == jbvString)
		known = tpc_properties_parse_timestamp(v->val.string.val,
											   v->val.string.len, &seconds);
	if (!known)
		bad_value(e, place, number_errcode(v),
				  "Give the seconds since 1970, or a date and time from then on with its offset from UTC, as in \"2026-11-25T16:00:00Z\".");
	tpc_properties_put_int(e->out, seconds, 8);
}

static void
put_decimal(Encoder *e, const JsonbValue *v, const Place *place)
{
	bool		known = false;

	if (v->type == jbvNumeric)
	{
		char	   *digits = digits_of(v);

		known = tpc_properties_put_decimal(e->out, digits, strlen(digits));
		pfree(digits);
	}
	else if (v->type == jbvString)
		known = tpc_properties_put_decimal(e->out, v->val.string.val,
										   v->val.string.len);
	if (!known)
		bad_value(e, place, number_errcode(v),
				  "A decimal is not negative, and its digits are a number up to 4294967295 without the point.");
}

/* Base64, with white space as encode() puts into it, or without. */
static void
put_bytes(Encoder *e, const JsonbValue *v, const Place *place)
{
	char	   *digits = NULL;
	char	   *bytes = NULL;
	int			ndigits = 0;
	int			size;
	int			len = -1;

	if (v->type == jbvString)
	{
		digits = palloc(v->val.string.len + 1);
		for (int i = 0; i < v->val.string.len; i++)
		{
			char		c = v->val.string.val[i];

			if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
				digits[ndigits++] = c;
		}
		check_length(e, ndigits / 4 * 3);
		size = pg_b64_dec_len(ndigits) + 1;
		bytes = palloc(size);
		len = tpc_base64_decode(digits, ndigits, bytes, size);
	}
	if (len < 0)
		bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
				  "\"@bytes\" takes a string in base64.");
	check_length(e, len);
	tpc_properties_put_long(e->out, bytes, len);
	pfree(bytes);
	pfree(digits);
}

static void
put_long_string(Encoder *e, const JsonbValue *v, const Place *place)
{
	const char *utf8;
	size_t		len;

	if (v->type != jbvString)
		bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
				  "\"@string\" takes a string.");
	check_length(e, v->val.string.len / 4); /* UTF-8 may be shorter */
	utf8 = utf8_of(v, &len);
	check_length(e, len);
	tpc_properties_put_long(e->out, utf8, len);
}

/* The value of an object of one entry that says its type. */
static void
put_typed(Encoder *e, JsonbContainer *object, const Place *place)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	name;
	JsonbValue	v;
	const TpcFieldType *type;

	(void) JsonbIteratorNext(&it, &name, true);
	(void) JsonbIteratorNext(&it, &name, true);
	(void) JsonbIteratorNext(&it, &v, true);
	type = tpc_field_type(name.val.string.val, name.val.string.len);
	if (type == NULL)
		bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
				  "The types of values are @int8, @uint8, @int16, @uint16, @int32, @uint32, @int64, @float, @double, @decimal, @timestamp, @bytes and @string.  Put one more \"@\" in front of a name that begins with \"@\".");
	appendStringInfoChar(e->out, type->kind);
	switch (type->kind)
	{
		case 'f':
		case 'd':
			put_real(e, &v, place, type->kind == 'd');
			break;
		case 'D':
			put_decimal(e, &v, place);
			break;
		case 'T':
			put_timestamp(e, &v, place);
			break;
		case 'x':
			put_bytes(e, &v, place);
			break;
		case 'S':
			put_long_string(e, &v, place);
			break;
		default:
			put_int(e, &v, place, type);
			break;
	}
}

/* Does an object of one entry say its value's type, rather than a name? */
static bool
is_typed(JsonbContainer *object)
{
	JsonbIterator *it;
	JsonbValue	name;

	if (JsonContainerSize(object) != 1)
		return false;
	it = JsonbIteratorInit(object);
	(void) JsonbIteratorNext(&it, &name, true);
	(void) JsonbIteratorNext(&it, &name, true);
	return starts_with_at(&name) &&
		(name.val.string.len == 1 || name.val.string.val[1] != '@');
}

static void
check_depth(Encoder *e, const Place *place, int depth)
{
	if (depth > TPC_TABLE_MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("AMQP %s \"%s\" is nested too deeply", e->what,
						place_name(place)),
				 errdetail("Tables and arrays may be nested %d deep.",
						   TPC_TABLE_MAX_DEPTH)));
}

static void
put_array(Encoder *e, JsonbContainer *array, const Place *place, int depth)
{
	JsonbIterator *it = JsonbIteratorInit(array);
	JsonbIteratorToken token;
	JsonbValue	v;
	Place		at = {place, NULL, 0, 0};

	check_depth(e, place, depth);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		put_value(e, &v, &at, depth);
		at.index++;
	}
}

/* A value behind its type; depth is that of the table or array it is in. */
static void
put_value(Encoder *e, const JsonbValue *v, const Place *place, int depth)
{
	int			nested;

	switch (v->type)
	{
		case jbvNull:
			appendStringInfoChar(e->out, 'V');
			break;
		case jbvBool:
			appendStringInfoChar(e->out, 't');
			tpc_properties_put_int(e->out, v->val.boolean ? 1 : 0, 1);
			break;
		case jbvNumeric:
			put_number(e, v, place);
			break;
		case jbvString:
			appendStringInfoChar(e->out, 'S');
			put_long_string(e, v, place);
			break;
		case jbvBinary:
			if (JsonContainerIsObject(v->val.binary.data) &&
				is_typed(v->val.binary.data))
			{
				put_typed(e, v->val.binary.data, place);
				break;
			}
			if (JsonContainerIsObject(v->val.binary.data))
			{
				appendStringInfoChar(e->out, 'F');
				nested = tpc_properties_begin_nested(e->out);
				put_table(e, v->val.binary.data, place, depth + 1);
			}
			else
			{
				appendStringInfoChar(e->out, 'A');
				nested = tpc_properties_begin_nested(e->out);
				put_array(e, v->val.binary.data, place, depth + 1);
			}
			tpc_properties_end_nested(e->out, nested);
			break;
		default:
			elog(ERROR, "unexpected type of jsonb value: %d", (int) v->type);
	}
	check_length(e, 0);
}

static void
put_name(Encoder *e, const JsonbValue *key, const Place *place)
{
	JsonbValue	name = *key;
	const char *utf8;
	size_t		len;

	if (starts_with_at(&name))
	{
		name.val.string.val++;
		name.val.string.len--;
		if (!starts_with_at(&name))
			bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
					  "A name that begins with \"@\" is written with one more \"@\"; a type stands alone in an object, as in {\"@int8\": 1}.");
	}
	utf8 = utf8_of(&name, &len);
	if (!tpc_properties_put_short(e->out, utf8, len))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("name of AMQP %s \"%s\" is too long", e->what,
						place_name(place)),
				 errdetail("In UTF-8 it may have 255 bytes.")));
}

/* The entries of a table; place is the table's, NULL for the outermost. */
static void
put_table(Encoder *e, JsonbContainer *object, const Place *place, int depth)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	v;

	if (place != NULL)
		check_depth(e, place, depth);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		Place		at = {place, key.val.string.val, key.val.string.len, 0};

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &v, true);
		put_name(e, &key, &at);
		put_value(e, &v, &at, depth);
	}
}

/* Milliseconds, as AMQP has them: as a string. */
static void
put_expiration(Encoder *e, const JsonbValue *v, const Place *place)
{
	char		digits[24];
	int64		value = -1;

	if (v->type == jbvString && v->val.string.len > 0 &&
		v->val.string.len <= 18)
	{
		char	   *end;

		memcpy(digits, v->val.string.val, v->val.string.len);
		digits[v->val.string.len] = '\0';
		if (digits[0] >= '0' && digits[0] <= '9')
			value = strtoll(digits, &end, 10);
		if (value >= 0 && *end != '\0')
			value = -1;
	}
	else if (!int64_of(v, &value))
		value = -1;
	if (value < 0 || value > MAX_EXPIRATION)
		bad_value(e, place, number_errcode(v),
				  "Give milliseconds from 0 to 4294967295, as a number or a string of digits.");
	snprintf(digits, sizeof(digits), INT64_FORMAT, value);
	(void) tpc_properties_put_short(e->out, digits, strlen(digits));
}

static void
put_short_string(Encoder *e, const JsonbValue *v, const Place *place)
{
	const char *utf8;
	size_t		len;

	if (v->type != jbvString)
		bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
				  "Give a string.");
	check_length(e, v->val.string.len / 4);
	utf8 = utf8_of(v, &len);
	if (!tpc_properties_put_short(e->out, utf8, len))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("AMQP property \"%s\" is too long",
						place_name(place)),
				 errdetail("In UTF-8 it may have 255 bytes.")));
}

/* The two octets. */
static void
put_octet(Encoder *e, const JsonbValue *v, const Place *place)
{
	bool		is_mode = strcmp(place->name, "delivery_mode") == 0;
	int64		value;

	if (!int64_of(v, &value) || value < (is_mode ? 1 : 0) ||
		value > (is_mode ? 2 : 255))
		bad_value(e, place, ERRCODE_INVALID_PARAMETER_VALUE,
				  is_mode ? "Give 1 (transient) or 2 (persistent)." :
				  "Give a whole number from 0 to 255.");
	tpc_properties_put_int(e->out, (uint64) value, 1);
}

static void
put_property(Encoder *e, const JsonbValue *v, const TpcProperty *property)
{
	Place		place = {NULL, property->name, (int) strlen(property->name), 0};
	int			nested;

	switch (property->kind)
	{
		case TPC_PROPERTY_TEXT:
			if (strcmp(property->name, "expiration") == 0)
				put_expiration(e, v, &place);
			else
				put_short_string(e, v, &place);
			break;
		case TPC_PROPERTY_OCTET:
			put_octet(e, v, &place);
			break;
		case TPC_PROPERTY_TIMESTAMP:
			put_timestamp(e, v, &place);
			break;
		case TPC_PROPERTY_TABLE:
			if (v->type != jbvBinary ||
				!JsonContainerIsObject(v->val.binary.data))
				bad_value(e, &place, ERRCODE_INVALID_PARAMETER_VALUE,
						  "Give an object.");
			nested = tpc_properties_begin_nested(e->out);
			put_table(e, v->val.binary.data, &place, 1);
			tpc_properties_end_nested(e->out, nested);
			break;
	}
	check_length(e, 0);
}

/* Is every key that of a property? */
static void
check_properties(JsonbContainer *object)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	key;

	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		bool		known = false;

		if (token != WJB_KEY)
			continue;
		for (int i = 0; i < TPC_NPROPERTIES && !known; i++)
			known = strlen(tpc_properties[i].name) ==
				(size_t) key.val.string.len &&
				memcmp(tpc_properties[i].name, key.val.string.val,
					   key.val.string.len) == 0;
		if (!known)
		{
			Place		place = {NULL, key.val.string.val, key.val.string.len, 0};

			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown AMQP property \"%s\"",
							place_name(&place)),
					 errhint("The properties are content_type, content_encoding, headers, delivery_mode, priority, correlation_id, reply_to, expiration, message_id, timestamp, type, user_id, app_id and cluster_id; what is the application's own goes into headers.")));
		}
	}
}

/*
 * tpc_properties_encode: see properties.h.  out may have some of it if it
 * raises.
 */
void
tpc_properties_encode(StringInfo out, struct varlena *properties)
{
	Jsonb	   *jb = (Jsonb *) properties;
	Encoder		e = {out, out->len, "property"};
	int			flags = 0;

	if (!JB_ROOT_IS_OBJECT(jb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("AMQP properties must be an object")));
	check_properties(&jb->root);

	tpc_properties_put_int(out, 0, 2);
	for (int i = 0; i < TPC_NPROPERTIES; i++)
	{
		const TpcProperty *property = &tpc_properties[i];
		JsonbValue	v;

		if (getKeyJsonValueFromContainer(&jb->root, property->name,
										 strlen(property->name), &v) == NULL ||
			v.type == jbvNull)
			continue;
		flags |= TPC_PROPERTY_FLAG(i);
		put_property(&e, &v, property);
	}
	out->data[e.start] = (char) (flags >> 8);
	out->data[e.start + 1] = (char) (flags & 0xFF);
}

/*
 * tpc_table_encode: see properties.h.  out may have some of it if it raises.
 */
void
tpc_table_encode(StringInfo out, struct varlena *table)
{
	Jsonb	   *jb = (Jsonb *) table;
	Encoder		e = {out, out->len, "argument"};

	if (!JB_ROOT_IS_OBJECT(jb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("AMQP arguments must be an object")));
	put_table(&e, &jb->root, NULL, 1);
}


/*
 * Bytes to jsonb
 */

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

/* Has the database's encoding all the characters of a text? */
static bool
text_fits(const char *utf8, size_t len)
{
	int			encoding = GetDatabaseEncoding();
	int			size = (int) len * MAX_CONVERSION_GROWTH + 1;
	unsigned char *converted;
	Oid			proc;
	int			done;

	/* SQL_ASCII keeps whatever it is given */
	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII ||
		is_ascii(utf8, len))
		return true;
	proc = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(proc))
		return false;
	converted = palloc(size);
	done = pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding,
										 (unsigned char *) unconstify(char *, utf8),
										 (int) len, converted, size, true);
	pfree(converted);
	return done == (int) len;
}

/* text_fits() holds for each text in it, so it can be converted. */
static struct varlena *
parse(StringInfo json)
{
	char	   *text = json->data;
	Datum		result;

	/* an encoding may have no conversion, which ASCII does not need */
	if (!is_ascii(json->data, json->len))
		text = pg_any_to_server(json->data, json->len, PG_UTF8);
	result = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
	if (text != json->data)
		pfree(text);
	pfree(json->data);
	return (struct varlena *) DatumGetPointer(result);
}

/* tpc_properties_decode: see properties.h. */
struct varlena *
tpc_properties_decode(const char *bytes, size_t len)
{
	StringInfoData json;

	initStringInfo(&json);
	if (tpc_properties_to_json(&json, bytes, len, text_fits))
		return parse(&json);
	pfree(json.data);
	return NULL;
}

/* tpc_table_decode: see properties.h. */
struct varlena *
tpc_table_decode(const char *bytes, size_t len)
{
	StringInfoData json;

	initStringInfo(&json);
	if (tpc_table_to_json(&json, bytes, len, text_fits))
		return parse(&json);
	pfree(json.data);
	return NULL;
}


#ifdef TPC_FAILPOINTS

/*
 * For tests: SQL functions that do nothing else.
 */

PG_FUNCTION_INFO_V1(tpc_test_properties_encode);
PG_FUNCTION_INFO_V1(tpc_test_properties_decode);
PG_FUNCTION_INFO_V1(tpc_test_table_encode);
PG_FUNCTION_INFO_V1(tpc_test_table_decode);

static Datum
encoded(FunctionCallInfo fcinfo,
		void (*encode) (StringInfo out, struct varlena *jsonb))
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoSpaces(&out, VARHDRSZ);
	encode(&out, (struct varlena *) PG_GETARG_JSONB_P(0));
	SET_VARSIZE(out.data, out.len);
	PG_RETURN_BYTEA_P(out.data);
}

static Datum
decoded(FunctionCallInfo fcinfo,
		struct varlena *(*decode) (const char *bytes, size_t len))
{
	bytea	   *bytes = PG_GETARG_BYTEA_PP(0);
	struct varlena *result = decode(VARDATA_ANY(bytes),
									VARSIZE_ANY_EXHDR(bytes));

	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(result);
}

Datum
tpc_test_properties_encode(PG_FUNCTION_ARGS)
{
	return encoded(fcinfo, tpc_properties_encode);
}

Datum
tpc_test_properties_decode(PG_FUNCTION_ARGS)
{
	return decoded(fcinfo, tpc_properties_decode);
}

Datum
tpc_test_table_encode(PG_FUNCTION_ARGS)
{
	return encoded(fcinfo, tpc_table_encode);
}

Datum
tpc_test_table_decode(PG_FUNCTION_ARGS)
{
	return decoded(fcinfo, tpc_table_decode);
}

#endif							/* TPC_FAILPOINTS */
