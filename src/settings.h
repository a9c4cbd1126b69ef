/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The extension's settings (tpc_amqp.*).
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_SETTINGS_H
#define TPC_SETTINGS_H

typedef enum TpcCommitWait
{
	TPC_COMMIT_WAIT_DECIDED,
	TPC_COMMIT_WAIT_APPLIED
} TpcCommitWait;

extern int	tpc_prepare_timeout;	/* ms */
extern int	tpc_apply_timeout;	/* ms */
extern int	tpc_commit_wait;	/* TpcCommitWait */
extern bool tpc_prepare_wait;
extern int	tpc_prepared_timeout;	/* ms; 0: never */
extern int	tpc_lock_timeout;	/* ms, for handlers */
extern int	tpc_prepare_workers;
extern int	tpc_resolve_workers;
extern int	tpc_consume_workers;
extern int	tpc_broker_timeout; /* ms */
extern int	tpc_confirm_timeout;	/* ms */
extern int	tpc_slot_timeout;	/* ms; 0: do not wait */
extern int	tpc_max_requests;
extern int	tpc_resolve_interval;	/* ms */
extern int	tpc_forget_after;	/* ms */
extern int	tpc_max_transactions;
extern int	tpc_max_nodes;
extern int	tpc_max_payload;	/* kB */
extern int	tpc_max_memory;		/* MB */
extern bool tpc_failover_presumes_abort;

extern int	tpc_consume_timeout;	/* ms; 0: none */
extern int	tpc_consumed_retention; /* min; 0: for ever */

extern void tpc_settings_define(void);

#endif							/* TPC_SETTINGS_H */
