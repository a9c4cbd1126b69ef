/*-------------------------------------------------------------------------
 *
 * consumed.h
 *	  Which messages have taken effect here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_CONSUMED_H
#define TPC_CONSUMED_H

extern char *tpc_consumed_text(const char *bytes, size_t len);
extern char *tpc_consumed_message_id(const char *properties, size_t len);
extern bool tpc_consumed_in_progress(const char *queue,
									 const char *message_id);
extern bool tpc_consumed_note(const char *queue, const char *message_id);

#endif							/* TPC_CONSUMED_H */
