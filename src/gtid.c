/*-------------------------------------------------------------------------
 *
 * gtid.c
 *	  Global transaction ids and node names.
 *
 * The uuid's bytes are those of RFC 9562's version 8 so that any language's
 * uuid type takes them: 48 bits of the incarnation, the version, 12 bits of
 * the incarnation, the variant, 62 bits of sequence.  The constant bits stand
 * in the same place in each, so comparing bytes compares (incarnation,
 * sequence), which is how the database's uuid type and the floor rule order
 * them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "gtid.h"

/* tpc_gtid_compare: <0, 0, >0 as a sorts before, with or after b. */
int
tpc_gtid_compare(const TpcGtid *a, const TpcGtid *b)
{
	if (a->incarnation != b->incarnation)
		return a->incarnation < b->incarnation ? -1 : 1;
	if (a->sequence != b->sequence)
		return a->sequence < b->sequence ? -1 : 1;
	return 0;
}

bool
tpc_global_id_equal(const TpcGlobalId *a, const TpcGlobalId *b)
{
	return tpc_gtid_compare(&a->gtid, &b->gtid) == 0 &&
		strcmp(a->coordinator, b->coordinator) == 0;
}

bool
tpc_gtid_is_zero(const TpcGtid *a)
{
	return a->incarnation == 0 && a->sequence == 0;
}

void
tpc_gtid_to_bytes(const TpcGtid *gtid, unsigned char bytes[16])
{
	uint64		high = ((gtid->incarnation >> 12) << 16) |
	UINT64CONST(0x8000) | (gtid->incarnation & 0xFFF);
	uint64		low = (UINT64CONST(2) << 62) | gtid->sequence;

	Assert(gtid->incarnation >> TPC_INCARNATION_BITS == 0);
	Assert(gtid->sequence >> TPC_SEQUENCE_BITS == 0);
	for (int i = 0; i < 8; i++)
	{
		bytes[i] = (unsigned char) (high >> (56 - 8 * i));
		bytes[8 + i] = (unsigned char) (low >> (56 - 8 * i));
	}
}

/* tpc_gtid_from_bytes: false if the bytes are not of a version 8 uuid. */
bool
tpc_gtid_from_bytes(const unsigned char bytes[16], TpcGtid *gtid)
{
	uint64		high = 0;
	uint64		low = 0;

	for (int i = 0; i < 8; i++)
	{
		high = (high << 8) | bytes[i];
		low = (low << 8) | bytes[8 + i];
	}
	if ((high & 0xF000) != 0x8000 || (low >> 62) != 2)
		return false;
	gtid->incarnation = ((high >> 16) << 12) | (high & 0xFFF);
	gtid->sequence = low & ((UINT64CONST(1) << 62) - 1);
	return true;
}

void
tpc_uuid_to_text(const TpcGtid *gtid, char out[TPC_UUID_TEXT_SIZE])
{
	static const char hex[] = "0123456789abcdef";
	unsigned char bytes[16];
	char	   *p = out;

	tpc_gtid_to_bytes(gtid, bytes);
	for (int i = 0; i < 16; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = hex[bytes[i] >> 4];
		*p++ = hex[bytes[i] & 0xF];
	}
	*p = '\0';
}

/* tpc_uuid_from_text: false unless text is a uuid this project could make. */
bool
tpc_uuid_from_text(const char *text, size_t len, TpcGtid *gtid)
{
	unsigned char bytes[16];
	int			digits = 0;

	if (len != TPC_UUID_TEXT_SIZE - 1)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		char		c = text[i];
		int			value;

		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c != '-')
				return false;
			continue;
		}
		if (c >= '0' && c <= '9')
			value = c - '0';
		else if (c >= 'a' && c <= 'f')
			value = c - 'a' + 10;
		else
			return false;
		if (digits % 2 == 0)
			bytes[digits / 2] = (unsigned char) (value << 4);
		else
			bytes[digits / 2] |= (unsigned char) value;
		digits++;
	}
	return tpc_gtid_from_bytes(bytes, gtid);
}

/* tpc_gtid_to_text: "<coordinator>/<uuid>". */
void
tpc_gtid_to_text(const TpcGlobalId *id, char out[TPC_GTID_TEXT_SIZE])
{
	size_t		len = strlen(id->coordinator);

	memcpy(out, id->coordinator, len);
	out[len] = '/';
	tpc_uuid_to_text(&id->gtid, out + len + 1);
}

/* tpc_gtid_from_text: false if malformed; *id is zero-padded, fit as a key. */
bool
tpc_gtid_from_text(const char *text, size_t len, TpcGlobalId *id)
{
	const char *slash = len > 0 ? memchr(text, '/', len) : NULL;
	size_t		node_len;

	if (slash == NULL)
		return false;
	node_len = slash - text;
	if (!tpc_node_name_valid(text, node_len))
		return false;
	memset(id, 0, sizeof(*id));
	memcpy(id->coordinator, text, node_len);
	return tpc_uuid_from_text(slash + 1, len - node_len - 1, &id->gtid);
}

/*
 * tpc_kind_name_valid: 1 to 31 of a-z, A-Z, 0-9, '_' and '-'.
 */
bool
tpc_kind_name_valid(const char *name, size_t len)
{
	return len <= TPC_KIND_MAXLEN && tpc_node_name_valid(name, len) &&
		memchr(name, '.', len) == NULL;
}

/*
 * tpc_node_name_valid: 1 to 63 of a-z, A-Z, 0-9, '_', '-' and '.'.
 *
 * The name stands in queue names, in GIDs and before the '/' of a gtid, so it
 * is kept to what needs no quoting in any of them.
 */
bool
tpc_node_name_valid(const char *name, size_t len)
{
	if (len == 0 || len > TPC_NODE_MAXLEN)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		char		c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			  (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.'))
			return false;
	}
	return true;
}
