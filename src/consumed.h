/*-------------------------------------------------------------------------
 *
 * consumed.h
 *	  Which messages have taken effect here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_CONSUMED_H
#define TPC_CONSUMED_H

extern bool tpc_consumed_note(const char *queue, const char *message_id);

#endif							/* TPC_CONSUMED_H */
