/*-------------------------------------------------------------------------
 *
 * json.c
 *	  JSON as text, in UTF-8: written, and read.
 *
 * PostgreSQL's JSON lexer splits what is read into tokens; the grammar is here
 * rather than pg_parse_json()'s, for two reasons.  A message must not be able
 * to raise an error: the parser recurses, so it checks the stack's depth, and
 * to hand over strings it decodes escapes into the database's encoding, which
 * fails for characters that have no place there.  And it would mix encodings:
 * the rest of the body is still UTF-8.  So the lexer leaves escapes as they
 * are, unescape() makes UTF-8 of them, and values of unknown shape are
 * followed with a stack of fixed size.
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

/*
 * Reading
 */

/* tpc_json_fail: false; why counts if it is the first that was wrong. */
bool
tpc_json_fail(TpcJsonParser *parser, const char *why)
{
	if (parser->why == NULL)
		parser->why = why;
	return false;
}

/* tpc_json_advance: consume the current token. */
bool
tpc_json_advance(TpcJsonParser *parser)
{
	if (json_lex(parser->lex) != JSON_SUCCESS)
		return tpc_json_fail(parser, "body is not valid JSON");
	return true;
}

/* tpc_json_expect: consume the current token, which has to be this one. */
bool
tpc_json_expect(TpcJsonParser *parser, JsonTokenType token)
{
	if (parser->lex->token_type != token)
		return tpc_json_fail(parser, "body is not valid JSON");
	return tpc_json_advance(parser);
}

/*
 * hex4: the four hexadecimal digits of an escape that the lexer has accepted.
 */
static pg_wchar
hex4(const char *s)
{
	pg_wchar	value = 0;

	for (int i = 0; i < 4; i++)
	{
		char		c = s[i];

		value <<= 4;
		if (c >= '0' && c <= '9')
			value |= c - '0';
		else
			value |= (c | 0x20) - 'a' + 10;
	}
	return value;
}

/*
 * unescape: the UTF-8 that a JSON string stands for.
 *
 * [s, end) is the inside of a string token, in valid UTF-8.  At most size - 1
 * bytes and a zero go to out, whole characters only; *clipped says whether
 * that cut the string.  With out NULL, it is only checked.  False if there is
 * no such UTF-8, or it would contain a zero.
 */
static bool
unescape(const char *s, const char *end, char *out, size_t size,
		 bool *clipped)
{
	size_t		used = 0;
	bool		full = (out == NULL);

	while (s < end)
	{
		unsigned char buf[8];
		const char *piece = s;
		size_t		len;

		if (full && (s = memchr(s, '\\', end - s)) == NULL)
			break;				/* nothing left to check or to copy */

		if (*s != '\\')
		{
			len = pg_encoding_mblen(PG_UTF8, s);
			s += len;
		}
		else if (s[1] != 'u')
		{
			switch (s[1])
			{
				case 'b':
					buf[0] = '\b';
					break;
				case 'f':
					buf[0] = '\f';
					break;
				case 'n':
					buf[0] = '\n';
					break;
				case 'r':
					buf[0] = '\r';
					break;
				case 't':
					buf[0] = '\t';
					break;
				default:
					buf[0] = (unsigned char) s[1];
			}
			piece = (char *) buf;
			len = 1;
			s += 2;
		}
		else
		{
			pg_wchar	c = hex4(s + 2);

			s += 6;
			if (is_utf16_surrogate_first(c))
			{
				pg_wchar	second;

				if (end - s < 6 || s[0] != '\\' || s[1] != 'u')
					return false;
				second = hex4(s + 2);
				if (!is_utf16_surrogate_second(second))
					return false;
				c = surrogate_pair_to_codepoint(c, second);
				s += 6;
			}
			else if (c == 0 || is_utf16_surrogate_second(c))
				return false;
			unicode_to_utf8(c, buf);
			piece = (char *) buf;
			len = pg_encoding_mblen(PG_UTF8, piece);
		}

		if (full)
			continue;
		if (used + len >= size)
		{
			full = true;
			*clipped = true;
			continue;
		}
		memcpy(out + used, piece, len);
		used += len;
	}

	if (out != NULL)
		out[used] = '\0';
	return true;
}

/*
 * tpc_json_read_token: the current token, a string, as unescape() gives it;
 * the token is not consumed.
 */
bool
tpc_json_read_token(TpcJsonParser *parser, char *out, size_t size,
					bool *clipped)
{
	const JsonLexContext *lex = parser->lex;

	Assert(lex->token_type == JSON_TOKEN_STRING);
	*clipped = false;
	if (!unescape(lex->token_start + 1, lex->token_terminator - 1,
				  out, size, clipped))
		return tpc_json_fail(parser,
							 "a string has U+0000 or half a surrogate pair");
	return true;
}

/* read_key: consume a field's name and the colon; "" if it is too long. */
static bool
read_key(TpcJsonParser *parser, char *out, size_t size)
{
	bool		clipped;

	if (parser->lex->token_type != JSON_TOKEN_STRING)
		return tpc_json_fail(parser, "body is not valid JSON");
	if (!tpc_json_read_token(parser, out, size, &clipped) ||
		!tpc_json_advance(parser))
		return false;
	if (clipped)
		out[0] = '\0';
	return tpc_json_expect(parser, JSON_TOKEN_COLON);
}

