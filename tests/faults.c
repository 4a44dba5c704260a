/* Makes storage fail on purpose: loaded with LD_PRELOAD, it intercepts the C library's calls that change files.

   Calls on paths in a folder are counted; the k-th that matches fails or sends a signal. tests/faults.py explains the
   environment variables. Compiles as C and as C++. Linux only: the real calls are raw system calls, so that nothing
   here can call itself. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifdef __cplusplus
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { PATH = 4096 };
enum when { BEFORE, HALF, AFTER };

static struct {
    char folder[PATH], operations[256], places[1024];
    long at; /* 0: nothing fails */
    int error, signal, forever, is_worker, records;
    enum when when;
    long trainer;
    int log;
} rule = {"", "", "", 0, 0, 0, 0, 0, 0, BEFORE, 0, -1};
static long matches, order;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* The drawing process is recognized by its command line; its signals go to its parent, the trainer. */
static int in_worker(void) {
    char line[PATH];
    if (*setting("FAULT_WORKER")) return 1; /* a fork of a process that has another one */
    long file = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY, 0);
    long length = file < 0 ? 0 : syscall(SYS_read, (int)file, line, sizeof line - 1);
    if (file >= 0) syscall(SYS_close, (int)file);
    return length > 0 && memmem(line, (size_t)length, "viz.charts.renderer", 19) != NULL;
}

/* Read the rule from the environment and count from 0. Called at load, and through ctypes by a forked child. */
EXPORT void faults_arm(void) {
    const char *when = setting("FAULT_WHEN"), *log = setting("FAULT_LOG");
    rule.at = 0;
    snprintf(rule.folder, sizeof rule.folder, "%s", setting("FAULT_FOLDER"));
    snprintf(rule.operations, sizeof rule.operations, ",%s,", setting("FAULT_OPERATIONS"));
    snprintf(rule.places, sizeof rule.places, "%s", setting("FAULT_PLACES"));
    rule.error = atoi(setting("FAULT_ERRNO"));
    rule.signal = atoi(setting("FAULT_SIGNAL"));
    rule.forever = !strcmp(setting("FAULT_FOREVER"), "1");
    rule.records = !strcmp(setting("FAULT_RECORDS"), "1");
    rule.when = !strcmp(when, "half") ? HALF : !strcmp(when, "after") ? AFTER : BEFORE;
    rule.is_worker = in_worker();
    rule.trainer = atol(setting("FAULT_TRAINER"));
    if (!rule.trainer && !rule.is_worker && *rule.folder) {
        char own[32];
        snprintf(own, sizeof own, "%ld", (long)syscall(SYS_getpid));
        setenv("FAULT_TRAINER", own, 1); /* inherited by the drawing process */
        rule.trainer = atol(own);
    }
    if (rule.log >= 0) syscall(SYS_close, rule.log);
    rule.log = -1;
    if (*log) {
        long file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        /* A high number, so that code that closes or replaces low descriptors leaves it alone. */
        if (file >= 0) {
            rule.log = (int)syscall(SYS_fcntl, (int)file, F_DUPFD_CLOEXEC, 900);
            syscall(SYS_close, (int)file);
        }
    }
    __atomic_store_n(&matches, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&order, 0, __ATOMIC_SEQ_CST);
    rule.at = atol(setting("FAULT_AT"));
}

__attribute__((constructor)) static void load(void) { faults_arm(); }

/* The paths of one call, and whether it is the one that fails. */
struct call {
    const char *operation;
    char path[PATH], to[PATH];
    long count, began, offset, size;
    int watched, lands;
};

static void record(const char *kind, const struct call *call, long ended) {
    char line[3 * PATH];
    int length = snprintf(line, sizeof line, "%s\t%ld\t%s\t%ld\t%ld\t%ld\t%ld\t%ld\t%s\t%s\n", kind, (long)syscall(SYS_getpid),
                          call->operation, call->count, call->began, ended, call->offset, call->size, call->path,
                          call->to);
    if (rule.log >= 0) syscall(SYS_write, rule.log, line, (size_t)length);
}

static int is_below(const char *path) {
    size_t length = strlen(rule.folder);
    return length && !strncmp(path, rule.folder, length) && (path[length] == '/' || !path[length]);
}

