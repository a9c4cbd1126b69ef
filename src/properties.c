/*-------------------------------------------------------------------------
 *
 * properties.c
 *	  AMQP's properties and tables: the bytes.
 *
 * The encoding is that of AMQP 0-9-1 as RabbitMQ has it: its types of field
 * values differ from the standard's in a few letters, and "L" is signed like
 * "l".  Whoever may publish decides on the bytes, as the broker hands many of
 * them on unseen; so every read is bounded by what is left, nesting has a
 * bound, and what is not known is refused, since nothing says how long it is.
 *
 * The JSON is such that encoding it again gives the same values.  Where plain
 * JSON would not (a double that is a whole number, 16 bits, binary data), a
 * value is an object of one entry whose name says the type and begins with
 * "@"; a name that begins with "@" in a table has one more put in front of it,
 * so that no table is taken for such a value.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include <math.h>

#include "common/shortest_dec.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "json.h"
#include "properties.h"

/* More than any frame has; keeps lengths within int. */
#define MAX_LEN 0x1000000

/* 9999-12-31 23:59:59; what is later is not a date in ISO 8601. */
#define MAX_ISO_SECONDS INT64CONST(253402300799)

/* Bytes that are not yet read, or a string of them. */
typedef struct Bytes
{
	const char *p;
	const char *end;
} Bytes;

typedef struct Writer
{
	StringInfo	out;
	TpcTextFits fits;
} Writer;

static bool table_to_json(Writer *w, Bytes in, int depth);
static bool value_to_json(Writer *w, Bytes *in, int depth);

const TpcProperty tpc_properties[TPC_NPROPERTIES] = {
	{"content_type", TPC_PROPERTY_TEXT},
	{"content_encoding", TPC_PROPERTY_TEXT},
	{"headers", TPC_PROPERTY_TABLE},
	{"delivery_mode", TPC_PROPERTY_OCTET},
	{"priority", TPC_PROPERTY_OCTET},
	{"correlation_id", TPC_PROPERTY_TEXT},
	{"reply_to", TPC_PROPERTY_TEXT},
	{"expiration", TPC_PROPERTY_TEXT},
	{"message_id", TPC_PROPERTY_TEXT},
	{"timestamp", TPC_PROPERTY_TIMESTAMP},
	{"type", TPC_PROPERTY_TEXT},
	{"user_id", TPC_PROPERTY_TEXT},
	{"app_id", TPC_PROPERTY_TEXT},
	{"cluster_id", TPC_PROPERTY_TEXT}
};

#define MESSAGE_ID 8

/* Those that no property has; the last one says that more flags follow. */
#define UNKNOWN_FLAGS (TPC_PROPERTY_FLAG(TPC_NPROPERTIES - 1) - 1)

static const TpcFieldType field_types[] = {
	{"@int8", 'b', 1, true},
	{"@uint8", 'B', 1, false},
	{"@int16", 's', 2, true},
	{"@uint16", 'u', 2, false},
	{"@int32", 'I', 4, true},
	{"@uint32", 'i', 4, false},
	{"@int64", 'l', 8, true},
	{"@float", 'f', 0, false},
	{"@double", 'd', 0, false},
	{"@decimal", 'D', 0, false},
	{"@timestamp", 'T', 0, false},
	{"@bytes", 'x', 0, false},
	{"@string", 'S', 0, false}
};

/* tpc_field_type: by its name; NULL if there is none. */
const TpcFieldType *
tpc_field_type(const char *name, size_t len)
{
	for (size_t i = 0; i < lengthof(field_types); i++)
	{
		if (strlen(field_types[i].name) == len &&
			memcmp(field_types[i].name, name, len) == 0)
			return &field_types[i];
	}
	return NULL;
}


/*
 * Reading
 */

/* None may be given as NULL. */
static Bytes
bytes_of(const char *p, size_t len)
{
	Bytes		bytes;

	bytes.p = len > 0 ? p : "";
	bytes.end = bytes.p + len;
	return bytes;
}

