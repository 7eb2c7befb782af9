/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host of the runtime in C: `host LIBRARY CHECK`, with the runtime made from standin/.  Exit status 0, or a line that
 * says what is wrong.  With -DWITH_MPI a check runs around MPI_Init.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_MPI
#include <mpi.h>
#endif

#include "../../intercept/host.h"

enum { IDENTITY, DESCRIBE, FAIL, ODD, ESCAPE, SHIM, FORKED, SPIN, STATES, MODULES, INTERPRETER, WARN, WORKER };
enum { THREADS = 8, FORKS = 20, CALLS = 2000, STACK_BYTES = 256 << 10 };

#define CHECK(condition)                                                  \
    do {                                                                  \
        if (!(condition)) {                                               \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            fflush(stdout);                                               \
            _exit(1);                                                     \
        }                                                                 \
    } while (0)

static int same(int inside)
{
    return inside;
}

static int copy(void *out, const void *in, size_t size)
{
    memcpy(out, in, size);
    return 1;
}

static const struct madfs_host host = {.abi = MADFS_HOST_ABI, .version = "test", .inside = same, .copy = copy};
static const struct madfs_runtime *runtime;

/* What the shim does around libc's fork(). */
static void begin_fork(void)
{
    runtime->fork_begins();
}

static void end_in_parent(void)
{
    runtime->fork_ends(0);
}

static void end_in_child(void)
{
    runtime->fork_ends(1);
}

static long call(int number, long value)
{
    struct madfs_call arguments = {.number = number, .count = 1, .arg = {{.kind = MADFS_ARG_INT, .value = value}}};
    char escaped[MADFS_PATH_MAX];
    int index;

    arguments.count = number != FORKED && number != STATES;
    return runtime->call(&arguments, escaped, &index);
}

static void load(const char *path)
{
    char error[1024] = "";
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library)
        printf("%s\n", dlerror());
    CHECK(library);
    const struct madfs_runtime *(*start)(const struct madfs_host *, char *, size_t);
    *(void **)&start = dlsym(library, "madfs_runtime_start");
    CHECK(start);
    runtime = start(&host, error, sizeof error);
    if (!runtime)
        printf("%s\n", error);
    CHECK(runtime);
    CHECK(pthread_atfork(begin_fork, end_in_parent, end_in_child) == 0);
}

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

static atomic_int stop;

static void *call_often(void *number)
{
    for (long i = 0; i < CALLS; i++)
        CHECK(call(IDENTITY, (long)number * CALLS + i) == (long)number * CALLS + i);
    return NULL;
}

static void *call_once(void *number)
{
    CHECK(call(IDENTITY, (long)number) == (long)number);
    return NULL;
}

static void check_threads(void)
{
    pthread_t threads[THREADS];

    for (long round = 0; round < 4; round++) {
        for (long i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, call_often, (void *)i) == 0);
        for (long i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    for (long i = 0; i < 500; i++) {
        CHECK(pthread_create(&threads[0], NULL, call_once, (void *)i) == 0);
        pthread_join(threads[0], NULL);
    }
    CHECK(call(STATES, 0) == 1);
}

/* A thread whose other destructor calls once more, after the runtime's own destructor. */
static pthread_key_t late_key;

static void call_late(void *value)
{
    CHECK(call(IDENTITY, (long)value) == (long)value);
}

static void *leave_late(void *number)
{
    CHECK(call(IDENTITY, 1) == 1);
    pthread_setspecific(late_key, number);
    return NULL;
}

static void check_destructors(void)
{
    pthread_t thread;

    CHECK(pthread_key_create(&late_key, call_late) == 0);
    for (long i = 1; i < 50; i++) {
        CHECK(pthread_create(&thread, NULL, leave_late, (void *)i) == 0);
        pthread_join(thread, NULL);
    }
    CHECK(call(STATES, 0) == 1);
}

/* A thread that is cancelled while it calls ends between two calls. */
static void *call_forever(void *ready)
{
    atomic_store((atomic_int *)ready, 1);
    for (;;) {
        call(WARN, 1); /* writes: a cancellation point in libc */
        pthread_testcancel();
    }
    return NULL;
}

static void check_cancel(void)
{
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        void *result;
        atomic_int ready = 0;
        CHECK(pthread_create(&thread, NULL, call_forever, &ready) == 0);
        while (!ready)
            sched_yield();
        pthread_cancel(thread);
        CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    }
    CHECK(call(STATES, 0) == 1);
}

/* Start and all calls fit on the shim's hook stack. */
static void *use_little_stack(void *path)
{
    char room[1 << 12];

    load(path);
    CHECK(call(IDENTITY, 5) == 5);
    CHECK(call(WORKER, (long)room) == 4 && !strcmp(room, "True"));
    CHECK(call(ODD, 0) == -5);
    return NULL;
}

static void check_stack(const char *path)
{
    pthread_t thread;
    pthread_attr_t attributes;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    CHECK(pthread_create(&thread, &attributes, use_little_stack, (void *)path) == 0);
    pthread_join(thread, NULL);
}

/* --- processes ---------------------------------------------------------------------------------------------------- */

static void *stay_busy(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop))
        call(SPIN, 2000);
    return NULL;
}

static void expect_exit(pid_t pid, int expected)
{
    int status = -1;

    CHECK(pid > 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == expected);
}

