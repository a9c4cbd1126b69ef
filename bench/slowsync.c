/*-------------------------------------------------------------------------
 *
 * slowsync.c
 *	  Makes every flush of the WAL take longer, as on storage that is not in
 *	  the machine.
 *
 * To be preloaded into a server whose wal_sync_method is fdatasync, which it
 * calls for nothing else.  The delay, in microseconds, is in SLOWSYNC_US.  It
 * costs no CPU time, as little as waiting for a disk does.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int
fdatasync(int fd)
{
	static int	(*real) (int) = NULL;
	static long us = -1;
	struct timespec ts;

	if (us < 0)
	{
		const char *value = getenv("SLOWSYNC_US");

		us = value ? atol(value) : 0;
		real = (int (*) (int)) dlsym(RTLD_NEXT, "fdatasync");
	}
	ts.tv_sec = us / 1000000;
	ts.tv_nsec = us % 1000000 * 1000;
	nanosleep(&ts, NULL);
	return real(fd);
}