/* Whether the path in the folder matches one of the places: patterns with | between them. */
static int is_place(const char *path) {
    char places[sizeof rule.places], *rest = NULL;
    const char *name = path + strlen(rule.folder);
    if (!is_below(path)) return 0;
    if (*name == '/') name++;
    memcpy(places, rule.places, sizeof places);
    for (char *one = strtok_r(places, "|", &rest); one; one = strtok_r(NULL, "|", &rest))
        if (!fnmatch(one, name, 0)) return 1;
    return 0;
}

static int is_operation(const char *operation) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, ",%s,", operation);
    return strstr(rule.operations, wanted) != NULL;
}

static void land(const struct call *call) {
    record("landed", call, 0);
    if (!rule.signal) return;
    if (rule.is_worker && rule.trainer > 1) syscall(SYS_kill, (int)rule.trainer, rule.signal);
    if (!rule.is_worker || rule.signal == SIGKILL) syscall(SYS_kill, (int)syscall(SYS_getpid), rule.signal);
    while (rule.signal == SIGKILL) syscall(SYS_sched_yield); /* ending may take a moment, and no other call may follow */
}

/* Before the call, whose paths are known. True: it fails, with errno set. */
static int begin(struct call *call) {
    call->watched = is_below(call->path) || is_below(call->to);
    call->lands = 0;
    if (!call->watched) return 0;
    call->began = __atomic_add_fetch(&order, 1, __ATOMIC_SEQ_CST);
    if (rule.at && is_operation(call->operation) && (is_place(call->path) || is_place(call->to))) {
        call->count = __atomic_add_fetch(&matches, 1, __ATOMIC_SEQ_CST);
        call->lands = call->count == rule.at || (rule.forever && call->count > rule.at);
    }
    if (!call->lands || (rule.signal && rule.when != BEFORE)) return 0;
    land(call);
    errno = rule.error;
    return !rule.signal;
}

/* After the call: record it if it succeeded. */
static long end(struct call *call, long result) {
    int error = errno;
    if (call->watched && rule.records && result >= 0)
        record("call", call, __atomic_add_fetch(&order, 1, __ATOMIC_SEQ_CST));
    if (call->watched && call->lands && rule.signal && rule.when != BEFORE) land(call);
    errno = error;
    return result;
}

static int is_idle(void) { return !*rule.folder || (!rule.at && !rule.records); }

static void path_of(int file, char *path) {
    char link[64];
    long length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH - 1);
    path[length > 0 ? length : 0] = 0;
}

static void path_at(int folder, const char *name, char *path) {
    char base[PATH] = "";
    if (*name == '/') {
        snprintf(path, PATH, "%s", name);
        return;
    }
    if (folder == AT_FDCWD)
        syscall(SYS_getcwd, base, sizeof base);
    else
        path_of(folder, base);
    if (snprintf(path, PATH, "%s/%s", base, name) >= PATH) *path = 0;
}

#define CALL(name) struct call call = {name, "", "", 0, 0, 0, 0, 0, 0}
/* Defines the library's symbol under our own name, so that it can't conflict with the declaration in the headers. */
#define WRAP(type, symbol, ours, arguments) \
    EXPORT type ours arguments __asm__(symbol); \
    EXPORT type ours arguments

static long cut(const struct call *call, long size) {
    return call->lands && rule.signal && rule.when == HALF ? size / 2 : size;
}

static ssize_t write_at(int file, const void *data, size_t size, off_t offset, int positioned) {
    CALL("write");
    if (!is_idle()) {
        path_of(file, call.path);
        if (begin(&call)) return -1;
        size = (size_t)cut(&call, (long)size);
        call.offset = positioned ? offset : syscall(SYS_lseek, file, 0, SEEK_CUR);
        call.size = (long)size;
    }
    return end(&call, positioned ? syscall(SYS_pwrite64, file, data, size, offset)
                                 : syscall(SYS_write, file, data, size));
}

