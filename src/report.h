/*-------------------------------------------------------------------------
 *
 * report.h
 *	  Errors as they pass between nodes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_REPORT_H
#define TPC_REPORT_H

#include "message.h"

extern char *tpc_report_to_server(char *utf8);
extern void tpc_report_remote_error(const char *node, const char *gtid,
									const char *body, uint32 len,
									const char *hint)
			pg_attribute_noreturn();
extern char *tpc_report_wire_text(const char *text, size_t len);
extern void tpc_report_from_error_data(ErrorData *edata, TpcRemoteError *error);

#endif							/* TPC_REPORT_H */
