/*-------------------------------------------------------------------------
 *
 * utility.h
 *	  Commands that need the workers out of the way.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_UTILITY_H
#define TPC_UTILITY_H

extern void tpc_utility_install(void);

#endif							/* TPC_UTILITY_H */
