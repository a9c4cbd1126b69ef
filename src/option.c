/*-------------------------------------------------------------------------
 *
 * option.c
 *	  Options of servers and user mappings: where the broker is.
 *
 * A server of wrapper tpc_amqp is a RabbitMQ broker; who this node is there,
 * and its password, stands in a user mapping, whose options only its owner
 * and superusers can see.  One function takes an option apart, for the
 * validator as for who connects, so what can be stored can be used.
 *
 * Options of a server:
 *
 *	host			name or address; localhost
 *	port			5672, or 5671 with tls
 *	vhost			virtual host; /
 *	heartbeat		seconds, 0 to 3600, 0 for none; 10
 *	connect_timeout	seconds, or with a unit ('500ms'), up to 60 s; 5
 *	tls				whether to encrypt; off
 *	verify			whether to check the broker's certificate and name; on
 *	cacert			file of the authorities to trust; those of the system
 *	cert, key		files of the client's certificate; none
 *
 * Options of a user mapping: user, password; both guest.
 *
 * Names, texts and limits are those of the wire, which is UTF-8.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "compat.h"
#include "option.h"

#define WRAPPER_NAME "tpc_amqp"

#define HEARTBEAT_MAX_S 3600
#define CONNECT_TIMEOUT_MAX_MS 60000

/* How an option's text is read. */
typedef enum OptionKind
{
	OPTION_TEXT,				/* not empty */
	OPTION_SECRET,				/* any text, never shown */
	OPTION_FILE,				/* absolute path */
	OPTION_SUPERUSER_FILE,		/* the same, for superusers to set */
	OPTION_BOOL,
	OPTION_INT,
	OPTION_TIMEOUT
} OptionKind;

typedef struct Option
{
	const char *name;
	Oid			catalog;		/* where it may stand */
	OptionKind	kind;
	size_t		offset;			/* in TpcConnInfo */
	size_t		size;			/* there, of texts and paths */
	int			min;			/* of integers */
	int			max;
} Option;

#define TEXT_FIELD(f) \
	offsetof(TpcConnInfo, f), sizeof(((TpcConnInfo *) NULL)->f), 0, 0
#define PLAIN_FIELD(f, min, max) \
	offsetof(TpcConnInfo, f), 0, min, max

static const Option options[] = {
	{"host", ForeignServerRelationId, OPTION_TEXT, TEXT_FIELD(host)},
	{"port", ForeignServerRelationId, OPTION_INT,
	PLAIN_FIELD(port, 1, 65535)},
	{"vhost", ForeignServerRelationId, OPTION_TEXT, TEXT_FIELD(vhost)},
	{"heartbeat", ForeignServerRelationId, OPTION_INT,
	PLAIN_FIELD(heartbeat_s, 0, HEARTBEAT_MAX_S)},
	{"connect_timeout", ForeignServerRelationId, OPTION_TIMEOUT,
	PLAIN_FIELD(connect_timeout_ms, 1, CONNECT_TIMEOUT_MAX_MS)},
	{"tls", ForeignServerRelationId, OPTION_BOOL, PLAIN_FIELD(tls, 0, 0)},
	{"verify", ForeignServerRelationId, OPTION_BOOL,
	PLAIN_FIELD(tls_verify, 0, 0)},
	{"cacert", ForeignServerRelationId, OPTION_FILE, TEXT_FIELD(cacert)},
	{"cert", ForeignServerRelationId, OPTION_SUPERUSER_FILE,
	TEXT_FIELD(cert)},
	{"key", ForeignServerRelationId, OPTION_SUPERUSER_FILE, TEXT_FIELD(key)},
	{"peer_user", ForeignServerRelationId, OPTION_TEXT,
	TEXT_FIELD(peer_user)},
	{"user", UserMappingRelationId, OPTION_TEXT, TEXT_FIELD(user)},
	{"password", UserMappingRelationId, OPTION_SECRET, TEXT_FIELD(password)},
};

