/*-------------------------------------------------------------------------
 *
 * json.c
 *	  JSON that is written as text, in UTF-8.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "mb/pg_wchar.h"

#include "json.h"

/*
 * tpc_json_append_string: append at most maxlen bytes of a string, in quotes.
 *
 * The cut is between characters, and counted before escaping, as the reader
 * counts.  Bytes that are not UTF-8, and NUL, which no text in PostgreSQL can
 * have, become "?".
 */
void
tpc_json_append_string(StringInfo out, const char *str, size_t len,
					   size_t maxlen)
{
	static const char hex[] = "0123456789abcdef";
	const char *end = str + len;
	const char *limit = str + Min(maxlen, len);

	appendStringInfoChar(out, '"');
	while (str < limit)
	{
		unsigned char c = (unsigned char) *str;
		int			width = 1;

		if (IS_HIGHBIT_SET(c))
		{
			width = pg_encoding_verifymbchar(PG_UTF8, str,
											 (int) Min(end - str, 4));
			if (width < 0)
			{
				width = 1;
				appendStringInfoChar(out, '?');
			}
			else if (width > limit - str)
				break;
			else
				appendBinaryStringInfo(out, str, width);
		}
		else if (c == '\0')
			appendStringInfoChar(out, '?');
		else if (c == '"' || c == '\\')
		{
			appendStringInfoChar(out, '\\');
			appendStringInfoChar(out, c);
		}
		else if (c == '\n')
			appendStringInfoString(out, "\\n");
		else if (c == '\r')
			appendStringInfoString(out, "\\r");
		else if (c == '\t')
			appendStringInfoString(out, "\\t");
		else if (c < 0x20)
		{
			appendStringInfoString(out, "\\u00");
			appendStringInfoChar(out, hex[c >> 4]);
			appendStringInfoChar(out, hex[c & 0xF]);
		}
		else
			appendStringInfoChar(out, c);
		str += width;
	}
	appendStringInfoChar(out, '"');
}