static void *call_in_child(void *number)
{
    CHECK(call(IDENTITY, (long)number) == (long)number);
    return NULL;
}

static void check_child(long depth)
{
    pthread_t thread;

    alarm(20);
    CHECK(call(FORKED, 0) == depth);
    CHECK(call(STATES, 0) == 1);
    CHECK(pthread_create(&thread, NULL, call_in_child, (void *)depth) == 0);
    pthread_join(thread, NULL);
}

static void check_fork(void)
{
    pthread_t threads[3];

    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, stay_busy, NULL) == 0);
    for (int i = 0; i < FORKS; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            check_child(1);
            pid = fork();
            if (pid == 0) {
                check_child(2);
                _exit(5);
            }
            expect_exit(pid, 5);
            _exit(7);
        }
        expect_exit(pid, 7);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK(call(FORKED, 0) == 0);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < 32; number++)
        CHECK(!sigismember(&blocked, number));
}

/* clone() past libc's fork(): no handler runs. */
static pid_t bare_fork(void)
{
    return (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
}

static atomic_int inside;

static void *spin_long(void *unused)
{
    (void)unused;
    atomic_store(&inside, 1);
    call(SPIN, 30000000);
    return NULL;
}

static void check_clone(void)
{
    for (int i = 0; i < 5; i++) {
        pid_t pid = bare_fork();
        if (pid == 0) {
            CHECK(call(FORKED, 0) == 1);
            pid = fork();
            if (pid == 0)
                _exit(call(FORKED, 0) == 2 ? 5 : 1);
            expect_exit(pid, 5);
            _exit(7);
        }
        expect_exit(pid, 7);
    }
    /* In the middle of another thread's call nothing is promised but an error. */
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, spin_long, NULL) == 0);
    while (!inside || call(STATES, 0) != 2)
        sched_yield();
    pid_t pid = bare_fork();
    if (pid == 0) {
        alarm(20);
        CHECK(call(IDENTITY, 1) == -5);
        CHECK(call(IDENTITY, 1) == -5);
        pid = fork();
        if (pid == 0)
            _exit(call(IDENTITY, 1) == -5 ? 5 : 1);
        expect_exit(pid, 5);
        _exit(7);
    }
    expect_exit(pid, 7);
    pthread_join(thread, NULL);
}

static void call_at_exit(void)
{
    CHECK(call(IDENTITY, 3) == 3);
    runtime->exiting();
}

/* --- numbers ------------------------------------------------------------------------------------------------------ */

static long faults(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

/* Times for people; nothing is checked. */
static void measure(const char *path)
{
    char room[1 << 12];
    double began_us = now_us(), best_ns = 1e9;
    long before = faults();

    load(path);
    printf("load and start: %.0f us, %ld page faults\n", now_us() - began_us, faults() - before);
    began_us = now_us();
    CHECK(call(WORKER, (long)room) > 0);
    printf("UCX worker: %.0f us\n", now_us() - began_us);
    for (int round = 0; round < 30; round++) {
        began_us = now_us();
        for (int i = 0; i < 10000; i++)
            call(IDENTITY, 1 << 20);
        double ns = (now_us() - began_us) / 10000 * 1e3;
        best_ns = ns < best_ns ? ns : best_ns;
    }
    printf("a call with one integer: %.0f ns\n", best_ns);
}

#ifdef WITH_MPI
static void check_mpi(const char *path, int before)
{
    char room[1 << 12], others[64] = "";
    int rank, size;

    if (before)
        load(path);
    MPI_Init(NULL, NULL);
    if (!before)
        load(path);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(call(WORKER, (long)room) == 4 && !strcmp(room, "True"));
    for (int round = 0; round < 50; round++) {
        int sum = 0, mine = (int)call(IDENTITY, rank + 1);
        MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        CHECK(sum == size * (size + 1) / 2);
        MPI_Sendrecv(room, 8, MPI_CHAR, (rank + 1) % size, 0, others, 8, MPI_CHAR, (rank + size - 1) % size, 0,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        CHECK(!strcmp(others, "True"));
    }
    pid_t pid = fork();
    if (pid == 0)
        _exit(call(FORKED, 0) == 1 ? 7 : 1);
    expect_exit(pid, 7);
    runtime->exiting();
    MPI_Finalize();
}
#endif

int main(int count, char **arguments)
{
    CHECK(count == 3);
    const char *path = arguments[1], *check = arguments[2];

    if (!strcmp(check, "stack"))
        check_stack(path);
    else if (!strcmp(check, "measure"))
        measure(path);
#ifdef WITH_MPI
    else if (!strcmp(check, "before") || !strcmp(check, "after"))
        check_mpi(path, !strcmp(check, "before"));
#endif
    else {
        load(path);
        if (!strcmp(check, "threads"))
            check_threads();
        else if (!strcmp(check, "destructors"))
            check_destructors();
        else if (!strcmp(check, "cancel"))
            check_cancel();
        else if (!strcmp(check, "fork"))
            check_fork();
        else if (!strcmp(check, "clone"))
            check_clone();
        else if (!strcmp(check, "exit"))
            atexit(call_at_exit);
        else if (!strcmp(check, "modules"))
            CHECK(call(MODULES, (long)malloc(1 << 16)) > 0);
        else
            CHECK(!strcmp(check, "start"));
    }
    puts("done");
    return 0;
}
