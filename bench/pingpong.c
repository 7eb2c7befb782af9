// SPDX-License-Identifier: Apache-2.0
// Round trip of 64 bytes between two processes by UCX tag matching, in C on both sides: no RPC on this UCX is faster.
// usage: pingpong TRANSPORTS ROUNDS     prints the median in microseconds
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

enum { SIZE = 64, WARMUP = 1000 };

static ucp_context_h context;
static ucp_worker_h worker;
static ucp_ep_h peer;

static void must(ucs_status_t status, const char *what)
{
    if (status == UCS_OK)
        return;
    fprintf(stderr, "pingpong: %s: %s\n", what, ucs_status_string(status));
    exit(1);
}

static void open_worker(const char *transports)
{
    ucp_config_t *config;
    must(ucp_config_read(NULL, NULL, &config), "config");
    must(ucp_config_modify(config, "TLS", transports), "TLS");
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG};
    must(ucp_init(&params, config, &context), "init");
    ucp_config_release(config);
    ucp_worker_params_t mode = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                .thread_mode = UCS_THREAD_MODE_SINGLE};
    must(ucp_worker_create(context, &mode, &worker), "worker");
}

// Sends our address and connects to the one received.
static void meet(int to, int from)
{
    ucp_address_t *address;
    size_t length, theirs;
    must(ucp_worker_get_address(worker, &address, &length), "address");
    if (write(to, &length, sizeof length) < 0 || write(to, address, length) < 0 ||
        read(from, &theirs, sizeof theirs) < 0)
        exit(1);
    char *remote = malloc(theirs);
    if (read(from, remote, theirs) != (ssize_t)theirs)
        exit(1);
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = (ucp_address_t *)remote};
    must(ucp_ep_create(worker, &params, &peer), "endpoint");
}

static void done_send(void *request, ucs_status_t status, void *data)
{
    (void)request, (void)status;
    *(int *)data = 1;
}

static void done_receive(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *data)
{
    (void)info;
    done_send(request, status, data);
}

static void finish(ucs_status_ptr_t request, volatile int *done)
{
    if (request == NULL)
        return;
    if (UCS_PTR_IS_ERR(request))
        must(UCS_PTR_STATUS(request), "transfer");
    while (!*done)
        ucp_worker_progress(worker);
    ucp_request_free(request);
}

static void transfer(char *buffer, int sending)
{
    volatile int done = 0;
    ucp_request_param_t params = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                  .user_data = (void *)&done};
    if (sending) {
        params.cb.send = done_send;
        finish(ucp_tag_send_nbx(peer, buffer, SIZE, 1, &params), &done);
    } else {
        params.cb.recv = done_receive;
        finish(ucp_tag_recv_nbx(worker, buffer, SIZE, 1, -1, &params), &done);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(const char *transports, int rounds, int to, int from, int first)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    sched_setaffinity(0, sizeof set, &set);
    open_worker(transports);
    meet(to, from);
    double *lasted = calloc(rounds, sizeof *lasted);
    char buffer[SIZE] = {0};
    for (int i = -WARMUP; i < rounds; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        transfer(buffer, first);
        transfer(buffer, !first);
        clock_gettime(CLOCK_MONOTONIC, &b);
        if (i >= 0)
            lasted[i] = (b.tv_sec - a.tv_sec) * 1e6 + (b.tv_nsec - a.tv_nsec) * 1e-3;
    }
    if (first) {
        qsort(lasted, rounds, sizeof *lasted, compare);
        printf("%.3f\n", lasted[rounds / 2]);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    int there[2], back[2];
    if (argc != 3 || atoi(argv[2]) < 1 || pipe(there) || pipe(back)) {
        fprintf(stderr, "usage: pingpong TRANSPORTS ROUNDS\n");
        return 2;
    }
    if (fork() == 0) {
        run(argv[1], atoi(argv[2]), back[1], there[0], 0);
        // The last answer may still need progress here: go on until the other side has it and closes its pipe.
        close(there[1]);
        struct pollfd closed = {.fd = there[0]};
        while (poll(&closed, 1, 0) == 0)
            ucp_worker_progress(worker);
        _exit(0);
    }
    close(there[0]);
    run(argv[1], atoi(argv[2]), there[1], back[0], 1);
    close(there[1]);
    wait(NULL);
    return 0;
}
