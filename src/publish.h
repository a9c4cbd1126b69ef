/*-------------------------------------------------------------------------
 *
 * publish.h
 *	  Publishing as part of the transaction.
 *
 * publish.c is the SQL side, relay.c reads and deletes the rows, publication.c
 * is the messenger's part.  Between the latter two stands a window of places
 * in shared memory, each with one message.
 *
 * Who may touch a place is told by its state, which changes in one go and last:
 * the relay while it is free or done, the messenger while it is waiting or
 * sent.  So neither needs a lock, and the successor of either finds what the
 * other has.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_PUBLISH_H
#define TPC_PUBLISH_H

#include "destination.h"
#include "messenger.h"
#include "shmem.h"

/* Messages that may be with the messenger at a time. */
#define TPC_PUBLICATIONS 1024

typedef enum TpcPublicationState
{
	TPC_PUBLICATION_FREE,
	/* the messenger's */
	TPC_PUBLICATION_WAITING,	/* to be sent */
	TPC_PUBLICATION_SENT,		/* and the broker has not said anything yet */
	/* done; the relay's again */
	TPC_PUBLICATION_CONFIRMED,
	TPC_PUBLICATION_RETURNED,	/* mandatory, and no queue for it */
	TPC_PUBLICATION_REFUSED,	/* the broker cannot take it, ever */
	TPC_PUBLICATION_REJECTED,	/* the broker does not take it, for now */
	TPC_PUBLICATION_OVERDUE		/* the broker says nothing of those that go
								 * where it goes */
} TpcPublicationState;

typedef struct TpcPublication
{
	pg_atomic_uint32 state;		/* TpcPublicationState */
	int64		id;				/* of its row */
	uint64		order;			/* in which they are to be sent */
	bool		mandatory;
	bool		repeated;		/* messenger: it has been sent before */
	uint32		exchange_len;
	uint32		key_len;
	uint32		properties_len;
	uint32		body_len;
	dsa_pointer data;			/* those four, one after the other */
	TpcDestinationKey key;		/* where it goes */
	bool		probe;			/* to find out whether the broker takes it */
	uint64		held;			/* … there: what is held, a hash */
	bool		slow;			/* messenger: its confirmation took long */
	int			reply_code;		/* returned, refused: the broker's … */
	char		reason[200];	/* … words */
} TpcPublication;

typedef struct TpcPublications
{
	pg_atomic_uint64 given;		/* order of the last one that is waiting */
	/* set by the relay, for the messenger: probes do not find room */
	pg_atomic_uint32 probes_held_up;
	uint64		seed;			/* of the hashes */
	TpcPublication places[TPC_PUBLICATIONS];
} TpcPublications;

/* columns of publication */
#define PUBLICATION_ID			1
#define PUBLICATION_DATABASE	2
#define PUBLICATION_EXCHANGE	3
#define PUBLICATION_ROUTING_KEY	4
#define PUBLICATION_BODY		5
#define PUBLICATION_PROPERTIES	6
#define PUBLICATION_MANDATORY	7
#define PUBLICATION_MESSAGE_ID	8
#define PUBLICATION_PUBLISHED_AT	9
#define PUBLICATION_NATTS		9

/* publish.c */
extern void tpc_publish_at_pre_commit(void);
extern void tpc_publish_at_commit(void);
extern void tpc_publish_at_prepare(void);
extern void tpc_publish_at_abort(void);
extern void tpc_publish_after_prepared(TpcNode *node);
extern size_t tpc_publication_max_body(void);
extern bool tpc_publication_exists(void);
extern int64 tpc_publication_count(void);

/* relay.c */
extern void tpc_publications_free(TpcNode *node);

/* publication.c */
extern const TpcMessengerPart tpc_publication_part;

#endif							/* TPC_PUBLISH_H */
