// SPDX-License-Identifier: Apache-2.0
// Nanoseconds per system call, as this process sees them: the median over batches of one call in a loop.
// usage: syscall_cost getppid|pread|access|open BATCHES [PATH]        prints one number; open: with its close
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CALLS_PER_BATCH = 2000 };
enum { GETPPID, PREAD, ACCESS, OPEN, KINDS };

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"getppid", "pread", "access", "open"};
    const char *path = argc == 4 ? argv[3] : "/dev/null"; // the cheapest file: what is added shows best against it
    int batches = argc >= 3 ? atoi(argv[2]) : 0, kind = 0;
    while (kind < KINDS && (argc < 3 || strcmp(argv[1], kinds[kind])))
        kind++;
    if (batches < 1 || kind == KINDS) {
        fprintf(stderr, "usage: syscall_cost getppid|pread|access|open BATCHES [PATH]\n");
        return 2;
    }
    int fd = open(path, O_RDONLY);
    double *cost = calloc(batches, sizeof *cost);
    char byte;
    for (int b = 0; b < batches; b++) {
        double start = now_ns();
        for (int i = 0; i < CALLS_PER_BATCH; i++) {
            long result = kind == GETPPID  ? getppid() < 0
                          : kind == PREAD  ? pread(fd, &byte, 1, 0)
                          : kind == ACCESS ? access(path, R_OK)
                                           : close(open(path, O_RDONLY));
            if (result != 0)
                return 1;
        }
        cost[b] = (now_ns() - start) / CALLS_PER_BATCH;
    }
    qsort(cost, batches, sizeof *cost, compare);
    printf("%.3f\n", cost[batches / 2]);
    return 0;
}
