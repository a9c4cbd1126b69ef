/*-------------------------------------------------------------------------
 *
 * option.h
 *	  Options of servers and user mappings: where the broker is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TPC_OPTION_H
#define TPC_OPTION_H

/*
 * Everything needed to connect, without pointers: attach() passes it through
 * shared memory to a messenger that cannot see the server yet.
 */
typedef struct TpcConnInfo
{
	char		host[256];
	int			port;
	char		vhost[256];
	char		user[128];
	char		password[512];
	int			heartbeat_s;
	int			connect_timeout_ms;
	bool		tls;
	bool		tls_verify;
	char		cacert[1024];	/* "" if not given */
	char		cert[1024];
	char		key[1024];
	char		peer_user[128]; /* the broker user of node %n; "": anybody */
} TpcConnInfo;

extern bool tpc_option_is_peer(const TpcConnInfo *info, const char *node,
							   const char *user);
extern void tpc_option_load(Oid serverid, Oid userid, TpcConnInfo *info);
extern Oid	tpc_option_server_oid(const char *name);

#endif							/* TPC_OPTION_H */
