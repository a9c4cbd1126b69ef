/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What fuzz targets, their seeds and those who run them share.
 *
 * A target is a program's worth of code behind LLVMFuzzerTestOneInput(): it
 * takes any bytes, and aborts, or has a sanitizer abort, if something is
 * wrong.  "make fuzz" links it with a fuzzer, t/unit with a loop over seeds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_FUZZ_H
#define TPC_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_MAX_INPUT	70000	/* a batch of the largest size fits */

/* The target: the same name in each, as the fuzzer wants it. */
extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Hand over a valid input, and what it is. */
typedef void (*FuzzEmit) (const char *name, const uint8_t *data, size_t size);

/* Those of the target that it is linked with. */
extern void fuzz_seeds(FuzzEmit emit);

#endif							/* TPC_FUZZ_H */