static bool
take(Bytes *in, uint64 n, Bytes *taken)
{
	if (n > (uint64) (in->end - in->p))
		return false;
	taken->p = in->p;
	taken->end = in->p + n;
	in->p = taken->end;
	return true;
}

static bool
take_int(Bytes *in, int size, uint64 *value)
{
	Bytes		taken;

	if (!take(in, size, &taken))
		return false;
	*value = 0;
	for (int i = 0; i < size; i++)
		*value = *value << 8 | (unsigned char) taken.p[i];
	return true;
}

/* A string behind its length, which has so many bytes itself. */
static bool
take_string(Bytes *in, int size, Bytes *taken)
{
	uint64		len;

	return take_int(in, size, &len) && take(in, len, taken);
}

/* Is it UTF-8?  A NUL is no text in PostgreSQL, and the check stops at one. */
static bool
is_text(Bytes str)
{
	int			len = (int) (str.end - str.p);

	return pg_encoding_verifymbstr(PG_UTF8, str.p, len) == len;
}

static bool
fits(Writer *w, const char *utf8, size_t len)
{
	return w->fits == NULL || w->fits(utf8, len);
}

/*
 * A text that has to be one, in quotes: what cannot be represented becomes
 * "?".  Before: what to put in front of it.
 */
static void
append_short(Writer *w, const char *before, Bytes str)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, before);
	if (is_text(str) && fits(w, str.p, str.end - str.p))
		appendBinaryStringInfo(&text, str.p, (int) (str.end - str.p));
	else
	{
		while (str.p < str.end)
		{
			int			len = 1;

			if (IS_HIGHBIT_SET(*str.p))
				len = pg_encoding_verifymbchar(PG_UTF8, str.p,
											   (int) Min(str.end - str.p, 4));
			if (len > 0 && *str.p != '\0' && fits(w, str.p, len))
				appendBinaryStringInfo(&text, str.p, len);
			else
				appendStringInfoChar(&text, '?');
			str.p += Max(len, 1);
		}
	}
	tpc_json_append_string(w->out, text.data, text.len, text.len);
	pfree(text.data);
}

/* A name in a table. */
static void
append_name(Writer *w, Bytes name)
{
	append_short(w, name.p < name.end && *name.p == '@' ? "@" : "", name);
	appendStringInfoChar(w->out, ':');
}

static void
append_bytes(Writer *w, Bytes str)
{
	int			len = (int) (str.end - str.p);
	int			size = pg_b64_enc_len(len);
	int			encoded;

	appendStringInfoString(w->out, "{\"@bytes\":\"");
	enlargeStringInfo(w->out, size + 1);
	encoded = tpc_base64_encode(str.p, len, w->out->data + w->out->len, size);
	Assert(encoded >= 0);
	w->out->len += encoded;
	appendStringInfoString(w->out, "\"}");
}

/* What a long string says, if it is a text here; else its bytes. */
static void
append_long(Writer *w, Bytes str)
{
	if (is_text(str) && fits(w, str.p, str.end - str.p))
		tpc_json_append_string(w->out, str.p, str.end - str.p,
							   str.end - str.p);
	else
		append_bytes(w, str);
}

/* A date if ISO 8601 has it (any that is meant is), else the number. */
static void
append_timestamp(Writer *w, uint64 seconds)
{
	int64		day = (int64) (seconds / 86400);
	int			second = (int) (seconds % 86400);
	int64		era;
	int			doe,
				yoe,
				doy,
				mp;
	int			month;
	int			year;

	if (seconds > MAX_ISO_SECONDS)
	{
		appendStringInfo(w->out, UINT64_FORMAT, seconds);
		return;
	}

	/*
	 * Years that begin in March, in eras of 400: then the day that comes and
	 * goes is the last one, and all eras have as many days.
	 */
	day += 719468;
	era = day / 146097;
	doe = (int) (day % 146097);
	yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	mp = (5 * doy + 2) / 153;
	month = mp < 10 ? mp + 3 : mp - 9;
	year = (int) (yoe + era * 400) + (month <= 2 ? 1 : 0);
	appendStringInfo(w->out, "\"%04d-%02d-%02dT%02d:%02d:%02dZ\"",
					 year, month, doy - (153 * mp + 2) / 5 + 1,
					 second / 3600, second / 60 % 60, second % 60);
}

