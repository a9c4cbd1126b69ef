/*-------------------------------------------------------------------------
 *
 * corpus_test.c
 *	  A fuzz target without a fuzzer: its seeds, cut and spoilt.
 *
 * That nothing aborts is the test.  Each seed is tried as it is, cut at each
 * of its bytes, and with each of its bytes replaced by a few that mean harm;
 * long ones at some of their bytes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "fuzz.h"
#include "tap.h"

/* Bytes of a seed that are looked at, at most. */
#define MAX_PLACES 1500

/* In a chunk of exact size. */
static void
try(const uint8_t *data, size_t size)
{
	uint8_t    *copy = malloc(size);

	if (size > 0)
		memcpy(copy, data, size);
	(void) LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void
test_seed(const char *name, const uint8_t *data, size_t size)
{
	static const uint8_t harm[] = {0, 0x22, 0x5c, 0x7b, 0x80, 0xff};
	size_t		step = size / MAX_PLACES + 1;
	uint8_t    *spoilt = malloc(size);

	try(data, size);
	for (size_t at = 0; at < size; at += step)
	{
		try(data, at);
		memcpy(spoilt, data, size);
		for (size_t i = 0; i < lengthof(harm); i++)
		{
			spoilt[at] = harm[i];
			try(spoilt, size);
		}
		spoilt[at] = data[at] ^ 1;
		try(spoilt, size);
	}
	free(spoilt);
	ok(true, name);
}

int
main(void)
{
	fuzz_seeds(test_seed);
	return done_testing();
}
