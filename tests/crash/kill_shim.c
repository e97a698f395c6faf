/* Counts the calls of this process that change files, and kills it before the one with a chosen number; a write is done by half first.
 * Loaded with LD_PRELOAD. Nothing happens until ti_arm(n) is called, with n from 1. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left = 0; /* calls until the kill; 0 = not armed */

void ti_arm(long count) { left = count; }
long ti_left(void) { return left; }

static int due(void) { return left > 0 && --left == 0; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_file(int fd) { struct stat s; return fstat(fd, &s) == 0 && S_ISREG(s.st_mode); }

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = NEXT(write);
    if (is_file(fd) && due()) { next(fd, data, size / 2); die(); }
    return next(fd, data, size);
}
int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = NEXT(rename);
    if (due()) die();
    return next(from, to);
}
int link(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = NEXT(link);
    if (due()) die();
    return next(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    static int (*next)(int, const char *, int, const char *, int);
    if (!next) next = NEXT(linkat);
    if (due()) die();
    return next(a, from, b, to, flags);
}
int unlink(const char *path) {
    static int (*next)(const char *);
    if (!next) next = NEXT(unlink);
    if (due()) die();
    return next(path);
}
int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = NEXT(fsync);
    if (due()) die();
    return next(fd);
}
int mkdir(const char *path, mode_t mode) {
    static int (*next)(const char *, mode_t);
    if (!next) next = NEXT(mkdir);
    if (due()) die();
    return next(path, mode);
}
int open64(const char *path, int flags, ...) {
    static int (*next)(const char *, int, ...);
    va_list more;
    mode_t mode = 0;
    if (!next) next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    if (flags & O_CREAT) { va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
    if ((flags & (O_CREAT | O_TRUNC)) && due()) die();
    return next(path, flags, mode);
}