/*
 * A double or float, as its shortest digits.  JSON has no infinity, and jsonb
 * no negative zero: these are strings.
 */
static void
append_real(Writer *w, const char *type, const char *digits, bool number)
{
	const char *quote = number ? "" : "\"";

	if (type != NULL)
		appendStringInfo(w->out, "{\"%s\":%s%s%s}", type, quote, digits,
						 quote);
	else
		appendStringInfoString(w->out, digits);
}

static bool
float_to_json(Writer *w, Bytes *in)
{
	uint64		bits64;
	uint32		bits;
	float		value;
	char		digits[FLOAT_SHORTEST_DECIMAL_LEN];

	if (!take_int(in, 4, &bits64))
		return false;
	bits = (uint32) bits64;
	memcpy(&value, &bits, sizeof(value));
	float_to_shortest_decimal_buf(value, digits);
	append_real(w, "@float", digits,
				isfinite(value) && !(value == 0 && signbit(value)));
	return true;
}

/* Plain only where it has a fraction: else it would come back an integer. */
static bool
double_to_json(Writer *w, Bytes *in)
{
	uint64		bits;
	double		value;
	char		digits[DOUBLE_SHORTEST_DECIMAL_LEN];

	if (!take_int(in, 8, &bits))
		return false;
	memcpy(&value, &bits, sizeof(value));
	double_to_shortest_decimal_buf(value, digits);
	append_real(w, isfinite(value) && value != floor(value) ? NULL : "@double",
				digits, isfinite(value) && !(value == 0 && signbit(value)));
	return true;
}

/* An octet that says how many of the digits are behind the point. */
static bool
decimal_to_json(Writer *w, Bytes *in)
{
	uint64		scale;
	uint64		value;
	char		digits[256 + 1 + 1];
	int			len;

	if (!take_int(in, 1, &scale) || !take_int(in, 4, &value))
		return false;
	len = snprintf(digits, sizeof(digits), "%0*u", (int) scale + 1,
				   (unsigned int) value);
	appendStringInfo(w->out, "{\"@decimal\":\"%.*s", len - (int) scale,
					 digits);
	if (scale > 0)
		appendStringInfo(w->out, ".%s", digits + len - scale);
	appendStringInfoString(w->out, "\"}");
	return true;
}

/* An integer; plain if type is NULL. */
static bool
int_to_json(Writer *w, Bytes *in, int size, const TpcFieldType *type)
{
	uint64		value;

	if (!take_int(in, size, &value))
		return false;
	if (type == NULL || type->is_signed)
	{
		int			unused = 64 - 8 * size;

		/* The sign comes down with the shift. */
		value = (uint64) ((int64) (value << unused) >> unused);
	}
	if (type == NULL)
		appendStringInfo(w->out, INT64_FORMAT, (int64) value);
	else
		appendStringInfo(w->out, "{\"%s\":" INT64_FORMAT "}", type->name,
						 (int64) value);
	return true;
}

static bool
array_to_json(Writer *w, Bytes in, int depth)
{
	const char *start = in.p;

	if (depth > TPC_TABLE_MAX_DEPTH)
		return false;
	appendStringInfoChar(w->out, '[');
	while (in.p < in.end)
	{
		if (in.p > start)
			appendStringInfoChar(w->out, ',');
		if (!value_to_json(w, &in, depth))
			return false;
	}
	appendStringInfoChar(w->out, ']');
	return true;
}

