// SPDX-License-Identifier: Apache-2.0
// Nanoseconds per system call, as this process sees them: the median over batches of one call in a loop.
// usage: syscall_cost getppid|pread BATCHES        prints one number
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CALLS_PER_BATCH = 2000 };

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
    int batches = argc == 3 ? atoi(argv[2]) : 0;
    int pread_wanted = argc == 3 && !strcmp(argv[1], "pread");
    if (batches < 1 || (!pread_wanted && strcmp(argv[1], "getppid"))) {
        fprintf(stderr, "usage: syscall_cost getppid|pread BATCHES\n");
        return 2;
    }
    int fd = open("/dev/null", O_RDONLY); // the cheapest file: what is added shows best against it
    double *cost = calloc(batches, sizeof *cost);
    char byte;
    for (int b = 0; b < batches; b++) {
        double start = now_ns();
        for (int i = 0; i < CALLS_PER_BATCH; i++) {
            if (pread_wanted) {
                if (pread(fd, &byte, 1, 0) != 0)
                    return 1;
            } else if (getppid() < 0) {
                return 1;
            }
        }
        cost[b] = (now_ns() - start) / CALLS_PER_BATCH;
    }
    qsort(cost, batches, sizeof *cost, compare);
    printf("%.3f\n", cost[batches / 2]);
    return 0;
}
