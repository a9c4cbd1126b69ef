/*-------------------------------------------------------------------------
 *
 * codec_fuzz.c
 *	  Fuzz target: bytes as the properties, headers and body of a message.
 *
 * The input: for each of the seven texts of an envelope its length and the
 * text (255: it is absent), then the version (255: absent), then the body.
 * Whatever the envelope, the body is also decoded as that of a type, and the
 * texts as ids and names.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "codec_check.h"
#include "fuzz.h"

#define ABSENT 255

static TpcSlice
take_text(const uint8_t **data, size_t *size)
{
	TpcSlice	text = {NULL, 0};
	size_t		len;

	if (*size == 0)
		return text;
	len = *(*data)++;
	(*size)--;
	if (len == ABSENT)
		return text;
	text.len = Min(len, *size);
	text.ptr = (const char *) *data;
	*data += text.len;
	*size -= text.len;
	return text;
}

/* The texts of ids, and back. */
static void
check_ids(TpcSlice text)
{
	TpcGlobalId id;
	TpcGlobalId again;
	TpcGtid		gtid;
	char		out[TPC_GTID_TEXT_SIZE];
	char	   *copy = malloc(text.len);

	if (text.len > 0)
		memcpy(copy, text.ptr, text.len);
	if (tpc_gtid_from_text(copy, text.len, &id))
	{
		tpc_gtid_to_text(&id, out);
		if (strlen(out) != text.len || memcmp(out, copy, text.len) != 0 ||
			!tpc_gtid_from_text(out, text.len, &again) ||
			memcmp(&id, &again, sizeof(id)) != 0)
			abort();
	}
	if (tpc_uuid_from_text(copy, text.len, &gtid))
	{
		tpc_uuid_to_text(&gtid, out);
		if (strlen(out) != text.len || memcmp(out, copy, text.len) != 0)
			abort();
	}
	if (tpc_node_name_valid(copy, text.len) &&
		(text.len > TPC_NODE_MAXLEN || memchr(copy, '/', text.len) != NULL))
		abort();
	free(copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	TpcWire		wire;
	uint8_t		version = size > 0 ? data[0] : 0;

	memset(&wire, 0, sizeof(wire));
	wire.type = take_text(&data, &size);
	wire.correlation_id = take_text(&data, &size);
	wire.app_id = take_text(&data, &size);
	wire.user_id = take_text(&data, &size);
	wire.expiration = take_text(&data, &size);
	wire.from = take_text(&data, &size);
	wire.floor = take_text(&data, &size);
	if (size > 0)
	{
		version = *data++;
		size--;
		wire.has_version = version != ABSENT;
		wire.version = version;
	}
	wire.body.ptr = (const char *) data;
	wire.body.len = size;

	codec_check(&wire);
	codec_check_body((TpcMessageType) (version % (TPC_MSG_REQUEST + 1)),
					 wire.body);
	check_ids(wire.correlation_id);
	check_ids(wire.floor);
	check_ids(wire.from);
	return 0;
}
