/*-------------------------------------------------------------------------
 *
 * get.h
 *	  Taking one message of a queue by hand, as part of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_GET_H
#define TPC_GET_H

/* At the events of the transaction callbacks; txn.c calls them. */
extern void tpc_get_check(void);
extern void tpc_get_at_pre_commit(void);
extern void tpc_get_at_pre_prepare(void);
extern void tpc_get_at_commit(void);
extern void tpc_get_at_abort(void);
extern void tpc_get_at_subxact(bool committed, SubTransactionId subid,
							   SubTransactionId parent);

#endif							/* TPC_GET_H */
