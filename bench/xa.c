/*-------------------------------------------------------------------------
 *
 * xa.c
 *	  One load generator for every way of writing to several databases.
 *
 * Usage: xa -m MODE [options] CONNINFO CONNINFO …
 *
 * The work is the same in every mode: one row of table "account" is updated
 * by its key in each of the databases.  Modes differ in who commits, and how:
 *
 *	local			BEGIN, UPDATE and COMMIT on each database, nothing between
 *					them: not atomic, the floor
 *	local-auto		the same as single statements
 *	xa				BEGIN and UPDATE on each, PREPARE on each, COMMIT PREPARED on
 *					each, one statement after the other, as transaction managers
 *					issue them.  (Their log of decisions, which would be one more
 *					flush, is left out.)
 *	xa-parallel		each of those four steps on all databases at a time
 *	tpc				on the first: BEGIN, UPDATE, one tpc_amqp.call() for each of
 *					the other databases (-n NODE names them), COMMIT
 *	tpc-one			the same as one statement: the first database has all that is
 *					to be committed, so nothing keeps a client from that
 *
 * Every mode is a list of steps, a step is a set of statements on different
 * connections that run at a time, and the next step begins when all have
 * answered.  One thread waits for all clients with poll(), as pgbench does,
 * so the generator weighs the same in all modes.
 *
 * Each client draws its keys from its own slice of the table, so that no two
 * ever wait for one row; otherwise xa-parallel would run into deadlocks that
 * no database can see.  -r 1 makes all clients share one row.
 *
 * The result is one line of TSV (-H prints the header): throughput, latencies
 * in microseconds, and what the machine spent meanwhile in the process trees
 * given by -w NAME=PID (CPU time, context switches).
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define MAX_DATABASES 16
#define MAX_STEPS 64
#define MAX_WATCHED 8

typedef enum Mode
{
	LOCAL,
	LOCAL_AUTO,
	XA,
	XA_PARALLEL,
	TPC,
	TPC_ONE
} Mode;

static const char *const mode_names[] = {
	"local", "local-auto", "xa", "xa-parallel", "tpc", "tpc-one"
};

typedef enum Verb
{
	V_BEGIN,
	V_UPDATE,
	V_COMMIT,
	V_PREPARE,
	V_COMMIT_PREPARED,
	V_CALL,
	V_UPDATE_AND_CALL
} Verb;

/* Databases first … last do verb; one at a time unless together. */
typedef struct Step
{
	Verb		verb;
	int			first;
	int			last;
	int			argument;		/* of V_CALL: which database */
} Step;

typedef struct Client
{
	int			number;
	PGconn	   *conn[MAX_DATABASES];
	int			waiting[MAX_DATABASES]; /* statements not answered */
	int			step;			/* -1: between two transactions */
	bool		failed;			/* the transaction under way */
	int			key;
	int64_t		serial;
	uint64_t	started;		/* us */
	uint64_t	seed;
} Client;

typedef struct Watched
{
	char		name[32];
	pid_t		pid;
	uint64_t	cpu_ticks;
	uint64_t	switches;
} Watched;

static Mode mode = LOCAL;
static const char *label = NULL;
static int	nclients = 1;
static double warmup = 1;
static double duration = 5;
static int64_t max_transactions = 0;	/* per client */
static int	nrows = 10000;
static int	payload = 0;
static bool sequential = false;
static bool allow_errors = false;
static const char *setup = NULL;
static const char *handler = "bump";

static int	ndatabases = 0;
static const char *conninfo[MAX_DATABASES];
static int	nnodes = 0;
static const char *nodes[MAX_DATABASES];
static Step steps[MAX_STEPS];
static int	nsteps = 0;
static char *padding = NULL;

static Watched watched[MAX_WATCHED];
static int	nwatched = 0;

static uint32_t *latencies = NULL;
static size_t nlatencies = 0;
static size_t latencies_size = 0;
static int64_t nerrors = 0;
static char first_error[512];
static bool measuring = false;
static int64_t sequence = 0;