WRAP(ssize_t, "write", faults_write, (int file, const void *data, size_t size)) {
    return write_at(file, data, size, 0, 0);
}
WRAP(ssize_t, "pwrite", faults_pwrite, (int file, const void *data, size_t size, off_t offset)) {
    return write_at(file, data, size, offset, 1);
}
WRAP(ssize_t, "pwrite64", faults_pwrite64, (int file, const void *data, size_t size, off_t offset)) {
    return write_at(file, data, size, offset, 1);
}
WRAP(ssize_t, "writev", faults_writev, (int file, const struct iovec *parts, int count)) {
    CALL("write");
    if (!is_idle()) {
        path_of(file, call.path);
        if (begin(&call)) return -1;
    }
    return end(&call, syscall(SYS_writev, file, parts, (int)cut(&call, count)));
}

static int sync_file(int file, long number) {
    CALL("sync");
    if (!is_idle()) {
        path_of(file, call.path);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(number, file));
}

WRAP(int, "fsync", faults_fsync, (int file)) { return sync_file(file, SYS_fsync); }
WRAP(int, "fdatasync", faults_fdatasync, (int file)) { return sync_file(file, SYS_fdatasync); }

static int truncate_file(int file, off_t size) {
    CALL("truncate");
    if (!is_idle()) {
        path_of(file, call.path);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_ftruncate, file, size));
}

WRAP(int, "ftruncate", faults_ftruncate, (int file, off_t size)) { return truncate_file(file, size); }
WRAP(int, "ftruncate64", faults_ftruncate64, (int file, off_t size)) { return truncate_file(file, size); }

static int rename_at(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    CALL("rename");
    if (!is_idle()) {
        path_at(from_folder, from, call.path);
        path_at(to_folder, to, call.to);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}

WRAP(int, "rename", faults_rename, (const char *from, const char *to)) {
    return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0);
}
WRAP(int, "renameat", faults_renameat, (int from_folder, const char *from, int to_folder, const char *to)) {
    return rename_at(from_folder, from, to_folder, to, 0);
}
WRAP(int, "renameat2", faults_renameat2,
     (int from_folder, const char *from, int to_folder, const char *to, unsigned flags)) {
    return rename_at(from_folder, from, to_folder, to, flags);
}

static int link_at(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    CALL("link");
    if (!is_idle()) {
        path_at(from_folder, from, call.path);
        path_at(to_folder, to, call.to);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_linkat, from_folder, from, to_folder, to, flags));
}

WRAP(int, "link", faults_link, (const char *from, const char *to)) { return link_at(AT_FDCWD, from, AT_FDCWD, to, 0); }
WRAP(int, "linkat", faults_linkat, (int from_folder, const char *from, int to_folder, const char *to, int flags)) {
    return link_at(from_folder, from, to_folder, to, flags);
}

static int unlink_at(int folder, const char *path, int flags) {
    CALL("unlink");
    if (!is_idle()) {
        path_at(folder, path, call.path);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_unlinkat, folder, path, flags));
}

WRAP(int, "unlink", faults_unlink, (const char *path)) { return unlink_at(AT_FDCWD, path, 0); }
WRAP(int, "unlinkat", faults_unlinkat, (int folder, const char *path, int flags)) {
    return unlink_at(folder, path, flags);
}

WRAP(int, "mkdir", faults_mkdir, (const char *path, mode_t mode)) {
    CALL("create");
    if (!is_idle()) {
        path_at(AT_FDCWD, path, call.path);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}

/* An open that may create the file counts as `create`; another one for writing counts as `open`. */
static int open_at(int folder, const char *path, int flags, mode_t mode) {
    CALL("create");
    if (!is_idle() && (flags & (O_CREAT | O_WRONLY | O_RDWR))) {
        if (!(flags & O_CREAT)) call.operation = "open";
        path_at(folder, path, call.path);
        if (begin(&call)) return -1;
    }
    return (int)end(&call, syscall(SYS_openat, folder, path, flags, mode));
}

#define OPEN(symbol, ours) \
    WRAP(int, symbol, ours, (const char *path, int flags, ...)) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return open_at(AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(symbol, ours) \
    WRAP(int, symbol, ours, (int folder, const char *path, int flags, ...)) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return open_at(folder, path, flags, mode); \
    }
OPEN("open", faults_open)
OPEN("open64", faults_open64)
OPENAT("openat", faults_openat)
OPENAT("openat64", faults_openat64)
