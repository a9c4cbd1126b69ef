/*-------------------------------------------------------------------------
 *
 * tap.h
 *	  As much of the Test Anything Protocol as the unit tests need.
 *
 * One file is one program, so this is all static.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_TAP_H
#define TPC_TAP_H

static int	tap_count = 0;
static int	tap_failed = 0;

/* What was seen, printed if the next test fails; set by who knows. */
static const char *tap_note = NULL;

static bool
ok(bool passed, const char *name)
{
	tap_count++;
	printf("%sok %d - %s\n", passed ? "" : "not ", tap_count, name);
	if (!passed)
	{
		tap_failed++;
		if (tap_note != NULL)
			printf("# %s\n", tap_note);
	}
	tap_note = NULL;
	fflush(stdout);
	return passed;
}

static int
done_testing(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed == 0 ? 0 : 1;
}

#endif							/* TPC_TAP_H */
