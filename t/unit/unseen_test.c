/*-------------------------------------------------------------------------
 *
 * unseen_test.c
 *	  Looks at a table to which transactions add in any order: nothing is
 *	  missed, nothing taken twice, and little is passed over again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "tap.h"
#include "unseen.h"

#define MAX_XACTS	40000
#define MAX_ROWS	100000
#define MAX_RUNNING	64

typedef struct Row
{
	int			xact;
	bool		taken;
} Row;

typedef struct Xact
{
	bool		over;
	bool		committed;
	bool		shown;			/* by the current snapshot */
} Xact;

/* A server: xids begin at base, so that they can wrap around. */
static TransactionId base;
static Xact xacts[MAX_XACTS];
static int	nxacts;
static int	latest_over;		/* index of; -1: none */
static int	running[MAX_RUNNING];
static int	nrunning;
static Row	rows[MAX_ROWS + 1]; /* by id, from 1 on */
static int	nrows;

/* What looks do. */
static TpcUnseen unseen;
static int64 passed_over;		/* rows met that were taken before */

static uint64 seed;

static int
draw(int n)
{
	seed = seed * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
	return (int) ((seed >> 33) % n);
}

static void
free_unseen(void)
{
	if (unseen.before.running != NULL)
		pfree(unseen.before.running);
	if (unseen.now.running != NULL)
		pfree(unseen.now.running);
	if (unseen.points != NULL)
		pfree(unseen.points);
	memset(&unseen, 0, sizeof(unseen));
}

static void
reset(TransactionId first_xid, uint64 new_seed)
{
	base = first_xid;
	seed = new_seed;
	nxacts = nrows = nrunning = 0;
	latest_over = -1;
	memset(xacts, 0, sizeof(xacts));
	memset(rows, 0, sizeof(rows));
	free_unseen();
	passed_over = 0;
}

static int
begin(void)
{
	running[nrunning++] = nxacts;
	return nxacts++;
}

static void
insert(int xact)
{
	rows[++nrows].xact = xact;
}

static void
end(int xact, bool commit)
{
	xacts[xact].over = true;
	xacts[xact].committed = commit;
	latest_over = Max(latest_over, xact);
	for (int i = 0; i < nrunning; i++)
	{
		if (running[i] == xact)
			running[i] = running[--nrunning];
	}
}

/* A look that takes limit rows at most; between: done after the snapshot. */
static void
look(int limit, void (*between) (void))
{
	TransactionId xids[MAX_RUNNING];
	int			n = 0;
	int64		first;
	int64		done;
	int64		highest = 0;
	int			shown_rows = nrows;

	for (int i = 0; i < nrunning; i++)
	{
		if (running[i] <= latest_over)
			xids[n++] = base + running[i];
	}
	for (int i = 0; i < nxacts; i++)
		xacts[i].shown = xacts[i].committed;
	first = tpc_unseen_begin(&unseen, base + latest_over + 1, xids, n);
	done = unseen.done;
	if (between)
		between();
	for (int64 id = Max(first, 1); id <= shown_rows; id++)
	{
		Row		   *row = &rows[id];

		if (!xacts[row->xact].shown)
			continue;
		if (row->taken)
			passed_over++;
		else if (limit-- == 0)
		{
			done = id - 1;
			highest = Max(highest, id);
			goto stopped;
		}
		row->taken = true;
		highest = Max(highest, id);
	}
	done = Max(done, highest);
stopped:
	tpc_unseen_end(&unseen, done, highest, base + nxacts);
}

static int
missed(void)
{
	int			n = 0;

	for (int id = 1; id <= nrows; id++)
		n += xacts[rows[id].xact].committed && !rows[id].taken;
	return n;
}

static void
something(void)
{
	switch (draw(4))
	{
		case 0:
			if (nrunning < MAX_RUNNING && nxacts < MAX_XACTS)
				(void) begin();
			break;
		case 1:
		case 2:
			if (nrunning > 0 && nrows < MAX_ROWS)
				insert(running[draw(nrunning)]);
			break;
		case 3:
			if (nrunning > 0)
				end(running[draw(nrunning)], draw(4) != 0);
			break;
	}
}

static void
some_things(void)
{
	for (int i = draw(6); i > 0; i--)
		something();
}

static bool
simulate(TransactionId first_xid, uint64 new_seed, bool forgets)
{
	reset(first_xid, new_seed);
	for (int i = 0; i < 2000; i++)
	{
		for (int n = draw(12); n > 0; n--)
			something();
		look(draw(3) == 0 ? draw(4) : MAX_ROWS, some_things);
		if (forgets && draw(50) == 0)
			tpc_unseen_forget(&unseen);
	}
	while (nrunning > 0)
		end(running[0], true);
	look(MAX_ROWS, NULL);
	return missed() == 0;
}

/* One transaction that runs for long, and many short ones. */
static void
long_writer(void)
{
	int			old;
	int			npoints = 0;

	reset(1000, 1);
	old = begin();
	insert(old);
	for (int i = 0; i < 10000; i++)
	{
		int			a = begin();
		int			b = begin();

		insert(b);
		insert(a);
		end(a, true);
		look(MAX_ROWS, NULL);
		insert(b);
		end(b, true);
		look(MAX_ROWS, NULL);
		npoints = Max(npoints, unseen.npoints);
	}
	ok(missed() == 0, "a transaction that runs for long: others are seen");
	ok(passed_over < 40000, "... without passing over all that was seen");
	ok(npoints < 8, "... and few points are kept");
	insert(old);
	end(old, true);
	look(MAX_ROWS, NULL);
	ok(missed() == 0, "... and it is seen when it ends");
	passed_over = 0;
	look(MAX_ROWS, NULL);
	ok(passed_over == 0, "... and then nothing is passed over");
}

int
main(void)
{
	bool		passed = true;
	int64		first;

	for (uint64 i = 1; i <= 60; i++)
		passed &= simulate(1000, i, false);
	ok(passed, "in any order, with looks that stop early: nothing is missed");
	passed = true;
	for (uint64 i = 1; i <= 20; i++)
		passed &= simulate(0xFFFFFFFF - 1500, i, false);
	ok(passed, "... when xids wrap around");
	passed = true;
	for (uint64 i = 1; i <= 20; i++)
		passed &= simulate(1000, i, true);
	ok(passed, "... when all is forgotten now and then");
	long_writer();

	reset(1000, 1);
	for (int i = 0; i < 10; i++)
	{
		int			xact = begin();

		insert(xact);
		end(xact, true);
	}
	look(MAX_ROWS, NULL);
	tpc_unseen_again(&unseen, 4);
	first = tpc_unseen_begin(&unseen, base + latest_over + 1, NULL, 0);
	ok(first == 4, "what is to be looked at again is where the next look begins");
	free_unseen();
	return done_testing();
}
