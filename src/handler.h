/*-------------------------------------------------------------------------
 *
 * handler.h
 *	  Functions other nodes may call by a name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_HANDLER_H
#define TPC_HANDLER_H

extern void tpc_handler_run(const char *name, const char *caller,
							const char *arg, size_t arg_len,
							Oid *running_as, char **result);
extern void tpc_handler_end(Oid running_as);

#endif							/* TPC_HANDLER_H */