/* Raises HV00D, with the names that would do, if there is no such option. */
static const Option *
find_option(const char *name, Oid catalog)
{
	StringInfoData valid;

	for (size_t i = 0; i < lengthof(options); i++)
	{
		if (options[i].catalog == catalog &&
			strcmp(options[i].name, name) == 0)
			return &options[i];
	}

	initStringInfo(&valid);
	for (size_t i = 0; i < lengthof(options); i++)
	{
		if (options[i].catalog == catalog)
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 options[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len > 0 ?
			 errhint("Valid options in this context are: %s.", valid.data) :
			 errhint("There are no valid options in this context.")));
	return NULL;				/* keep compiler quiet */
}

/* Only of options whose value may be shown. */
static void
raise_bad_value(const Option *option, const char *value, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"",
					option->name, value),
			 errdetail("%s", detail)));
}

/*
 * parse_timeout: milliseconds.  A plain number is seconds, as libpq's
 * connect_timeout is; one with a unit is what it says.
 */
static bool
parse_timeout(const char *value, int *ms)
{
	double		seconds;

	if (!parse_real(value, &seconds, 0, NULL))
		return parse_int(value, ms, GUC_UNIT_MS, NULL);
	if (!(seconds >= 0 && seconds <= INT_MAX / 1000))
		return false;
	*ms = (int) rint(seconds * 1000);
	return true;
}

/*
 * set_option: read an option into its field.  Raises 22023 if it cannot be.
 */
static void
set_option(TpcConnInfo *info, const Option *option, const char *value)
{
	char	   *field = (char *) info + option->offset;
	bool		flag;
	int			number;

	switch (option->kind)
	{
		case OPTION_TEXT:
		case OPTION_SECRET:
			if (value[0] == '\0' && option->kind == OPTION_TEXT)
				raise_bad_value(option, value, "It cannot be empty.");
			value = pg_server_to_any(value, strlen(value), PG_UTF8);
			break;
		case OPTION_FILE:
		case OPTION_SUPERUSER_FILE:
			if (!is_absolute_path(value))
				raise_bad_value(option, value,
								"It has to be an absolute path.");
			break;
		case OPTION_BOOL:
			if (!parse_bool(value, &flag))
				raise_bad_value(option, value, "It has to be a boolean.");
			memcpy(field, &flag, sizeof(flag));
			return;
		case OPTION_INT:
			if (!parse_int(value, &number, 0, NULL) ||
				number < option->min || number > option->max)
				raise_bad_value(option, value,
								psprintf("It has to be an integer from %d to %d.",
										 option->min, option->max));
			memcpy(field, &number, sizeof(number));
			return;
		case OPTION_TIMEOUT:
			if (!parse_timeout(value, &number) ||
				number < option->min || number > option->max)
				raise_bad_value(option, value,
								psprintf("It has to be a number of seconds, or one with a unit, from %d ms to %d s.",
										 option->min, option->max / 1000));
			memcpy(field, &number, sizeof(number));
			return;
	}

	if (strlen(value) >= option->size)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of option \"%s\" is too long", option->name),
				 errdetail("It has %zu bytes; the limit is %zu.",
						   strlen(value), option->size - 1)));
	strlcpy(field, value, option->size);
}

/* The options of one object, as untransformRelOptions() makes them. */
static void
set_options(TpcConnInfo *info, List *given, Oid catalog)
{
	ListCell   *lc;

	foreach(lc, given)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		set_option(info, find_option(def->defname, catalog),
				   defGetString(def));
	}
}

/* Raises 22023 if what is set is of no use without what is not. */
static void
check_together(const TpcConnInfo *info)
{
	if ((info->cert[0] == '\0') != (info->key[0] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"cert\" and \"key\" need each other")));
}

static void
set_defaults(TpcConnInfo *info)
{
	memset(info, 0, sizeof(*info));
	strlcpy(info->host, "localhost", sizeof(info->host));
	strlcpy(info->vhost, "/", sizeof(info->vhost));
	strlcpy(info->user, "guest", sizeof(info->user));
	strlcpy(info->password, "guest", sizeof(info->password));
	info->heartbeat_s = 10;
	info->connect_timeout_ms = 5000;
	info->tls_verify = true;
}

/*
 * tpc_amqp_validator(options text[], catalog oid) returns void
 *
 * Called with all options an object is going to have.
 */