/*
 * tpc_json_skip_value: consume a value of any shape, and check that it is one.
 */
bool
tpc_json_skip_value(TpcJsonParser *parser)
{
	JsonTokenType closer[TPC_JSON_MAX_DEPTH];	/* what ends each level */
	int			depth = 0;
	bool		clipped;

	for (;;)
	{
		bool		in_object;

		/* The current token begins a value. */
		switch (parser->lex->token_type)
		{
			case JSON_TOKEN_OBJECT_START:
			case JSON_TOKEN_ARRAY_START:
				if (depth == TPC_JSON_MAX_DEPTH)
					return tpc_json_fail(parser, "body is nested too deeply");
				in_object =
					parser->lex->token_type == JSON_TOKEN_OBJECT_START;
				closer[depth] = in_object ?
					JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END;
				if (!tpc_json_advance(parser))
					return false;
				if (parser->lex->token_type == closer[depth])
					break;		/* empty, so this token ends a value */
				depth++;
				if (in_object && !read_key(parser, NULL, 0))
					return false;
				continue;

			case JSON_TOKEN_STRING:
				if (!tpc_json_read_token(parser, NULL, 0, &clipped))
					return false;
				break;

			case JSON_TOKEN_NUMBER:
			case JSON_TOKEN_TRUE:
			case JSON_TOKEN_FALSE:
			case JSON_TOKEN_NULL:
				break;

			default:
				return tpc_json_fail(parser, "body is not valid JSON");
		}

		/* The current token ends a value, and maybe what it is in. */
		for (;;)
		{
			if (!tpc_json_advance(parser))
				return false;
			if (depth == 0)
				return true;
			if (parser->lex->token_type != closer[depth - 1])
				break;
			depth--;
		}
		if (!tpc_json_expect(parser, JSON_TOKEN_COMMA))
			return false;
		if (closer[depth - 1] == JSON_TOKEN_OBJECT_END &&
			!read_key(parser, NULL, 0))
			return false;
	}
}

/*
 * tpc_json_parse_object: consume an object, its known fields into *target.
 */
bool
tpc_json_parse_object(TpcJsonParser *parser, const TpcJsonField *fields,
					  int nfields, void *target)
{
	uint32		seen = 0;

	if (parser->lex->token_type != JSON_TOKEN_OBJECT_START)
		return false;
	if (!tpc_json_advance(parser))
		return false;
	if (parser->lex->token_type != JSON_TOKEN_OBJECT_END)
	{
		for (;;)
		{
			char		key[TPC_JSON_WORD_SIZE];
			int			i;

			if (!read_key(parser, key, sizeof(key)))
				return false;
			for (i = 0; i < nfields; i++)
				if (strcmp(key, fields[i].name) == 0)
					break;
			if (i < nfields)
			{
				if (seen & ((uint32) 1 << i))
					return tpc_json_fail(parser, fields[i].repeated);
				seen |= (uint32) 1 << i;
			}
			if (i == nfields ||
				(parser->lex->token_type == JSON_TOKEN_NULL &&
				 !fields[i].required))
			{
				if (!tpc_json_skip_value(parser))
					return false;
			}
			else if (!fields[i].parse(parser, target))
				return tpc_json_fail(parser, fields[i].malformed);

			if (parser->lex->token_type != JSON_TOKEN_COMMA)
				break;
			if (!tpc_json_advance(parser))
				return false;
		}
	}
	if (!tpc_json_expect(parser, JSON_TOKEN_OBJECT_END))
		return false;

	for (int i = 0; i < nfields; i++)
		if (fields[i].required && !(seen & ((uint32) 1 << i)))
			return tpc_json_fail(parser, fields[i].missing);
	return true;
}

/*
 * tpc_json_parse_text: consume a string into *out, palloc'd, cut to maxlen
 * bytes.
 */
bool
tpc_json_parse_text(TpcJsonParser *parser, size_t maxlen, char **out)
{
	JsonLexContext *lex = parser->lex;
	size_t		size;
	bool		clipped;

	if (lex->token_type != JSON_TOKEN_STRING)
		return false;

	/* The token with its quotes is longer than what it stands for. */
	size = Min(maxlen + 1, (size_t) (lex->token_terminator -
									 lex->token_start));
	*out = palloc(size);
	return tpc_json_read_token(parser, *out, size, &clipped) &&
		tpc_json_advance(parser);
}

/* tpc_json_parse_word: consume a string that has to be one of these. */
bool
tpc_json_parse_word(TpcJsonParser *parser, const char *const *words,
					int nwords, int *index)
{
	char		word[TPC_JSON_WORD_SIZE];
	bool		clipped;

	if (parser->lex->token_type != JSON_TOKEN_STRING)
		return false;
	if (!tpc_json_read_token(parser, word, sizeof(word), &clipped) || clipped)
		return false;
	for (int i = 0; i < nwords; i++)
	{
		if (strcmp(word, words[i]) == 0)
		{
			*index = i;
			return tpc_json_advance(parser);
		}
	}
	return false;
}
