/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Version differences live here.
 *
 * One section per interface of PostgreSQL that changed between the versions
 * this project builds with.  The pure modules include this header in tools
 * too: a section that needs the server stands inside #ifndef FRONTEND.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_COMPAT_H
#define TPC_COMPAT_H

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"

/*
 * The JSON lexer (common/jsonapi.h).
 *
 * Up to 16 it takes no const and an int, and is one palloc'd chunk when it
 * need not decode escapes; from 17 on a function frees it.
 */

/* tpc_json_lexer_make: a lexer of UTF-8 that leaves escapes as they are. */
static inline JsonLexContext *
tpc_json_lexer_make(const char *json, size_t len)
{
#if PG_VERSION_NUM >= 170000
	return makeJsonLexContextCstringLen(NULL, json, len, PG_UTF8, false);
#else
	return makeJsonLexContextCstringLen(unconstify(char *, json), (int) len,
										PG_UTF8, false);
#endif
}

static inline void
tpc_json_lexer_free(JsonLexContext *lex)
{
#if PG_VERSION_NUM >= 170000
	freeJsonLexContext(lex);
#else
	pfree(lex);
#endif
}

/*
 * Base64 (common/base64.h): bytes are uint8 from 18 on.
 */
#include "common/base64.h"

#if PG_VERSION_NUM >= 180000
typedef uint8 TpcBase64Byte;
#else
typedef char TpcBase64Byte;
#endif

/* Both return how much they wrote, or -1. */
static inline int
tpc_base64_encode(const char *bytes, int len, char *out, int size)
{
	return pg_b64_encode((const TpcBase64Byte *) bytes, len, out, size);
}

static inline int
tpc_base64_decode(const char *text, int len, char *out, int size)
{
	return pg_b64_decode(text, len, (TpcBase64Byte *) out, size);
}

#ifndef FRONTEND

/*
 * Index scans (access/genam.h): from 18 on with a place for instrumentation.
 */
#include "access/genam.h"

static inline IndexScanDesc
tpc_index_beginscan(Relation heap, Relation index, Snapshot snapshot,
					int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(heap, index, snapshot, nkeys, 0);
#endif
}

/*
 * Wait event sets (storage/latch.h, later storage/waiteventset.h): from 17 on
 * they belong to a resource owner (none of ours do).
 */
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "storage/latch.h"
#include "utils/memutils.h"

static inline WaitEventSet *
tpc_wait_event_set_make(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/*
 * Named wait events: extensions can have them from 17 on.
 */
#include "utils/wait_event.h"

static inline uint32
tpc_wait_event(uint32 *cache, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*cache == 0)
		*cache = WaitEventExtensionNew(name);
	return *cache;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * Privileges (utils/acl.h): from 16 on one function checks those of all kinds
 * of objects, and being a member of a role is less than being able to become
 * it.
 */
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "utils/acl.h"

static inline AclResult
tpc_function_aclcheck(Oid funcid, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, funcid, roleid, mode);
#else
	return pg_proc_aclcheck(funcid, roleid, mode);
#endif
}

static inline AclResult
tpc_server_aclcheck(Oid serverid, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ForeignServerRelationId, serverid, roleid, mode);
#else
	return pg_foreign_server_aclcheck(serverid, roleid, mode);
#endif
}

#include "catalog/pg_database.h"

static inline bool
tpc_database_ownercheck(Oid dbid, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, dbid, roleid);
#else
	return pg_database_ownercheck(dbid, roleid);
#endif
}

/* tpc_can_become: whether SET ROLE would let member become role. */
static inline bool
tpc_can_become(Oid member, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return member_can_set_role(member, role);
#else
	return is_member_of_role(member, role);
#endif
}

/*
 * Base64 (common/base64.h): from 18 on bytes are unsigned.  As pg_b64_encode.
 */
#include "common/base64.h"

static inline int
tpc_b64_encode(const char *src, int len, char *dst, int dstlen)
{
#if PG_VERSION_NUM >= 180000
	return pg_b64_encode((const uint8 *) src, len, dst, dstlen);
#else
	return pg_b64_encode(src, len, dst, dstlen);
#endif
}

#endif							/* FRONTEND */

#endif							/* TPC_COMPAT_H */
