/*-------------------------------------------------------------------------
 *
 * properties.h
 *	  AMQP's properties and tables, as jsonb and as bytes.
 *
 * What users see is jsonb (doc/amqp-properties.md); what passes through shared
 * memory, tables and the broker layer is the encoding of AMQP 0-9-1 itself, so
 * that nothing between has to know what is in it:
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

/* Longest encoding of either, in bytes, that is made; read are longer ones. */
#define TPC_PROPERTIES_MAX 16384

/* Deepest nesting of tables and arrays in one; the outermost table counts. */
#define TPC_TABLE_MAX_DEPTH 32

/*
 * The pure part (properties.c, no server needed): bytes to JSON text in UTF-8,
 * which is appended.  Hostile input: false, with out as it was, if it cannot
 * be decoded.
 *
 * fits says whether a text in UTF-8 can be represented where the JSON goes;
 * NULL: any can.  It is asked for texts that are valid and have no NUL.
 */
typedef bool (*TpcTextFits) (const char *utf8, size_t len);

extern bool tpc_properties_to_json(StringInfo out, const char *bytes,
								   size_t len, TpcTextFits fits);
extern bool tpc_table_to_json(StringInfo out, const char *bytes, size_t len,
							  TpcTextFits fits);

/*
 * The text of property message_id (in bytes, and in UTF-8), if there is one
 * and it can be decoded.
 */
extern bool tpc_properties_message_id(const char *bytes, size_t len,
									  const char **id, size_t *id_len);

/*
 * The pure part, for encoders.  What is put is appended; false, with nothing
 * appended, if it is not of the form or does not fit.
 */
typedef enum TpcPropertyKind
{
	TPC_PROPERTY_TEXT,			/* a short string */
	TPC_PROPERTY_OCTET,
	TPC_PROPERTY_TIMESTAMP,
	TPC_PROPERTY_TABLE
} TpcPropertyKind;

typedef struct TpcProperty
{
	const char *name;
	TpcPropertyKind kind;
} TpcProperty;

/* In the order of the list; the first has the highest of the 16 flags. */
#define TPC_NPROPERTIES 14
extern const TpcProperty tpc_properties[TPC_NPROPERTIES];
#define TPC_PROPERTY_FLAG(index) (1 << (15 - (index)))

/* What is written in JSON as an object of one entry, {"@name": value}. */
typedef struct TpcFieldType
{
	const char *name;			/* with the "@" */
	char		kind;			/* the octet before the value */
	int			size;			/* of an integer, in bytes; else 0 */
	bool		is_signed;		/* of an integer */
} TpcFieldType;

extern const TpcFieldType *tpc_field_type(const char *name, size_t len);

extern void tpc_properties_put_int(StringInfo out, uint64 value, int size);
extern bool tpc_properties_put_short(StringInfo out, const char *text,
									 size_t len);
extern void tpc_properties_put_long(StringInfo out, const char *bytes,
									size_t len);
extern bool tpc_properties_put_decimal(StringInfo out, const char *text,
									   size_t len);
extern int	tpc_properties_begin_nested(StringInfo out);
extern void tpc_properties_end_nested(StringInfo out, int start);
extern bool tpc_properties_parse_timestamp(const char *text, size_t len,
										   uint64 *seconds);

/*
 * For the server (properties_jsonb.c), in a transaction.  jsonb, not toasted,
 * to bytes, which are appended; raise
 *
 *	22023	for what AMQP has no place for (the message names the place)
 *	22003	for numbers that do not fit
 *	22021	for texts that are not UTF-8 (only in SQL_ASCII databases can be)
 *	54000	for what is too long, or nested too deeply
 *
 * None adds anything that is not in the jsonb.
 */
extern void tpc_properties_encode(StringInfo out, struct varlena *properties);
extern void tpc_table_encode(StringInfo out, struct varlena *table);

/*
 * Bytes to jsonb, in the current context.  Raise nothing for bad bytes (NULL
 * then), nor for texts that the database's encoding cannot represent.
 */
extern struct varlena *tpc_properties_decode(const char *bytes, size_t len);
extern struct varlena *tpc_table_decode(const char *bytes, size_t len);

#endif							/* TPC_PROPERTIES_H */