PG_FUNCTION_INFO_V1(tpc_amqp_validator);
Datum
tpc_amqp_validator(PG_FUNCTION_ARGS)
{
	List	   *given = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	TpcConnInfo info;
	ListCell   *lc;

	set_defaults(&info);
	set_options(&info, given, catalog);
	check_together(&info);

	/*
	 * The server process reads these files, and the key says who it is, so
	 * they are not for everybody who may create servers to choose.
	 */
	foreach(lc, given)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		if (find_option(def->defname, catalog)->kind == OPTION_SUPERUSER_FILE &&
			!superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to set option \"%s\"",
							def->defname),
					 errdetail("Only superusers can create or alter servers that have options \"cert\" and \"key\".")));
	}

	PG_RETURN_VOID();
}

/* The server, if it is a broker.  Raises 42704 or 42809. */
static ForeignServer *
broker_server(Oid serverid)
{
	ForeignServer *server = GetForeignServerExtended(serverid, FSV_MISSING_OK);
	ForeignDataWrapper *wrapper;

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the server this database was attached with does not exist any more"),
				 errhint("Detach the database, and attach it again with another server.")));
	wrapper = GetForeignDataWrapper(server->fdwid);
	if (strcmp(wrapper->fdwname, WRAPPER_NAME) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a message broker",
						server->servername),
				 errdetail("It belongs to foreign-data wrapper \"%s\".",
						   wrapper->fdwname),
				 errhint("Create it with FOREIGN DATA WRAPPER %s.",
						 WRAPPER_NAME)));
	return server;
}

/*
 * user_mapping: the role's own, or else that of PUBLIC.  Raises 42704 if there
 * is neither.
 *
 * GetUserMapping() would say so in words that differ between versions.
 */
static UserMapping *
user_mapping(const ForeignServer *server, Oid userid, const char *username)
{
	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(userid),
							   ObjectIdGetDatum(server->serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(InvalidOid),
							   ObjectIdGetDatum(server->serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" has no user mapping for role \"%s\"",
						server->servername, username),
				 errhint("Use CREATE USER MAPPING with options \"user\" and \"password\".")));
	return GetUserMapping(userid, server->serverid);
}

/*
 * tpc_option_load: what a role connects to a broker with.
 *
 * Raises if the server is gone or none of ours, if the role is gone or may not
 * use it, or if it has no user mapping.  No error shows a password.
 */
void
tpc_option_load(Oid serverid, Oid userid, TpcConnInfo *info)
{
	ForeignServer *server = broker_server(serverid);
	char	   *username = GetUserNameFromId(userid, true);
	UserMapping *mapping;

	if (username == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role that attached this database does not exist any more"),
				 errhint("Detach the database, and attach it again as another role.")));
	if (tpc_server_aclcheck(serverid, userid, ACL_USAGE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_SERVER,
					   server->servername);
	mapping = user_mapping(server, userid, username);

	set_defaults(info);
	set_options(info, server->options, ForeignServerRelationId);
	set_options(info, mapping->options, UserMappingRelationId);
	check_together(info);
	if (info->port == 0)
		info->port = info->tls ? 5671 : 5672;
}

/*
 * tpc_option_is_peer: whether a broker user may speak for a node, as far as
 * option peer_user says who may: that text, with the node's name for %n.
 */
bool
tpc_option_is_peer(const TpcConnInfo *info, const char *node,
				   const char *user)
{
	const char *p = info->peer_user;

	if (p[0] == '\0')
		return true;
	while (*p != '\0')
	{
		if (p[0] == '%' && p[1] == 'n')
		{
			size_t		len = strlen(node);

			if (strncmp(user, node, len) != 0)
				return false;
			user += len;
			p += 2;
		}
		else if (*p++ != *user++)
			return false;		/* also where the user's name ends */
	}
	return *user == '\0';
}

/* tpc_option_server_oid: raises 42704 or 42809 if it is no broker. */
Oid
tpc_option_server_oid(const char *name)
{
	Oid			serverid = get_foreign_server_oid(name, true);

	if (!OidIsValid(serverid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("Use CREATE SERVER with FOREIGN DATA WRAPPER %s.",
						 WRAPPER_NAME)));
	(void) broker_server(serverid);
	return serverid;
}
