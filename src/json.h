/*-------------------------------------------------------------------------
 *
 * json.h
 *	  JSON that is written as text, in UTF-8.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_JSON_H
#define TPC_JSON_H

#include "lib/stringinfo.h"

extern void tpc_json_append_string(StringInfo out, const char *str,
								   size_t len, size_t maxlen);

#endif							/* TPC_JSON_H */
