/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  What publishing costs a client: as part of the transaction, or after it.
 *
 *	publish MODE CLIENTS SECONDS ROWS BROKER_PORT CONNINFO
 *
 * Each client updates a row and commits, over and over, and
 *
 *	none			publishes nothing
 *	tpc				calls tpc_amqp.publish() in the transaction
 *	forget			publishes after the commit, over a connection of its own,
 *					and waits for nothing
 *	confirmed		the same, and waits for the broker's confirmation
 *	pg_amqp			publishes before the commit, over a connection of its own, in
 *					a transaction of the broker's that it commits afterwards
 *					(tx.commit, which it waits for), as pg_amqp's sessions do
 *
 * In all but tpc a message is lost if the client, server or broker dies, or
 * cannot be reached, right after the commit.
 *
 * Messages are persistent, to the durable queue "bench", through the default
 * exchange.  Prints mode, clients, transactions, a second, and the median, the
 * 95th and 99th percentile of a transaction's time in ms, tab between.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <libpq-fe.h>

#define BODY "{\"order\": 4711, \"state\": \"paid\", \"amount\": \"12.50\"}"

static const char *mode;
static const char *conninfo;
static int	nrows;
static int	port;
static volatile int running = 1;
static volatile int measuring = 0;

typedef struct Client
{
	pthread_t	thread;
	unsigned int seed;
	long		n;
	long		size;
	double	   *ms;
} Client;

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "publish: %s: %s\n", what, why);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
query(PGconn *conn, const char *sql)
{
	PGresult   *res = PQexec(conn, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK &&
		PQresultStatus(res) != PGRES_TUPLES_OK)
		fail(sql, PQerrorMessage(conn));
	PQclear(res);
}

static void
check(amqp_rpc_reply_t reply, const char *what)
{
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail(what, "the broker refuses");
}

static amqp_connection_state_t
connect_broker(void)
{
	amqp_connection_state_t conn = amqp_new_connection();
	amqp_socket_t *socket = amqp_tcp_socket_new(conn);

	if (amqp_socket_open(socket, "127.0.0.1", port) != 0)
		fail("broker", "cannot connect");
	check(amqp_login(conn, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN,
					 "guest", "guest"), "login");
	amqp_channel_open(conn, 1);
	check(amqp_get_rpc_reply(conn), "channel");
	if (strcmp(mode, "confirmed") == 0)
		amqp_confirm_select(conn, 1);
	if (strcmp(mode, "pg_amqp") == 0)
		amqp_tx_select(conn, 1);
	return conn;
}

static void
declare_queue(void)
{
	amqp_connection_state_t conn = connect_broker();

	amqp_queue_declare(conn, 1, amqp_cstring_bytes("bench"), 0, 1, 0, 0,
					   amqp_empty_table);
	check(amqp_get_rpc_reply(conn), "queue");
	amqp_queue_purge(conn, 1, amqp_cstring_bytes("bench"));
	amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(conn);
}

static void
publish(amqp_connection_state_t conn)
{
	amqp_basic_properties_t props;
	amqp_frame_t frame;

	memset(&props, 0, sizeof(props));
	props._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
	props.delivery_mode = 2;
	props.content_type = amqp_cstring_bytes("application/json");
	if (amqp_basic_publish(conn, 1, amqp_cstring_bytes(""),
						   amqp_cstring_bytes("bench"), 0, 0, &props,
						   amqp_cstring_bytes(BODY)) != 0)
		fail("publish", "lost");
	if (strcmp(mode, "confirmed") == 0 &&
		(amqp_simple_wait_frame(conn, &frame) != 0 ||
		 frame.payload.method.id != AMQP_BASIC_ACK_METHOD))
		fail("publish", "not confirmed");
}

static void *
run_client(void *arg)
{
	Client	   *client = arg;
	PGconn	   *conn = PQconnectdb(conninfo);
	amqp_connection_state_t broker = NULL;
	int			tpc = strcmp(mode, "tpc") == 0;
	int			tx = strcmp(mode, "pg_amqp") == 0;
	char		sql[200];

	if (PQstatus(conn) != CONNECTION_OK)
		fail("server", PQerrorMessage(conn));
	if (!tpc && strcmp(mode, "none") != 0)
		broker = connect_broker();
	while (running)
	{
		double		start = now();

		query(conn, "BEGIN");
		snprintf(sql, sizeof(sql),
				 "UPDATE account SET balance = balance + 1 WHERE id = %d",
				 (int) (rand_r(&client->seed) % nrows) + 1);
		query(conn, sql);
		if (tpc)
			query(conn, "SELECT tpc_amqp.publish('', 'bench', '" BODY "'::jsonb)");
		if (tx)
			publish(broker);
		query(conn, "COMMIT");
		if (tx && amqp_tx_commit(broker, 1) == NULL)
			fail("publish", "not committed");
		if (broker != NULL && !tx)
			publish(broker);
		if (!measuring || !running)
			continue;
		if (client->n == client->size)
		{
			client->size = client->size * 2 + 1000;
			client->ms = realloc(client->ms, sizeof(double) * client->size);
		}
		client->ms[client->n++] = (now() - start) * 1000;
	}
	PQfinish(conn);
	return NULL;
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static void
pause_for(double seconds)
{
	struct timespec t;

	t.tv_sec = (time_t) seconds;
	t.tv_nsec = (long) ((seconds - t.tv_sec) * 1e9);
	nanosleep(&t, NULL);
}

int
main(int argc, char **argv)
{
	int			nclients;
	double		seconds;
	double		start;
	Client	   *clients;
	long		n = 0;
	double	   *ms;

	if (argc != 7)
		fail("usage", "MODE CLIENTS SECONDS ROWS BROKER_PORT CONNINFO");
	mode = argv[1];
	nclients = atoi(argv[2]);
	seconds = atof(argv[3]);
	nrows = atoi(argv[4]);
	port = atoi(argv[5]);
	conninfo = argv[6];

	declare_queue();
	clients = calloc(nclients, sizeof(Client));
	for (int i = 0; i < nclients; i++)
	{
		clients[i].seed = i + 1;
		pthread_create(&clients[i].thread, NULL, run_client, &clients[i]);
	}
	pause_for(seconds / 4);
	measuring = 1;
	start = now();
	pause_for(seconds);
	measuring = 0;
	seconds = now() - start;
	running = 0;
	for (int i = 0; i < nclients; i++)
	{
		pthread_join(clients[i].thread, NULL);
		n += clients[i].n;
	}
	if (n == 0)
		fail(mode, "no transaction at all");
	ms = malloc(sizeof(double) * n);
	n = 0;
	for (int i = 0; i < nclients; i++)
	{
		memcpy(ms + n, clients[i].ms, sizeof(double) * clients[i].n);
		n += clients[i].n;
	}
	qsort(ms, n, sizeof(double), compare);
	printf("%s\t%d\t%ld\t%.0f\t%.3f\t%.3f\t%.3f\n", mode, nclients, n,
		   n / seconds, ms[n / 2], ms[(long) (n * 0.95)],
		   ms[(long) (n * 0.99)]);
	return 0;
}
