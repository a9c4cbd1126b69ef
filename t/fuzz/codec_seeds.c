/*-------------------------------------------------------------------------
 *
 * codec_seeds.c
 *	  Seeds of codec_fuzz: the samples, in the form it takes apart.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "lib/stringinfo.h"

#include "fuzz.h"
#include "samples.h"

static FuzzEmit emit_seed;

static void
put_text(StringInfo out, TpcSlice text)
{
	if (text.ptr == NULL)
	{
		appendStringInfoChar(out, (char) 255);
		return;
	}
	appendStringInfoChar(out, (char) text.len);
	appendBinaryStringInfo(out, text.ptr, (int) text.len);
}

static void
seed(const char *name, const TpcWire *wire)
{
	StringInfoData out;

	initStringInfo(&out);
	put_text(&out, wire->type);
	put_text(&out, wire->correlation_id);
	put_text(&out, wire->app_id);
	put_text(&out, wire->user_id);
	put_text(&out, wire->expiration);
	put_text(&out, wire->from);
	put_text(&out, wire->floor);
	appendStringInfoChar(&out, (char) wire->version);
	appendBinaryStringInfo(&out, wire->body.ptr, (int) wire->body.len);
	emit_seed(name, (const uint8_t *) out.data, out.len);
	pfree(out.data);
}

void
fuzz_seeds(FuzzEmit emit)
{
	emit_seed = emit;
	for_each_sample(seed);
}
