/*-------------------------------------------------------------------------
 *
 * postgres_fe_or_be.h
 *	  postgres.h in the server, postgres_fe.h in a tool built outside it
 *	  (the pure modules are compiled into both).
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_POSTGRES_FE_OR_BE_H
#define TPC_POSTGRES_FE_OR_BE_H

#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#endif							/* TPC_POSTGRES_FE_OR_BE_H */