/* A value behind its type; depth is that of the table or array it is in. */
static bool
value_to_json(Writer *w, Bytes *in, int depth)
{
	uint64		kind;
	uint64		value;
	Bytes		nested;

	if (!take_int(in, 1, &kind))
		return false;
	switch (kind)
	{
		case 'V':
			appendStringInfoString(w->out, "null");
			return true;

		case 't':
			if (!take_int(in, 1, &value))
				return false;
			appendStringInfoString(w->out, value != 0 ? "true" : "false");
			return true;

		case 'I':
			return int_to_json(w, in, 4, NULL);

		case 'l':
		case 'L':
			return int_to_json(w, in, 8, NULL);

		case 'S':
			if (!take_string(in, 4, &nested))
				return false;
			append_long(w, nested);
			return true;

		case 'x':
			if (!take_string(in, 4, &nested))
				return false;
			append_bytes(w, nested);
			return true;

		case 'F':
			return take_string(in, 4, &nested) &&
				table_to_json(w, nested, depth + 1);

		case 'A':
			return take_string(in, 4, &nested) &&
				array_to_json(w, nested, depth + 1);

		case 'T':
			if (!take_int(in, 8, &value))
				return false;
			appendStringInfoString(w->out, "{\"@timestamp\":");
			append_timestamp(w, value);
			appendStringInfoChar(w->out, '}');
			return true;

		case 'f':
			return float_to_json(w, in);

		case 'd':
			return double_to_json(w, in);

		case 'D':
			return decimal_to_json(w, in);
	}

	/* The integers of other sizes. */
	for (size_t i = 0; i < lengthof(field_types); i++)
	{
		if (field_types[i].kind == (char) kind && field_types[i].size > 0)
			return int_to_json(w, in, field_types[i].size, &field_types[i]);
	}
	return false;
}

static bool
table_to_json(Writer *w, Bytes in, int depth)
{
	const char *start = in.p;
	Bytes		name;

	if (depth > TPC_TABLE_MAX_DEPTH)
		return false;
	appendStringInfoChar(w->out, '{');
	while (in.p < in.end)
	{
		if (in.p > start)
			appendStringInfoChar(w->out, ',');
		if (!take_string(&in, 1, &name))
			return false;
		append_name(w, name);
		if (!value_to_json(w, &in, depth))
			return false;
	}
	appendStringInfoChar(w->out, '}');
	return true;
}

static bool
property_to_json(Writer *w, Bytes *in, TpcPropertyKind kind)
{
	uint64		value;
	Bytes		str;

	switch (kind)
	{
		case TPC_PROPERTY_TEXT:
			if (!take_string(in, 1, &str))
				return false;
			append_short(w, "", str);
			return true;

		case TPC_PROPERTY_OCTET:
			if (!take_int(in, 1, &value))
				return false;
			appendStringInfo(w->out, "%d", (int) value);
			return true;

		case TPC_PROPERTY_TIMESTAMP:
			if (!take_int(in, 8, &value))
				return false;
			append_timestamp(w, value);
			return true;

		case TPC_PROPERTY_TABLE:
			return take_string(in, 4, &str) && table_to_json(w, str, 1);
	}
	return false;
}

static bool
properties_to_json(Writer *w, Bytes in)
{
	uint64		flags;
	const char *comma = "";

	if (!take_int(&in, 2, &flags) || (flags & UNKNOWN_FLAGS) != 0)
		return false;
	appendStringInfoChar(w->out, '{');
	for (int i = 0; i < TPC_NPROPERTIES; i++)
	{
		if ((flags & TPC_PROPERTY_FLAG(i)) == 0)
			continue;
		appendStringInfo(w->out, "%s\"%s\":", comma, tpc_properties[i].name);
		comma = ",";
		if (!property_to_json(w, &in, tpc_properties[i].kind))
			return false;
	}
	appendStringInfoChar(w->out, '}');
	return in.p == in.end;
}

/* Take back what was appended to out. */
static bool
take_back(StringInfo out, int len)
{
	out->len = len;
	out->data[len] = '\0';
	return false;
}

/* tpc_properties_to_json: never raises, but for want of memory. */
bool
tpc_properties_to_json(StringInfo out, const char *bytes, size_t len,
					   TpcTextFits fits)
{
	Writer		w = {out, fits};
	Bytes		in = bytes_of(bytes, len);
	int			before = out->len;

	return (len <= MAX_LEN && properties_to_json(&w, in)) ||
		take_back(out, before);
}