static void
fail(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fputs("xa: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

static uint64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* xorshift64*: keys need not be better than that. */
static uint64_t
draw(Client *client)
{
	client->seed ^= client->seed >> 12;
	client->seed ^= client->seed << 25;
	client->seed ^= client->seed >> 27;
	return client->seed * UINT64_C(2685821657736338717);
}

static int
draw_key(Client *client)
{
	int			slice = nrows / nclients;

	if (sequential)
		return (int) (sequence++ % nrows) + 1;
	if (slice < 1)
		return (int) (draw(client) % nrows) + 1;
	return client->number * slice + (int) (draw(client) % slice) + 1;
}

/* ---------- what the machine spends ---------- */

/* Fields of /proc/PID/stat after the name; false if it has gone. */
static bool
read_stat(const char *pid, pid_t *parent, uint64_t *ticks)
{
	char		path[64];
	char		line[1024];
	char	   *after;
	FILE	   *f;
	unsigned long utime,
				stime;
	int			ppid;
	bool		ok;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	f = fopen(path, "r");
	if (f == NULL)
		return false;
	ok = fgets(line, sizeof(line), f) != NULL &&
		(after = strrchr(line, ')')) != NULL &&
		sscanf(after + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
			   &ppid, &utime, &stime) == 3;
	fclose(f);
	if (!ok)
		return false;
	*parent = ppid;
	*ticks = utime + stime;
	return true;
}

static uint64_t
read_switches(const char *pid)
{
	char		path[320];
	DIR		   *dir;
	struct dirent *entry;
	uint64_t	sum = 0;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	dir = opendir(path);
	if (dir == NULL)
		return 0;
	while ((entry = readdir(dir)) != NULL)
	{
		char		line[256];
		FILE	   *f;
		unsigned long n;

		if (!isdigit((unsigned char) entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task/%.20s/status", pid,
				 entry->d_name);
		f = fopen(path, "r");
		if (f == NULL)
			continue;
		while (fgets(line, sizeof(line), f) != NULL)
		{
			if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ||
				sscanf(line, "nonvoluntary_ctxt_switches: %lu", &n) == 1)
				sum += n;
		}
		fclose(f);
	}
	closedir(dir);
	return sum;
}

/* Sums over each watched process and its children. */
static void
watch(Watched *result)
{
	DIR		   *dir = opendir("/proc");
	struct dirent *entry;

	memcpy(result, watched, sizeof(watched));
	if (dir == NULL)
		return;
	while ((entry = readdir(dir)) != NULL)
	{
		pid_t		parent;
		uint64_t	ticks;

		if (!isdigit((unsigned char) entry->d_name[0]) ||
			!read_stat(entry->d_name, &parent, &ticks))
			continue;
		for (int i = 0; i < nwatched; i++)
		{
			if (atoi(entry->d_name) != watched[i].pid &&
				parent != watched[i].pid)
				continue;
			result[i].cpu_ticks += ticks;
			result[i].switches += read_switches(entry->d_name);
		}
	}
	closedir(dir);
}

/* Ticks the whole machine was busy. */
static uint64_t
machine_ticks(void)
{
	FILE	   *f = fopen("/proc/stat", "r");
	unsigned long v[8] = {0};

	if (f == NULL)
		return 0;
	if (fscanf(f, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &v[0], &v[1], &v[2],
			   &v[3], &v[4], &v[5], &v[6], &v[7]) != 8)
		v[0] = 0;
	fclose(f);
	return v[0] + v[1] + v[2] + v[5] + v[6] + v[7];
}

/* ---------- modes ---------- */

static void
add_step(Verb verb, int first, int last, int argument)
{
	if (nsteps >= MAX_STEPS)
		fail("too many steps");
	steps[nsteps++] = (Step) {verb, first, last, argument};
}

static void
add_sequence(Verb verb)
{
	for (int i = 0; i < ndatabases; i++)
		add_step(verb, i, i, 0);
}

static void
make_steps(void)
{
	switch (mode)
	{
		case LOCAL:
			for (int i = 0; i < ndatabases; i++)
			{
				add_step(V_BEGIN, i, i, 0);
				add_step(V_UPDATE, i, i, 0);
			}
			add_sequence(V_COMMIT);
			break;
		case LOCAL_AUTO:
			add_sequence(V_UPDATE);
			break;
		case XA:
			add_sequence(V_BEGIN);
			add_sequence(V_UPDATE);
			add_sequence(V_PREPARE);
			add_sequence(V_COMMIT_PREPARED);
			break;
		case XA_PARALLEL:
			add_step(V_BEGIN, 0, ndatabases - 1, 0);
			add_step(V_UPDATE, 0, ndatabases - 1, 0);
			add_step(V_PREPARE, 0, ndatabases - 1, 0);
			add_step(V_COMMIT_PREPARED, 0, ndatabases - 1, 0);
			break;
		case TPC:
			add_step(V_BEGIN, 0, 0, 0);
			add_step(V_UPDATE, 0, 0, 0);
			for (int i = 0; i < nnodes; i++)
				add_step(V_CALL, 0, 0, i);
			add_step(V_COMMIT, 0, 0, 0);
			break;
		case TPC_ONE:
			if (nnodes != 1)
				fail("mode tpc-one takes one node");
			add_step(V_UPDATE_AND_CALL, 0, 0, 0);
			break;
	}
}

static void
send_statement(Client *client, int database, const Step *step)
{
	size_t		size = 512 + payload;
	char		small[1024];
	char	   *sql = size > sizeof(small) ? malloc(size) : small;

	switch (step->verb)
	{
		case V_BEGIN:
			strcpy(sql, "BEGIN");
			break;
		case V_UPDATE:
			sprintf(sql, "UPDATE account SET balance = balance + 1 WHERE id = %d",
					client->key);
			break;
		case V_COMMIT:
			strcpy(sql, "COMMIT");
			break;
		case V_PREPARE:
			/* GIDs are the cluster's, which may have several of the databases */
			sprintf(sql, "PREPARE TRANSACTION 'xa-%d-%d-%" PRId64 "-%d'",
					(int) getpid(), client->number, client->serial, database);
			break;
		case V_COMMIT_PREPARED:
			sprintf(sql, "COMMIT PREPARED 'xa-%d-%d-%" PRId64 "-%d'",
					(int) getpid(), client->number, client->serial, database);
			break;
		case V_CALL:
			if (payload > 0)
				sprintf(sql, "SELECT tpc_amqp.call('%s', '%s', '{\"id\": %d, \"pad\": \"%s\"}')",
						nodes[step->argument], handler, client->key, padding);
			else
				sprintf(sql, "SELECT tpc_amqp.call('%s', '%s', '{\"id\": %d}')",
						nodes[step->argument], handler, client->key);
			break;
		case V_UPDATE_AND_CALL:
			sprintf(sql, "WITH w AS (UPDATE account SET balance = balance + 1 WHERE id = %d)"
					" SELECT tpc_amqp.call('%s', '%s', '{\"id\": %d}')",
					client->key, nodes[step->argument], handler, client->key);
			break;
	}
	if (!PQsendQuery(client->conn[database], sql))
		fail("%s: %s", sql, PQerrorMessage(client->conn[database]));
	if (PQflush(client->conn[database]) < 0)
		fail("%s", PQerrorMessage(client->conn[database]));
	client->waiting[database] = 1;
	if (sql != small)
		free(sql);
}

static void
begin_step(Client *client)
{
	const Step *step = &steps[client->step];

	for (int i = step->first; i <= step->last; i++)
		send_statement(client, i, step);
}

static bool
step_done(const Client *client)
{
	const Step *step = &steps[client->step];

	for (int i = step->first; i <= step->last; i++)
	{
		if (client->waiting[i])
			return false;
	}
	return true;
}

static void
begin_transaction(Client *client)
{
	client->key = draw_key(client);
	client->serial++;
	client->step = 0;
	client->failed = false;
	client->started = now_us();
	begin_step(client);
}

static void
remember_latency(uint64_t us)
{
	if (nlatencies == latencies_size)
	{
		latencies_size = latencies_size ? latencies_size * 2 : 65536;
		latencies = realloc(latencies, latencies_size * sizeof(*latencies));
		if (latencies == NULL)
			fail("out of memory");
	}
	latencies[nlatencies++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t) us;
}

/*
 * Only where -e allows errors, and there with one database only: a failed
 * statement ends the transaction.
 */
static void
recover(Client *client)
{
	PGresult   *result = PQexec(client->conn[0], "ROLLBACK");

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("ROLLBACK: %s", PQerrorMessage(client->conn[0]));
	PQclear(result);
}

/* Read what has arrived on one connection. */
static void
take_answer(Client *client, int database)
{
	PGconn	   *conn = client->conn[database];

	if (!PQconsumeInput(conn))
		fail("%s", PQerrorMessage(conn));
	while (!PQisBusy(conn))
	{
		PGresult   *result = PQgetResult(conn);
		ExecStatusType status;

		if (result == NULL)
		{
			client->waiting[database] = 0;
			return;
		}
		status = PQresultStatus(result);
		if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		{
			if (!allow_errors)
				fail("%s", PQresultErrorMessage(result));
			if (first_error[0] == '\0')
				snprintf(first_error, sizeof(first_error), "%s",
						 PQresultErrorMessage(result));
			client->failed = true;
		}
		else if (strcmp(PQcmdStatus(result), "ROLLBACK") == 0)
			client->failed = true;
		PQclear(result);
	}
}

static void
ignore_notice(void *arg, const char *message)
{
	static int	shown = 0;

	if (shown++ < 5)
		fprintf(stderr, "xa: %s", message);
}

static void
connect_all(Client *client)
{
	for (int i = 0; i < ndatabases; i++)
	{
		PGresult   *result;

		/* modes tpc and tpc-one talk to the first database only */
		if (mode >= TPC && i > 0)
			break;
		client->conn[i] = PQconnectdb(conninfo[i]);
		if (PQstatus(client->conn[i]) != CONNECTION_OK)
			fail("%s", PQerrorMessage(client->conn[i]));
		PQsetNoticeProcessor(client->conn[i], ignore_notice, NULL);
		if (setup != NULL)
		{
			result = PQexec(client->conn[i], setup);
			if (PQresultStatus(result) != PGRES_COMMAND_OK &&
				PQresultStatus(result) != PGRES_TUPLES_OK)
				fail("%s", PQerrorMessage(client->conn[i]));
			PQclear(result);
		}
	}
}

static int
compare(const void *a, const void *b)
{
	uint32_t	x = *(const uint32_t *) a;
	uint32_t	y = *(const uint32_t *) b;

	return (x > y) - (x < y);
}

static uint32_t
percentile(double p)
{
	size_t		i = (size_t) (p * (nlatencies - 1) + 0.5);

	return nlatencies == 0 ? 0 : latencies[i];
}

static void
print_header(void)
{
	printf("label\tclients\tseconds\ttransactions\terrors\ttps\tmean_us\tp50_us\tp95_us\tp99_us\tmax_us\tother_cpu\tspent\n");
}

/* spent: NAME:cpu_us:switches per transaction; other_cpu: share of others */
static void
print_result(double seconds, const Watched *before, const Watched *after,
			 uint64_t machine)
{
	double		sum = 0;
	double		ticks = sysconf(_SC_CLK_TCK);
	double		ours = 0;
	double		capacity = seconds * ticks * sysconf(_SC_NPROCESSORS_ONLN);

	qsort(latencies, nlatencies, sizeof(*latencies), compare);
	for (size_t i = 0; i < nlatencies; i++)
		sum += latencies[i];
	for (int i = 0; i < nwatched; i++)
		ours += after[i].cpu_ticks - before[i].cpu_ticks;
	printf("%s\t%d\t%.3f\t%zu\t%" PRId64 "\t%.1f\t%.0f\t%u\t%u\t%u\t%u\t%.3f\t",
		   label, nclients, seconds, nlatencies, nerrors,
		   nlatencies / seconds, nlatencies ? sum / nlatencies : 0,
		   percentile(0.5), percentile(0.95), percentile(0.99),
		   percentile(1), (machine - ours) / capacity);
	for (int i = 0; i < nwatched; i++)
		printf("%s%s:%.1f:%.2f", i > 0 ? "," : "", watched[i].name,
			   nlatencies ? (after[i].cpu_ticks - before[i].cpu_ticks) *
			   1e6 / ticks / nlatencies : 0,
			   nlatencies ? (double) (after[i].switches - before[i].switches) /
			   nlatencies : 0);
	printf("\n");
	if (first_error[0] != '\0')
		fprintf(stderr, "xa: %" PRId64 " errors, the first: %s", nerrors,
				first_error);
}

static void
run(Client *clients)
{
	int			nfds = 0;
	struct pollfd *fds = calloc(nclients * MAX_DATABASES, sizeof(*fds));
	Client	  **owner = calloc(nclients * MAX_DATABASES, sizeof(*owner));
	int		   *database = calloc(nclients * MAX_DATABASES, sizeof(int));
	uint64_t	start = now_us();
	uint64_t	begin = start;
	uint64_t	stop;
	uint64_t	machine = 0;
	int			active = nclients;
	Watched		before[MAX_WATCHED];
	Watched		after[MAX_WATCHED];

	for (int i = 0; i < nclients; i++)
	{
		for (int j = 0; j < ndatabases; j++)
		{
			if (clients[i].conn[j] == NULL)
				continue;
			fds[nfds].fd = PQsocket(clients[i].conn[j]);
			fds[nfds].events = POLLIN;
			owner[nfds] = &clients[i];
			database[nfds] = j;
			nfds++;
		}
	}
	memset(before, 0, sizeof(before));
	if (warmup <= 0)
	{
		watch(before);
		machine = machine_ticks();
		begin = now_us();
		measuring = true;
	}
	for (int i = 0; i < nclients; i++)
		begin_transaction(&clients[i]);
	stop = start + (uint64_t) ((warmup + duration) * 1e6);

	while (active > 0)
	{
		uint64_t	now;

		if (poll(fds, nfds, 1000) < 0 && errno != EINTR)
			fail("poll: %s", strerror(errno));
		now = now_us();
		if (!measuring && now >= start + (uint64_t) (warmup * 1e6))
		{
			watch(before);
			machine = machine_ticks();
			begin = now_us();
			measuring = true;
		}
		for (int i = 0; i < nfds; i++)
		{
			Client	   *client = owner[i];

			if (fds[i].revents == 0)
				continue;
			take_answer(client, database[i]);
			if (client->step < 0 || !step_done(client))
				continue;
			if (!client->failed && ++client->step < nsteps)
			{
				begin_step(client);
				continue;
			}
			now = now_us();
			if (client->failed)
			{
				nerrors++;
				recover(client);
			}
			else if (measuring && client->started >= begin)
				remember_latency(now - client->started);
			client->step = -1;
			if (max_transactions > 0 ?
				client->serial < max_transactions : now < stop)
				begin_transaction(client);
			else
				active--;
		}
		if (max_transactions == 0 && measuring && now_us() >= stop)
		{
			/* what is under way now is not counted */
			break;
		}
	}
	stop = now_us();
	machine = machine_ticks() - machine;
	watch(after);
	print_result((stop - begin) / 1e6, before, after, machine);
	fflush(stdout);

	/* Bring what is under way to its end: nothing may stay prepared. */
	while (active > 0)
	{
		if (poll(fds, nfds, 10000) <= 0)
			fail("clients do not come to an end");
		for (int i = 0; i < nfds; i++)
		{
			Client	   *client = owner[i];

			if (fds[i].revents == 0)
				continue;
			take_answer(client, database[i]);
			if (client->step < 0 || !step_done(client))
				continue;
			if (!client->failed && ++client->step < nsteps)
			{
				begin_step(client);
				continue;
			}
			client->step = -1;
			active--;
		}
	}
	for (int i = 0; i < nclients; i++)
	{
		for (int j = 0; j < ndatabases; j++)
			PQfinish(clients[i].conn[j]);
	}
}

static void
usage(void)
{
	fputs("usage: xa -m local|local-auto|xa|xa-parallel|tpc|tpc-one\n"
		  "  [-l LABEL] [-c CLIENTS]\n"
		  "  [-W WARMUP_S] [-T SECONDS | -t TRANSACTIONS_PER_CLIENT] [-r ROWS]\n"
		  "  [-p PAYLOAD_BYTES] [-n NODE]… [-f HANDLER] [-s SETUP_SQL] [-S] [-e] [-H]\n"
		  "  [-w NAME=PID]… CONNINFO…\n", stderr);
	exit(2);
}

int
main(int argc, char **argv)
{
	int			c;
	bool		header = false;
	Client	   *clients;

	while ((c = getopt(argc, argv, "m:l:c:W:T:t:r:p:n:f:s:SeHw:")) != -1)
	{
		switch (c)
		{
			case 'm':
				for (mode = LOCAL; strcmp(optarg, mode_names[mode]) != 0; mode++)
				{
					if (mode == TPC_ONE)
						usage();
				}
				break;
			case 'l':
				label = optarg;
				break;
			case 'c':
				nclients = atoi(optarg);
				break;
			case 'W':
				warmup = atof(optarg);
				break;
			case 'T':
				duration = atof(optarg);
				break;
			case 't':
				max_transactions = atoll(optarg);
				warmup = 0;
				break;
			case 'r':
				nrows = atoi(optarg);
				break;
			case 'p':
				payload = atoi(optarg);
				break;
			case 'n':
				if (nnodes == MAX_DATABASES)
					usage();
				nodes[nnodes++] = optarg;
				break;
			case 'f':
				handler = optarg;
				break;
			case 's':
				setup = optarg;
				break;
			case 'S':
				sequential = true;
				break;
			case 'e':
				allow_errors = true;
				break;
			case 'H':
				header = true;
				break;
			case 'w':
				if (nwatched == MAX_WATCHED ||
					sscanf(optarg, "%31[^=]=%d", watched[nwatched].name,
						   &watched[nwatched].pid) != 2)
					usage();
				nwatched++;
				break;
			default:
				usage();
		}
	}
	if (header)
		print_header();
	if (optind == argc && header)
		return 0;
	for (; optind < argc && ndatabases < MAX_DATABASES; optind++)
		conninfo[ndatabases++] = argv[optind];
	if (ndatabases < 1 || nclients < 1 || nrows < 1 ||
		(mode >= TPC) != (nnodes > 0) || (allow_errors && mode != TPC))
		usage();
	if (label == NULL)
		label = mode_names[mode];
	if (payload > 0)
	{
		padding = malloc(payload + 1);
		memset(padding, 'x', payload);
		padding[payload] = '\0';
	}
	/* the generator is one of those watched */
	if (nwatched < MAX_WATCHED)
	{
		strcpy(watched[nwatched].name, "client");
		watched[nwatched++].pid = getpid();
	}
	make_steps();

	clients = calloc(nclients, sizeof(*clients));
	for (int i = 0; i < nclients; i++)
	{
		clients[i].number = i;
		clients[i].seed = UINT64_C(0x9E3779B97F4A7C15) * (i + 1);
		connect_all(&clients[i]);
	}
	run(clients);
	return 0;
}
