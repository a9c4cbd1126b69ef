/*-------------------------------------------------------------------------
 *
 * operate.h
 *	  What a person can ask and do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_OPERATE_H
#define TPC_OPERATE_H

#include "gtid.h"

extern void tpc_parse_gtid(text * arg, TpcGlobalId *id);
extern void tpc_operate_at_eoxact(bool committed);

#endif							/* TPC_OPERATE_H */
