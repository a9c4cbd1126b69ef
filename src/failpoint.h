/*-------------------------------------------------------------------------
 *
 * failpoint.h
 *	  Places where a test can make a process fail, die or stop.
 *
 * Compiled in with FAILPOINTS=1 only; otherwise nothing is left of them.
 * Names are those of the protocol's steps in src/README: "C3.before" and so
 * on.  They are set in shared memory, so a crash of the server clears them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_FAILPOINT_H
#define TPC_FAILPOINT_H

#ifdef TPC_FAILPOINTS
extern void tpc_failpoint_shmem_request(void);
extern void tpc_failpoint_shmem_startup(void);
extern void tpc_failpoint(const char *name);
#define TPC_FAILPOINT(name) tpc_failpoint(name)
#else
#define tpc_failpoint_shmem_request() ((void) 0)
#define tpc_failpoint_shmem_startup() ((void) 0)
#define TPC_FAILPOINT(name) ((void) 0)
#endif

#endif							/* TPC_FAILPOINT_H */
