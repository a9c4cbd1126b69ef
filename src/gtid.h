/*-------------------------------------------------------------------------
 *
 * gtid.h
 *	  Global transaction ids and node names.
 *
 * Pure: no I/O, no shared memory, no allocation.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_GTID_H
#define TPC_GTID_H

/* A kind of calls: part of a queue's name. */
#define TPC_KIND_MAXLEN 31
#define TPC_KIND_SIZE (TPC_KIND_MAXLEN + 1)

/* A node's name, without the terminating zero. */
#define TPC_NODE_MAXLEN 63
#define TPC_NODE_SIZE	(TPC_NODE_MAXLEN + 1)

/* "<node>/<uuid>" and its terminating zero. */
#define TPC_UUID_TEXT_SIZE	37
#define TPC_GTID_TEXT_SIZE	(TPC_NODE_MAXLEN + 1 + TPC_UUID_TEXT_SIZE)

/*
 * The uuid of a global transaction: the incarnation of its coordinator and a
 * number that grows within the incarnation.  It prints as a version 8 uuid
 * whose bytes sort as (incarnation, sequence) does.
 */
#define TPC_INCARNATION_BITS	60
#define TPC_SEQUENCE_BITS		62

typedef struct TpcGtid
{
	uint64		incarnation;
	uint64		sequence;
} TpcGtid;

/* The id with the node that coordinates it: what messages carry. */
typedef struct TpcGlobalId
{
	char		coordinator[TPC_NODE_SIZE]; /* zero-padded */
	TpcGtid		gtid;
} TpcGlobalId;

extern int	tpc_gtid_compare(const TpcGtid *a, const TpcGtid *b);
extern bool tpc_global_id_equal(const TpcGlobalId *a, const TpcGlobalId *b);
extern bool tpc_gtid_is_zero(const TpcGtid *a);
extern void tpc_gtid_to_bytes(const TpcGtid *gtid, unsigned char bytes[16]);
extern bool tpc_gtid_from_bytes(const unsigned char bytes[16], TpcGtid *gtid);
extern void tpc_uuid_to_text(const TpcGtid *gtid, char out[TPC_UUID_TEXT_SIZE]);
extern bool tpc_uuid_from_text(const char *text, size_t len, TpcGtid *gtid);
extern void tpc_gtid_to_text(const TpcGlobalId *id,
							 char out[TPC_GTID_TEXT_SIZE]);
extern bool tpc_gtid_from_text(const char *text, size_t len, TpcGlobalId *id);
extern bool tpc_kind_name_valid(const char *name, size_t len);
extern bool tpc_node_name_valid(const char *name, size_t len);

#endif							/* TPC_GTID_H */
