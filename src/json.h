/*-------------------------------------------------------------------------
 *
 * json.h
 *	  JSON as text, in UTF-8: written, and read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_JSON_H
#define TPC_JSON_H

#include "common/jsonapi.h"
#include "lib/stringinfo.h"

/* Deepest nesting inside a value that nobody looks into, as an argument. */
#define TPC_JSON_MAX_DEPTH 1000

/* Longer than any field's name or any word that stands for an enum. */
#define TPC_JSON_WORD_SIZE 32

typedef struct TpcJsonParser
{
	JsonLexContext *lex;		/* its current token is not yet consumed */
	const char *why;			/* set once something is wrong */
} TpcJsonParser;

/* A field of a JSON object that has a meaning to the caller. */
typedef struct TpcJsonField
{
	const char *name;
	bool		required;		/* else it may be missing or null */
	bool		(*parse) (TpcJsonParser *parser, void *target);
	const char *missing;		/* the reasons, as constant strings */
	const char *malformed;
	const char *repeated;
} TpcJsonField;

#define TPC_JSON_FIELD(name, required, parse) \
	{name, required, parse, \
	 "field \"" name "\" is missing", \
	 "field \"" name "\" is malformed", \
	 "field \"" name "\" is repeated"}

extern void tpc_json_append_string(StringInfo out, const char *str,
								   size_t len, size_t maxlen);

/*
 * Reading what is valid UTF-8.  False if something is wrong, and then
 * parser->why says what, or is left to the caller: none raises an error of
 * its own.
 */
extern bool tpc_json_fail(TpcJsonParser *parser, const char *why);
extern bool tpc_json_advance(TpcJsonParser *parser);
extern bool tpc_json_expect(TpcJsonParser *parser, JsonTokenType token);
extern bool tpc_json_read_token(TpcJsonParser *parser, char *out, size_t size,
								bool *clipped);
extern bool tpc_json_skip_value(TpcJsonParser *parser);
extern bool tpc_json_parse_object(TpcJsonParser *parser,
								  const TpcJsonField *fields, int nfields,
								  void *target);
extern bool tpc_json_parse_text(TpcJsonParser *parser, size_t maxlen,
								char **out);
extern bool tpc_json_parse_word(TpcJsonParser *parser,
								const char *const *words, int nwords,
								int *index);

#endif							/* TPC_JSON_H */
