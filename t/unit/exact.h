/*-------------------------------------------------------------------------
 *
 * exact.h
 *	  Copies of messages in chunks of exact size, so that a sanitizer sees who
 *	  reads past their ends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_EXACT_H
#define TPC_EXACT_H

#include "message.h"

static inline TpcSlice
exact_slice(TpcSlice from)
{
	TpcSlice	to = {NULL, 0};

	if (from.ptr != NULL)
	{
		char	   *chunk = malloc(from.len);

		if (from.len > 0)
			memcpy(chunk, from.ptr, from.len);
		to.ptr = chunk;
		to.len = from.len;
	}
	return to;
}

static inline void
exact_free(TpcSlice slice)
{
	free(unconstify(char *, slice.ptr));
}

static inline TpcWire
exact_wire(const TpcWire *wire)
{
	TpcWire		copy = *wire;

	copy.type = exact_slice(wire->type);
	copy.correlation_id = exact_slice(wire->correlation_id);
	copy.app_id = exact_slice(wire->app_id);
	copy.user_id = exact_slice(wire->user_id);
	copy.expiration = exact_slice(wire->expiration);
	copy.from = exact_slice(wire->from);
	copy.floor = exact_slice(wire->floor);
	copy.body = exact_slice(wire->body);
	return copy;
}

static inline void
exact_wire_free(const TpcWire *copy)
{
	exact_free(copy->type);
	exact_free(copy->correlation_id);
	exact_free(copy->app_id);
	exact_free(copy->user_id);
	exact_free(copy->expiration);
	exact_free(copy->from);
	exact_free(copy->floor);
	exact_free(copy->body);
}

#endif							/* TPC_EXACT_H */
