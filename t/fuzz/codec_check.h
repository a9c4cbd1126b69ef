/*-------------------------------------------------------------------------
 *
 * codec_check.h
 *	  What has to hold for whatever the broker layer hands over.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_CODEC_CHECK_H
#define TPC_CODEC_CHECK_H

#include "message.h"

extern void codec_check(const TpcWire *wire);
extern void codec_check_body(TpcMessageType type, TpcSlice body);

#endif							/* TPC_CODEC_CHECK_H */
