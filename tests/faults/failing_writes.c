/* Lets the n-th write to a file of ours fail; loaded before libc, so that SQLite's writes pass here.
 *
 * A write that finds the disk full leaves half of itself behind, as a file system does. With error 0
 * the process is killed in its place.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <unistd.h>

static long seen, fails_at;
static int with_error, for_ever;

void arm(long at, int error, int ever)
{
    seen = 0, fails_at = at, with_error = error, for_ever = ever;
}

long writes_seen(void)
{
    return seen;
}

static int fails(int file)
{
    char link[64], path[512];
    if (!fails_at)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, "/failing/") || strstr(path, "-shm"))
        return 0;
    seen++;
    return seen == fails_at || (for_ever && seen > fails_at);
}

static long refuse(void)
{
    if (!with_error)
        kill(getpid(), SIGKILL);
    errno = with_error;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size)
{
    if (!fails(file))
        return REAL(write)(file, data, size);
    if (with_error == ENOSPC && size > 1)
        REAL(write)(file, data, size / 2);
    return refuse();
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    if (!fails(file))
        return REAL(pwrite)(file, data, size, at);
    if (with_error == ENOSPC && size > 1)
        REAL(pwrite)(file, data, size / 2, at);
    return refuse();
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
{
    if (!fails(file))
        return REAL(pwrite64)(file, data, size, at);
    if (with_error == ENOSPC && size > 1)
        REAL(pwrite64)(file, data, size / 2, at);
    return refuse();
}

ssize_t sendfile(int file, int from, off_t *at, size_t size)
{
    return fails(file) ? refuse() : REAL(sendfile)(file, from, at, size);
}

ssize_t sendfile64(int file, int from, off64_t *at, size_t size)
{
    return fails(file) ? refuse() : REAL(sendfile64)(file, from, at, size);
}

int fsync(int file)
{
    return fails(file) ? refuse() : REAL(fsync)(file);
}

int fdatasync(int file)
{
    return fails(file) ? refuse() : REAL(fdatasync)(file);
}

int ftruncate(int file, off_t size)
{
    return fails(file) ? refuse() : REAL(ftruncate)(file, size);
}

int ftruncate64(int file, off64_t size)
{
    return fails(file) ? refuse() : REAL(ftruncate64)(file, size);
}
