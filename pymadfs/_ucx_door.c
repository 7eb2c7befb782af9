/* SPDX-License-Identifier: Apache-2.0 */
/* The TCP connection of pymadfs/door.py: Python's module for sockets is half a millisecond of a client's start. */
#include "_ucx_inner.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)1000 + now.tv_nsec / 1000000;
}

int ux_watch(int connection)
{
    /* Seconds of silence, between probes, and probes. */
    static const int wanted[][3] = {{IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
                                    {IPPROTO_TCP, TCP_KEEPIDLE, 3},  {IPPROTO_TCP, TCP_KEEPINTVL, 1},
                                    {IPPROTO_TCP, TCP_KEEPCNT, 2}};

    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        if (setsockopt(connection, wanted[i][0], wanted[i][1], &wanted[i][2], sizeof wanted[i][2]) < 0)
            return -errno;
    return 0;
}

/* 0 or -errno; a signal ends no wait. */
static int establish(int fd, const struct addrinfo *to, int64_t until_ms)
{
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    socklen_t size = sizeof(int);
    int got, error = 0;

    if (connect(fd, to->ai_addr, to->ai_addrlen) == 0)
        return 0;
    if (errno != EINPROGRESS && errno != EINTR)
        return -errno;
    do {
        int64_t left = until_ms - now_ms();
        got = poll(&writable, 1, left > 0 ? (int)left : 0);
    } while (got < 0 && errno == EINTR);
    if (got <= 0)
        return got ? -errno : -ETIMEDOUT;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? -errno : -error;
}

static int dial(const struct addrinfo *to, int64_t until_ms, const struct timeval *patience)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    int result = establish(fd, to, until_ms);
    if (result == 0)
        result = ux_watch(fd);
    if (result == 0 && (fcntl(fd, F_SETFL, 0) < 0 ||
                        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, sizeof *patience) < 0 ||
                        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, patience, sizeof *patience) < 0))
        result = -errno;
    if (result == 0)
        return fd;
    close(fd);
    return result;
}

int ux_dial(const char *host, int port, int timeout_ms)
{
    int64_t until_ms = now_ms() + timeout_ms;
    struct timeval patience = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *all;
    char service[16];
    int result = -ENOENT;

    snprintf(service, sizeof service, "%d", port);
    int problem = getaddrinfo(host, service, &hints, &all);
    if (problem)
        return problem == EAI_SYSTEM ? -errno : problem == EAI_MEMORY ? -ENOMEM : -ENOENT;
    for (const struct addrinfo *one = all; one && result < 0; one = one->ai_next)
        result = dial(one, until_ms, &patience);
    freeaddrinfo(all);
    return result;
}