/* tpc_table_to_json: never raises, but for want of memory. */
bool
tpc_table_to_json(StringInfo out, const char *bytes, size_t len,
				  TpcTextFits fits)
{
	Writer		w = {out, fits};
	Bytes		in = bytes_of(bytes, len);
	int			before = out->len;

	return (len <= MAX_LEN && table_to_json(&w, in, 1)) ||
		take_back(out, before);
}

/* Read over a property. */
static bool
skip_property(Bytes *in, TpcPropertyKind kind, Bytes *str)
{
	uint64		value;

	switch (kind)
	{
		case TPC_PROPERTY_TEXT:
			return take_string(in, 1, str);
		case TPC_PROPERTY_OCTET:
			return take_int(in, 1, &value);
		case TPC_PROPERTY_TIMESTAMP:
			return take_int(in, 8, &value);
		case TPC_PROPERTY_TABLE:
			return take_string(in, 4, str);
	}
	return false;
}

/*
 * tpc_properties_message_id: never raises, allocates nothing.
 *
 * The list has to be whole; what is in the headers is not looked at.
 */
bool
tpc_properties_message_id(const char *bytes, size_t len, const char **id,
						  size_t *id_len)
{
	Bytes		in = bytes_of(bytes, len);
	Bytes		found = {NULL, NULL};
	uint64		flags;

	if (len > MAX_LEN || !take_int(&in, 2, &flags) ||
		(flags & UNKNOWN_FLAGS) != 0)
		return false;
	for (int i = 0; i < TPC_NPROPERTIES; i++)
	{
		Bytes		str;

		if ((flags & TPC_PROPERTY_FLAG(i)) == 0)
			continue;
		if (!skip_property(&in, tpc_properties[i].kind, &str))
			return false;
		if (i == MESSAGE_ID)
			found = str;
	}
	if (in.p != in.end || found.p == NULL || !is_text(found))
		return false;
	*id = found.p;
	*id_len = found.end - found.p;
	return true;
}


/*
 * Writing
 */

/* tpc_properties_put_int: the low bytes of value, high ones first. */
void
tpc_properties_put_int(StringInfo out, uint64 value, int size)
{
	while (size-- > 0)
		appendStringInfoChar(out, (char) (value >> (8 * size) & 0xFF));
}

/* tpc_properties_put_short: a text of up to 255 bytes in UTF-8. */
bool
tpc_properties_put_short(StringInfo out, const char *text, size_t len)
{
	if (len > 255)
		return false;
	tpc_properties_put_int(out, len, 1);
	appendBinaryStringInfo(out, text, (int) len);
	return true;
}

void
tpc_properties_put_long(StringInfo out, const char *bytes, size_t len)
{
	tpc_properties_put_int(out, len, 4);
	appendBinaryStringInfo(out, bytes, (int) len);
}

/*
 * tpc_properties_put_decimal: digits with a point between them or without.
 *
 * As many as are behind the point stay there.
 */
bool
tpc_properties_put_decimal(StringInfo out, const char *text, size_t len)
{
	uint64		value = 0;
	int			scale = -1;		/* no point yet */
	int			ndigits = 0;

	for (size_t i = 0; i < len; i++)
	{
		if (text[i] == '.' && scale < 0 && ndigits > 0)
			scale = 0;
		else if (text[i] >= '0' && text[i] <= '9')
		{
			value = value * 10 + (text[i] - '0');
			ndigits++;
			if (scale >= 0)
				scale++;
			if (value > PG_UINT32_MAX || scale > 255)
				return false;
		}
		else
			return false;
	}
	/* a point has digits on both of its sides */
	if (ndigits == 0 || scale == 0)
		return false;
	tpc_properties_put_int(out, Max(scale, 0), 1);
	tpc_properties_put_int(out, value, 4);
	return true;
}

