/*-------------------------------------------------------------------------
 *
 * make_seeds.c
 *	  A program that writes the seeds of a target as files into a directory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe_or_be.h"

#include "fuzz.h"

static const char *dir;

static void
write_file(const char *name, const uint8_t *data, size_t size)
{
	char		path[MAXPGPATH];
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "wb");
	if (file == NULL || fwrite(data, 1, size, file) != size ||
		fclose(file) != 0)
	{
		fprintf(stderr, "could not write file \"%s\": %m\n", path);
		exit(1);
	}
}

int
main(int argc, char **argv)
{
	if (argc != 2)
	{
		fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
		return 1;
	}
	dir = argv[1];
	fuzz_seeds(write_file);
	return 0;
}
