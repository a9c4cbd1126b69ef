/*-------------------------------------------------------------------------
 *
 * properties.h
 *	  AMQP's properties and tables, as jsonb and as bytes.
 *
 * What users see is jsonb; what passes through shared memory, tables and the
 * broker layer is the encoding of AMQP 0-9-1 itself, so that nothing between
 * has to know what is in it:
 *
 *	properties	the property flags and the property list, as they stand in a
 *				content header behind the size of the body (section 4.2.6.1)
 *	table		the entries of a field table, without the length before them
 *				(section 4.2.5.5); empty for no arguments
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_PROPERTIES_H
#define TPC_PROPERTIES_H

#include "lib/stringinfo.h"

/* A Jsonb is one of these; utils/jsonb.h is the server's alone. */
struct varlena;

/* Longest encoding of either, in bytes. */
#define TPC_PROPERTIES_MAX 16384

/* Deepest nesting of tables and arrays in one. */
#define TPC_TABLE_MAX_DEPTH 32

/*
 * The pure part (properties.c, no server needed): bytes to JSON text in UTF-8,
 * which is appended.  Hostile input: false, with out as it was, if it cannot
 * be decoded.
 */
extern bool tpc_properties_to_json(StringInfo out, const char *bytes,
								   size_t len);
extern bool tpc_table_to_json(StringInfo out, const char *bytes, size_t len);

/* The text of property message_id, if there is one and it can be decoded. */
extern bool tpc_properties_message_id(const char *bytes, size_t len,
									  const char **id, size_t *id_len);

/*
 * For the server (properties_jsonb.c).  jsonb to bytes, which are appended;
 * raise 22023 (with a hint that names the property) for what AMQP has no
 * place for, 54000 for what is too long.
 */
extern void tpc_properties_encode(StringInfo out, struct varlena *properties);
extern void tpc_table_encode(StringInfo out, struct varlena *table);

/*
 * Bytes to jsonb, in the current context.  Raise nothing for bad bytes (NULL
 * then).
 */
extern struct varlena *tpc_properties_decode(const char *bytes, size_t len);
extern struct varlena *tpc_table_decode(const char *bytes, size_t len);

#endif							/* TPC_PROPERTIES_H */