/*
 * tpc_properties_begin_nested: what is put from here to the end_nested is
 * preceded by its length.  Returns what end_nested is to be given.
 */
int
tpc_properties_begin_nested(StringInfo out)
{
	tpc_properties_put_int(out, 0, 4);
	return out->len;
}

void
tpc_properties_end_nested(StringInfo out, int start)
{
	uint32		len = (uint32) (out->len - start);

	for (int i = 1; i <= 4; i++)
	{
		out->data[start - i] = (char) (len & 0xFF);
		len >>= 8;
	}
}

/* So many digits, as a number up to max. */
static bool
take_digits(Bytes *in, int n, int max, int *value)
{
	Bytes		digits;

	if (!take(in, n, &digits))
		return false;
	*value = 0;
	for (int i = 0; i < n; i++)
	{
		if (digits.p[i] < '0' || digits.p[i] > '9')
			return false;
		*value = *value * 10 + (digits.p[i] - '0');
	}
	return *value <= max;
}

/* One of these characters, if it comes next. */
static bool
take_char(Bytes *in, const char *chars)
{
	if (in->p == in->end || *in->p == '\0' || strchr(chars, *in->p) == NULL)
		return false;
	in->p++;
	return true;
}

/* Days since 1970-01-01; for a date that there is. */
static int64
day_number(int year, int month, int day)
{
	int64		y = month <= 2 ? year - 1 : year;
	int64		era = (y >= 0 ? y : y - 399) / 400;
	int64		yoe = y - era * 400;
	int64		doy = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 +
	day - 1;

	/* see append_timestamp() */
	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

/* An offset from UTC, in minutes: Z, +hh, +hhmm or +hh:mm. */
static bool
take_zone(Bytes *in, int *minutes)
{
	bool		west;
	int			hour;
	int			minute = 0;

	*minutes = 0;
	if (take_char(in, "Zz"))
		return true;
	west = in->p < in->end && *in->p == '-';
	if (!take_char(in, "+-") || !take_digits(in, 2, 15, &hour))
		return false;
	if (in->p < in->end)
	{
		(void) take_char(in, ":");
		if (!take_digits(in, 2, 59, &minute))
			return false;
	}
	*minutes = hour * 60 + minute;
	if (west)
		*minutes = -*minutes;
	return true;
}

/*
 * tpc_properties_parse_timestamp: a date and time in ISO 8601, also as
 * PostgreSQL writes it, to seconds since 1970; fractions of them are cut off.
 * There has to be an offset from UTC.
 */
bool
tpc_properties_parse_timestamp(const char *text, size_t len, uint64 *seconds)
{
	static const int days_of[] = {
		31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
	};
	Bytes		in = bytes_of(text, len);
	int			year,
				month,
				day,
				hour,
				minute;
	int			second = 0;
	int			zone;
	int64		result;

	if (!take_digits(&in, 4, 9999, &year) || !take_char(&in, "-") ||
		!take_digits(&in, 2, 12, &month) || month < 1 ||
		!take_char(&in, "-") ||
		!take_digits(&in, 2, days_of[month - 1], &day) || day < 1 ||
		!take_char(&in, "Tt ") ||
		!take_digits(&in, 2, 23, &hour) || !take_char(&in, ":") ||
		!take_digits(&in, 2, 59, &minute))
		return false;
	if (month == 2 && day == 29 &&
		(year % 4 != 0 || (year % 100 == 0 && year % 400 != 0)))
		return false;
	if (take_char(&in, ":"))
	{
		/* 60: a leap second, which is the next one to us */
		if (!take_digits(&in, 2, 60, &second))
			return false;
		if (take_char(&in, ".,"))
		{
			if (!take_char(&in, "0123456789"))
				return false;
			while (take_char(&in, "0123456789"))
				;
		}
	}
	if (!take_zone(&in, &zone) || in.p != in.end)
		return false;

	result = day_number(year, month, day) * 86400 + hour * 3600 +
		(minute - zone) * 60 + second;
	if (result < 0)
		return false;
	*seconds = (uint64) result;
	return true;
}
