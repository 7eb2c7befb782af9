// SPDX-License-Identifier: Apache-2.0
// File operations per second and MiB per second in a directory, by several processes that start each phase together.
// An ordinary program: it knows nothing of MadFS.
// usage: files DIRECTORY CLIENTS FILES MEBIBYTES [CPU]
// prints lines of a phase and a value: operations/s or MiB/s of all clients together
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 100, SMALL = 3901, HARD = 47008, EASY = 1 << 20, CLIENTS_MAX = 64, PHASES_MAX = 16 };

struct shared {
    volatile int arrived, failed;
    double begin[CLIENTS_MAX][PHASES_MAX], end[CLIENTS_MAX][PHASES_MAX];
};

static const char *directory;
static int clients, files, me;
static long mebibytes;
static struct shared *shared;
static char *buffer;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void check(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "files: %s: %s\n", what, strerror(errno));
    shared->failed = 1;
    _exit(1);
}

// Waits for all clients; sleeping lets servers that share the cores finish.
static void barrier(int round)
{
    __sync_fetch_and_add(&shared->arrived, 1);
    while (shared->arrived < clients * round && !shared->failed)
        usleep(50);
}

static const char *name(const char *kind, int i)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s.%d.%d", directory, kind, me, i);
    return path;
}

static void create_empty(void)
{
    for (int i = 0; i < files; i++) {
        int fd = open(name("empty", i), O_CREAT | O_EXCL | O_WRONLY, 0644);
        check(fd >= 0, "create");
        check(close(fd) == 0, "close");
    }
}

static void stat_empty(void)
{
    struct stat st;
    for (int i = 0; i < files; i++)
        check(stat(name("empty", i), &st) == 0 && st.st_size == 0, "stat");
}

static void read_empty(void)
{
    for (int i = 0; i < files; i++) {
        int fd = open(name("empty", i), O_RDONLY);
        check(fd >= 0 && read(fd, buffer, SMALL) == 0 && close(fd) == 0, "open, read, close of an empty file");
    }
}

static void unlink_empty(void)
{
    for (int i = 0; i < files; i++)
        check(unlink(name("empty", i)) == 0, "unlink");
}

static void create_small(void)
{
    for (int i = 0; i < files; i++) {
        int fd = open(name("small", i), O_CREAT | O_EXCL | O_WRONLY, 0644);
        check(fd >= 0 && write(fd, buffer, SMALL) == SMALL && close(fd) == 0, "create of 3901 bytes");
    }
}

static void stat_small(void)
{
    struct stat st;
    for (int i = 0; i < files; i++)
        check(stat(name("small", i), &st) == 0 && st.st_size == SMALL, "stat");
}

static void read_small(void)
{
    for (int i = 0; i < files; i++) {
        int fd = open(name("small", i), O_RDONLY);
        check(fd >= 0 && read(fd, buffer, SMALL) == SMALL && close(fd) == 0, "open, read, close of 3901 bytes");
    }
}

static void unlink_small(void)
{
    for (int i = 0; i < files; i++)
        check(unlink(name("small", i)) == 0, "unlink");
}

static void stream(const char *kind, int flags, size_t transfer)
{
    int fd = open(name(kind, 0), flags, 0644);
    check(fd >= 0, "open");
    for (size_t done = 0; done + transfer <= (size_t)mebibytes << 20; done += transfer) {
        ssize_t n = flags & O_CREAT ? write(fd, buffer, transfer) : read(fd, buffer, transfer);
        check(n == (ssize_t)transfer, "transfer");
    }
    check(close(fd) == 0, "close");
}

static void write_easy(void) { stream("easy", O_CREAT | O_WRONLY, EASY); }
static void read_easy(void) { stream("easy", O_RDONLY, EASY); }
static void write_hard(void) { stream("hard", O_CREAT | O_WRONLY, HARD); }
static void read_hard(void) { stream("hard", O_RDONLY, HARD); }

// All clients to one file.
static int open_log(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/log", directory);
    int fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0644);
    check(fd >= 0, "open for appending");
    return fd;
}

static void append_small(void)
{
    int fd = open_log();
    for (int i = 0; i < files; i++)
        check(write(fd, buffer, RECORD) == RECORD, "append");
    check(close(fd) == 0, "close");
}

static void append_easy(void)
{
    int fd = open_log();
    for (long i = 0; i < mebibytes; i++)
        check(write(fd, buffer, EASY) == EASY, "append of 1 MiB");
    check(close(fd) == 0, "close");
}

static void remove_streams(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/log", directory);
    check(me || unlink(path) == 0, "unlink");
    check(unlink(name("easy", 0)) == 0 && unlink(name("hard", 0)) == 0, "unlink");
}

static const struct { const char *name; void (*run)(void); int transfer; } phases[] = {
    {"create_empty", create_empty, 0}, {"stat_empty", stat_empty, 0},
    {"open_read_close_empty", read_empty, 0}, {"unlink_empty", unlink_empty, 0},
    {"create_3901", create_small, 0}, {"stat_3901", stat_small, 0},
    {"open_read_close_3901", read_small, 0}, {"unlink_3901", unlink_small, 0},
    {"write_1MiB", write_easy, EASY}, {"read_1MiB", read_easy, EASY},
    {"write_47008", write_hard, HARD}, {"read_47008", read_hard, HARD},
    {"append_100", append_small, 0}, {"append_1MiB", append_easy, EASY}, {NULL, remove_streams, 0},
};
enum { PHASES = sizeof phases / sizeof *phases };

static void client(int number)
{
    struct stat st;
    me = number;
    check(stat(directory, &st) == 0, "stat of the directory"); // starts the client: `syscall` has that as first_touch
    for (int p = 0; p < PHASES; p++) {
        barrier(p + 1);
        shared->begin[number][p] = now();
        phases[p].run();
        shared->end[number][p] = now();
    }
    exit(shared->failed);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: files DIRECTORY CLIENTS FILES MEBIBYTES [CPU]\n");
        return 2;
    }
    directory = argv[1], clients = atoi(argv[2]), files = atoi(argv[3]), mebibytes = atol(argv[4]);
    if (clients < 1 || clients > CLIENTS_MAX || files < 1 || mebibytes < 1) {
        fprintf(stderr, "files: CLIENTS is 1 to %d, FILES and MEBIBYTES at least 1\n", CLIENTS_MAX);
        return 2;
    }
    if (argc > 5) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(atoi(argv[5]), &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    buffer = malloc(EASY);
    memset(buffer, 'm', EASY);
    for (int i = 0; i < clients; i++)
        if (fork() == 0)
            client(i);
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    for (int p = 0; p < PHASES && !failed; p++) {
        double begin = shared->begin[0][p], end = shared->end[0][p];
        for (int i = 1; i < clients; i++) {
            begin = shared->begin[i][p] < begin ? shared->begin[i][p] : begin;
            end = shared->end[i][p] > end ? shared->end[i][p] : end;
        }
        double seconds = end - begin;
        long moved = phases[p].transfer ? (mebibytes << 20) / phases[p].transfer * phases[p].transfer : 0;
        if (phases[p].name)
            printf("%s %.1f\n", phases[p].name, clients * (moved ? moved / 1048576.0 : files) / seconds);
    }
    return failed ? 1 : 0;
}
